"""Logins that are not as expected: each has its own cause and cure."""

import errno
import re
import shlex
import sys
import time

import pytest
from loopback import QUICK, free_port, quiet

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy import agent_client, release, transport
from edgeship.toolkit.deploy.agent.protocol import disk_refusal
from edgeship.toolkit.deploy.agent_client import RefusedError, connect
from edgeship.toolkit.deploy.inventory import Device, parse
from edgeship.toolkit.deploy.transport import explain, explain_start, printable

NANO = Device("nano", "10.0.0.5", "tensorrt", jump="gate")


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("ssh: connect to host 10.0.0.5 port 22: No route to host", "no route"),
        (
            "ssh: connect to host 10.0.0.5 port 22: Network is unreachable",
            "network of 10.0.0.5 is unreachable",
        ),
        ("ssh: connect to host 10.0.0.5 port 22: Operation timed out", "does not answer"),
        (
            "Unable to negotiate with nano: no matching host key type found. Their offer: ssh-rsa,ssh-dss",
            "rejects: ssh-rsa,ssh-dss",
        ),
        (
            "Unable to negotiate with 10.0.0.5 port 22: no matching cipher found. Their offer: aes128-cbc",
            "no cipher in common; its offer: aes128-cbc",
        ),
        ("Received disconnect from 10.0.0.5: 2: Too many authentication failures", "too many keys"),
        (
            "ssh: connect to host gate port 22: Connection refused\r\n"
            "kex_exchange_identification: Connection closed by remote host\r\n"
            "Connection closed by UNKNOWN port 65535",
            "jump host gate cannot be reached: Connection refused",
        ),
        (
            "ssh: Could not resolve hostname gate: Name or service not known\r\n"
            "Connection closed by UNKNOWN port 65535",
            "jump host gate",
        ),
        (
            "channel 0: open failed: connect failed: No route to host\r\nstdio forwarding failed\r\n"
            "Connection closed by UNKNOWN port 65535",
            "jump host cannot reach 10.0.0.5: No route to host",
        ),
        (
            "me@gate: Permission denied (publickey).\r\nConnection closed by UNKNOWN port 65535",
            "login at the jump host failed: Permission denied",
        ),
        (
            "System is booting up. Unprivileged users are not permitted to log in yet.\r\n"
            "Connection closed by 10.0.0.5 port 22",
            "permits no logins",
        ),
        ("nvidia@10.0.0.5: Permission denied (publickey,password).", "none of the keys"),
    ],
)
def test_errors_of_ssh(log, words, monkeypatch):
    monkeypatch.setattr(transport, "jump_log", lambda entry: "")
    for explanation in (explain, explain_start):
        error = explanation(NANO, 255, log)
        assert words in str(error) and str(error).startswith("nano: ")
        assert error.hint and "deploy again" not in error.hint


@pytest.mark.parametrize(
    ("code", "output", "words"),
    [
        (
            1,
            "WARNING: Your password has expired.\nPassword change required but no TTY available.",
            "password",
        ),
        (255, "Your password has expired.\nnvidia@10.0.0.5: Permission denied", "password"),
        (1, "This account is currently not available.", "nologin"),
        (1, "This service allows sftp connections only.", "file transfer only"),
        (127, "sh: 1: python3: not found", "cannot run python3"),
        (1, "OSError: [Errno 28] No space left on device", "disk of 10.0.0.5 is full"),
        (125, "Error response from daemon: No such container: box", "No such container: box"),
        (1, "", "exit code 1"),
        (255, "kex_exchange_identification: read: Connection reset by peer", "before the login"),
        (0, "\x1b]0;title\x07", "ended without running python3"),
    ],
)
def test_logins_that_end_before_the_agent_answers(code, output, words, monkeypatch):
    monkeypatch.setattr(transport, "jump_log", lambda entry: "")
    error = explain_start(NANO, code, output)
    assert words in str(error)
    assert error.hint and "deploy again" not in error.hint


def test_terminal_output_without_escape_sequences():
    assert printable(b"\x1b]0;jetson\x07\x1b[1;32mWelcome\x1b[0m\r\n\r\n  $ ") == "Welcome\n$"
    assert printable(b"\x1b]2;title\x1b\\\x1b[?2004h") == ""


def wrapped(server, text):
    """A command that does what a login does before it runs Python."""
    file = server.folder / "login"
    file.write_text(f'#!/bin/sh\n{text}\nexec {sys.executable} "$@"\n')
    file.chmod(0o755)
    return str(file)


def test_text_without_a_newline_before_the_first_answer(device, park):
    server, _ = device
    entry = park.entry(server, python=wrapped(server, r"printf '\033]0;jetson\007Welcome, last login: now'"))
    assert release.status(entry)["current"] is None


FIRST_ANSWER_S = agent_client.FIRST_ANSWER_S  # the product's: loopback connections have a longer limit


def test_a_silent_login_is_given_up_within_ten_seconds():
    assert 5 <= FIRST_ANSWER_S < 10


