"""How a command reaches a device: the system's OpenSSH, or nothing at all for this machine."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy.inventory import Entry

CONNECT_S = 10

# What ssh writes to stderr when it gives up (exit code 255), and what helps.
_COMPLAINTS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key of {host} has changed",
        "if the device was reinstalled: `ssh-keygen -R {host}`; if not, someone may be in between",
    ),
    (
        "Host key verification failed",
        "the host key of {host} is not known",
        "connect once by hand with ssh, compare its fingerprint with the device's, and accept it",
    ),
    (
        "Permission denied",
        "{host} accepts none of the keys offered",
        "put your public key into ~/.ssh/authorized_keys there, or set user and key in the inventory",
    ),
    (
        "Could not resolve hostname",
        "no address is known for {host}",
        "check the host in the inventory, or your ssh_config",
    ),
    ("Connection refused", "nothing listens for ssh at {host}", "is sshd running there, and on this port?"),
    (
        "timed out",
        "{host} does not answer",
        "is the device on and in reach? check host, port and jump in the inventory",
    ),
)


def command_line(entry: Entry, argv: Sequence[str]) -> list[str]:
    """The local command that runs `argv` on a device.

    Nothing of it is seen by a shell here; on the device every word of `argv` is quoted. Host keys are
    always checked, whatever the user's configuration says, and nothing asks for a password.

    Args:
        entry: The device.
        argv: Program and arguments, as they shall arrive.
    """
    if entry.local:
        return list(argv)
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": str(CONNECT_S),
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "3",
        "ControlMaster": "auto",
        "ControlPersist": "60",
        "ControlPath": str(control_folder() / "%C"),
    }
    command = ["ssh", "-T"]
    if entry.ssh_config:
        command += ["-F", str(Path(entry.ssh_config).expanduser())]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    if entry.port:
        command += ["-p", str(entry.port)]
    if entry.user:
        command += ["-l", entry.user]
    if entry.key:
        command += ["-i", str(Path(entry.key).expanduser()).replace("%", "%%")]
    if entry.jump:
        command += ["-J", entry.jump]
    return [*command, "--", entry.host, shlex.join(argv)]


def control_folder() -> Path:
    """A folder of this user alone for the sockets of shared connections; short, as sockets demand.

    Raises:
        DeviceError: Someone else owns it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "edgeship" if base else Path(tempfile.gettempdir()) / f"edgeship-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise DeviceError(f"{folder} is not yours alone", hint=f"remove it, or `chmod 700 {folder}`")
    return folder


def explain(entry: Entry, exit_code: int | None, log: str) -> DeviceError:
    """What it means that the connection ended with this exit code and log of ssh."""
    host = entry.host
    for sign, message, hint in _COMPLAINTS:
        if exit_code == 255 and sign in log:
            return DeviceError(f"{entry.name}: {message.format(host=host)}", hint=hint.format(host=host))
    if exit_code in {126, 127}:
        return DeviceError(
            f"{entry.name}: cannot run {entry.python} there",
            hint="install python3 on the device, or set python in the inventory",
        )
    last = log.strip().splitlines()[-1] if log.strip() else f"exit code {exit_code}"
    return DeviceError(
        f"{entry.name}: the connection was lost ({last})", hint="deploy again: it goes on where it stopped"
    )
