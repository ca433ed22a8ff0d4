"""Run commands on a device with the system's OpenSSH, or directly on this machine."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy.inventory import Device

CONNECT_S = 10

# Text in ssh's stderr at exit code 255, error message, hint.
_SSH_ERRORS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key of {host} has changed",
        "if the device was reinstalled: `ssh-keygen -R {host}`; otherwise suspect an attack",
    ),
    (
        "Host key verification failed",
        "the host key of {host} is not known",
        "`ssh {host}` once, and accept the fingerprint if it is the device's",
    ),
    (
        "Permission denied",
        "{host} accepts none of the keys offered",
        "`ssh-copy-id {host}`, or set user and key in the inventory",
    ),
    (
        "Could not resolve hostname",
        "no address is known for {host}",
        "correct host in the inventory, or in your ssh_config",
    ),
    (
        "Connection refused",
        "nothing listens for ssh at {host}",
        "start sshd there, or correct port in the inventory",
    ),
    (
        "timed out",
        "{host} does not answer",
        "switch the device on, or correct host, port and jump in the inventory",
    ),
)


def command_line(entry: Device, argv: Sequence[str]) -> list[str]:
    """Return the local command that runs `argv` on a device.

    No local shell is involved; for the device's shell every word of `argv` is quoted. Host keys are always
    checked, regardless of the user's configuration, and there are no password prompts.

    Args:
        entry: The device.
        argv: Program and arguments.
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
    """Return a private folder for the sockets of shared connections; short, as socket paths are limited.

    Raises:
        DeviceError: Another user owns the folder or has access.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "edgeship" if base else Path(tempfile.gettempdir()) / f"edgeship-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise DeviceError(
            f"{folder} is not yours alone: mode {status.st_mode & 0o777:o}, owner {status.st_uid}",
            hint=f"`chmod 700 {folder}`, or remove it",
        )
    return folder


def explain(entry: Device, exit_code: int | None, log: str) -> DeviceError:
    """Convert the exit code and log of ssh to an error."""
    host = entry.host
    for text, message, hint in _SSH_ERRORS:
        if exit_code == 255 and text in log:
            return DeviceError(f"{entry.name}: {message.format(host=host)}", hint=hint.format(host=host))
    if exit_code in {126, 127}:
        return DeviceError(
            f"{entry.name}: cannot run {entry.python} there",
            hint="install python3 on the device, or set python in the inventory",
        )
    last = log.strip().splitlines()[-1] if log.strip() else f"exit code {exit_code}"
    return DeviceError(
        f"{entry.name}: the connection was lost ({last})", hint="deploy again: the upload resumes"
    )