@pytest.mark.parametrize(
    ("login", "words"),
    [
        ("printf 'Activate the environment? [y/n] '; sleep 600", "Activate the environment"),
        ("read answer", "reads the standard input"),
        ("sleep 600", "no answer"),
    ],
)
def test_a_login_script_that_asks(login, words, device, park, monkeypatch):
    monkeypatch.setattr(agent_client, "PROMPT_S", 0.5)
    monkeypatch.setattr(agent_client, "FIRST_ANSWER_S", 1.5 if login == "sleep 600" else 120.0)
    server, _ = device
    started = time.monotonic()
    with pytest.raises(DeviceError, match=words) as caught:
        release.status(park.entry(server, python=wrapped(server, login)))
    assert ("[ -t 0 ]" in caught.value.hint or words == "no answer") and time.monotonic() - started < 100


def test_an_old_python_answers(device, park):
    server, _ = device
    old = server.folder / "python3.6"
    old.write_text(f"#!{sys.executable}\nimport sys\nsys.version_info = (3, 6, 9)\nexec(sys.argv[2])\n")
    old.chmod(0o755)
    with pytest.raises(RefusedError, match=r"3\.6, and 3\.8 is needed") as caught:
        release.status(park.entry(server, python=str(old)))
    assert caught.value.code == "python" and "export-jetson" in caught.value.hint


SHELL = """#!/bin/sh
# As csh: no line breaks in quoted words.
[ "$(printf %s "$SSH_ORIGINAL_COMMAND" | wc -l)" = 0 ] || { echo "Unmatched '''." >&2; exit 1; }
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""


def test_a_login_shell_without_line_breaks_in_words(park):
    shell = park.folder / "csh"
    shell.write_text(SHELL)
    shell.chmod(0o755)
    server = park.server("device", f"ForceCommand {shell}")
    assert release.status(park.entry(server))["current"] is None


def test_a_login_for_sftp_only(park):
    server = park.server("sftp", "ForceCommand internal-sftp")
    with pytest.raises(DeviceError, match="file transfer only") as caught:
        release.status(park.entry(server))
    assert "shell" in caught.value.hint


def test_a_jump_host_that_is_down(device, park):
    server, _ = device
    entry = park.entry(server, jump=f"127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(DeviceError, match=r"jump host 127\.0\.0\.1 cannot be reached: Connection refused"):
        release.status(entry)
    assert time.monotonic() - started < 100


def test_a_jump_host_that_closes_before_ssh_wrote_its_version(device, park):
    """Accept both texts of ssh: the order of two processes decides which it prints."""
    server, _ = device
    entry = park.entry(server, jump=f"127.0.0.1:{free_port()}")
    for text in (
        "banner exchange: Connection to UNKNOWN port 65535: Broken pipe",
        "kex_exchange_identification",
    ):
        error = explain_start(entry, 255, text)
        assert "jump host 127.0.0.1 cannot be reached: Connection refused" in str(error)


def test_python_may_be_a_command_with_arguments(device, park, bundle):
    """As `docker exec -i NAME python3`: what the agent starts runs in the same environment."""
    server, plain = device
    inside = park.entry(server, python=f"env INSIDE=1 {shlex.quote(plain.python)}", health="test $INSIDE = 1")
    assert release.deploy(inside, bundle(), QUICK, quiet).state == "live"
    with connect(inside) as session:
        code = "import os, json; print(json.dumps({'inside': os.environ.get('INSIDE')}))"
        events = []
        session.call("run", on_event=events.append, argv=["{python}", "-c", code], limit_s=30.0)
    assert events == [{"inside": "1"}]
    for python in ("docker exec 'box", " "):
        with pytest.raises(DeviceError, match="python"):
            parse("nano", {"host": "10.0.0.5", "target": "tensorrt", "python": python})


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full", "df -h"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "temporary files", "/tmp"),
        (PermissionError(13, "Permission denied", "/opt/edgeship"), "/opt/edgeship", "owner"),
    ],
)
def test_a_disk_of_the_device_that_cannot_be_written(error, words, hint):
    refusal = disk_refusal(error, "during run")
    assert refusal.code == "disk" and words in str(refusal) and hint in refusal.hint


@pytest.mark.parametrize("name", ["run time", "100%h", "x" * 80, 'a"b', "q'", "a\\b", "${HOME}", "absent/é"])
def test_odd_runtime_folders_do_not_reach_ssh(name, device, tmp_path, monkeypatch):
    _, entry = device
    folder = tmp_path / name
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    sockets = transport.control_folder()
    assert len(f"{sockets}/{'0' * 40}.{'x' * 16}") < 108 and set(str(sockets)) & set(" %'\"\\$") == set()
    assert release.status(entry)["current"] is None


def test_runtime_folders_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/none")
    assert transport.control_folder().name.startswith("edgeship-")
    monkeypatch.setattr(transport, "_SOCKET_FOLDER", re.compile("/proc.*"))
    with pytest.raises(DeviceError, match="no folder for the sockets"):
        transport.control_folder()
