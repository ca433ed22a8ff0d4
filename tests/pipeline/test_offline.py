"""Published weights without a connection: a one-line error with a hint, and exit code 1."""

import os
import socket
import subprocess
import sys
import threading

import pytest
from loopback import free_port

URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


@pytest.fixture
def garbling():
    """A proxy that answers what is no HTTP, as some hotspots do."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return  # the test is over
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"please log in\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def run(folder, port):
    proxy = f"http://127.0.0.1:{port}"
    variables = {"https_proxy": proxy, "HTTPS_PROXY": proxy, "XDG_CACHE_HOME": str(folder / "cache")}
    changes = {
        "load.weights": "torchvision:IMAGENET1K_V1",
        "load.model": "resnet18",
        "select.source": "digits:train",
        "evaluate.source": "digits:test",
    }
    settings = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    arguments = ["run", "quickstart", "--store", str(folder / "store"), *settings]
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    return subprocess.run(
        [sys.executable, "-m", "edgeship.toolkit.cli.app", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, **variables},
        check=False,
    )


def is_explained(done, folder):
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    error, hint = [line for line in done.stderr.splitlines() if line.startswith(("error: ", " hint: "))]
    assert error.startswith(f"error: cannot download {URL}: ")
    assert URL in hint and "set load.weights" in hint
    assert done.stdout == ""
    assert not [file for file in (folder / "cache").rglob("*") if file.is_file()]


def test_a_proxy_that_is_not_there(tmp_path):
    is_explained(run(tmp_path, free_port()), tmp_path)


def test_a_reply_that_is_no_http(garbling, tmp_path):
    is_explained(run(tmp_path, garbling), tmp_path)
