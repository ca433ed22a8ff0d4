"""Real OpenSSH servers on loopback as devices, and bundles to deploy to them."""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeship.toolkit.deploy import agent_client, transport
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy.bundle import Bundle, Contents, Graph
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.manifest import Terms
from edgeship.toolkit.deploy.release import DeployOptions

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
LIMITS = [
    (agent_client, f"{name}_S") for name in ("FIRST_ANSWER", "PROMPT", "SILENCE", "LONGEST_SILENCE", "QUICK")
]
LIMITS += [(transport, "CONNECT_S")]
QUICK = DeployOptions(wait_s=0.0, limit_s=60.0, timing_s=0.05)


def need(present: object, what: str) -> None:
    """Skip with a reason where something is missing; continuous integration must have it."""
    if not present:
        assert os.environ.get("CI") != "true", f"continuous integration must have {what}"
        pytest.skip(f"needs {what}")


@dataclass
class Server:
    """One sshd: one device."""

    folder: Path
    port: int
    config: Path
    process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        return [str(SSHD), "-D", "-e", "-f", str(self.config)]

    def start(self) -> None:
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        give_up = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < give_up:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "sshd.log").read_text())

    def cut(self) -> None:
        """Cut every connection: the session's sshd dies, the programs it started do not."""
        assert self.process is not None
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):  # it may be gone already
                if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                    kill(pid)

    def stop(self) -> None:
        """Kill the server, its connections and all they started."""
        if self.process is not None:
            family = descendants(self.process.pid)
            for pid in (self.process.pid, *family):
                kill(pid)
            self.process.wait()
            self.process = None

    @property
    def root(self) -> Path:
        return self.folder / "root"


def free_port() -> int:
    """A port without a listener, below those that the system gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as chosen, contextlib.suppress(OSError):
            chosen.bind(("127.0.0.1", port))
            return port


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and that those started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found, front = [], {pid}
    while front:
        front = {child for child, parent in parents.items() if parent in front}
        found += sorted(front)
    return found


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass
class Park:
    """Keys, client configuration and servers."""

    folder: Path
    servers: list[Server] = field(default_factory=list)

    @property
    def client_key(self) -> Path:
        return self.folder / "id"

    @property
    def client_config(self) -> Path:
        return self.folder / "client_config"

    @property
    def python(self) -> Path:
        """A Python that starts fast, with SDKs that are stubs."""
        wrapper = self.folder / "python"
        return wrapper if wrapper.exists() else stub_python(wrapper)

    def server(self, name: str, more: str = "") -> Server:
        folder = self.folder / name
        folder.mkdir()
        make_key(folder / "host_key")
        port = free_port()
        config = folder / "sshd_config"
        config.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {self.client_key}.pub\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n{more}\n"
        )
        key = (folder / "host_key.pub").read_text()
        with (self.folder / "known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{port} {key}")
        server = Server(folder, port, config)
        server.start()
        self.servers.append(server)
        return server

    def entry(self, server: Server, name: str = "device", **fields: Any) -> Device:
        given = {
            "host": "127.0.0.1",
            "target": "openvino",
            "port": server.port,
            "user": getpass.getuser(),
            "root": str(server.root),
            "python": str(self.python),
            "ssh_config": str(self.client_config),
        }
        return Device(name, **{**given, **fields})


@contextlib.contextmanager
def running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Park]:
    """Keys and configuration for servers, which are stopped in the end."""
    need(SSHD, "openssh-server")
    need(shutil.which("ssh"), "openssh-client")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates privileges
    for module, name in LIMITS:  # a test must not fail because the machine is slow
        monkeypatch.setattr(module, name, 120)
    sockets = tempfile.mkdtemp(prefix="es-")  # paths of sockets must be short
    monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
    park = Park(folder / "park")
    park.folder.mkdir()
    make_key(park.client_key)
    park.client_config.write_text(
        f"Host *\n IdentityFile {park.client_key}\n IdentitiesOnly yes\n LogLevel ERROR\n"
        f" UserKnownHostsFile {park.folder}/known_hosts\n GlobalKnownHostsFile /dev/null\n"
    )
    try:
        yield park
    finally:
        for server in park.servers:
            server.stop()
        shutil.rmtree(sockets, ignore_errors=True)  # ssh masters may remove their sockets at the same time


def stub_python(path: Path, python: str = sys.executable) -> Path:
    """Write a Python that starts fast, with SDKs that are stubs."""
    stubs = shlex.quote(str(Path(__file__).parent / "deploy" / "stub_sdk"))
    path.write_text(f'#!/bin/sh\nPYTHONPATH={stubs} exec {python} -S "$@"\n')
    path.chmod(0o755)
    return path


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)


def scripted(
    out: Path,
    version: int = 1,
    size: int = 4096,
    gates: dict[str, float] | None = None,
    terms: Terms | None = None,
    name: str = "scripted",
    **script: Any,
) -> Bundle:
    """A bundle whose runner does what `script` says (see scripted_runner.py).

    Args:
        out: The file to write.
        version: Another version is another release.
        size: Bytes of the evaluation set, random.
        gates: Limits on the device.
        terms: Version and expiry of the release.
        name: Name of the model.
        script: For SCRIPT.
    """
    graph, data = out.with_suffix(".onnx"), out.with_suffix(".set")
    graph.write_bytes(b"graph %d" % version)
    data.write_bytes(np.random.default_rng(version).bytes(size))
    program = (
        (Path(__file__).parent / "deploy" / "scripted_runner.py")
        .read_text()
        .replace("SCRIPT = {}", f"SCRIPT = {script!r}")
    )
    logits = np.zeros((2, 10), np.float32)
    simulated = {"top1": 0.9, "top5": 1.0, "images": 100, "measured_on": "simulation"}
    graphs = [
        Graph(f"{target}-int8", target, "int8", graph, logits, simulated=simulated)
        for target in ("openvino", "onnxruntime")
    ]
    contents = Contents(
        name,
        graphs,
        np.zeros((2, 3, 4, 4), np.float32),
        data,
        gates=gates or {},
        runner=program.encode(),
        terms=terms or Terms(),
    )
    return bundles.make(contents, out)


def live(server: Server) -> str:
    """Name of the live release, by looking at the link; it must be complete."""
    link = server.root / "current"
    assert (link / "release.json").exists() and (link / "engine").exists()
    return link.resolve().name


def quiet(_state: str, _detail: str) -> None:
    """No server listens."""


def processes(word: str) -> list[str]:
    """Command lines with this word in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if word in line:
                found.append(line)
    return found
