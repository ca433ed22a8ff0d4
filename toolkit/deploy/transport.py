"""Run commands on a device with the system's OpenSSH, or directly on this machine."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.deploy.inventory import Device

CONNECT_S = 8
# 107 bytes of a socket's path, less `/`, 40 digits of %C and 17 characters of the temporary name.
_SOCKET_FOLDER = re.compile(r"/[A-Za-z0-9/._+@-]{0,48}")

# Pattern in ssh's output, message, hint; the first match counts. {0} is the host, {1} and {2} are groups.
_JUMP = r"UNKNOWN port|kex_exchange_identification|stdio forwarding failed"  # through a jump host
# The connection, or the process for the jump host, was closed before or while ssh wrote its version.
_CLOSED = r"kex_exchange_identification|banner exchange: .*Broken pipe"
_JUMP_ERRORS = (
    (
        r"connect to host (\S+) port \d+: ([^\r\n]+)",
        "the jump host {1} cannot be reached: {2}",
        "switch {1} on, or correct jump in the inventory",
    ),
    (
        r"Could not resolve hostname (\S+):",
        "no address is known for the jump host {1}",
        "correct jump in the inventory",
    ),
    (
        r"(?s)(?:open failed: connect failed: ([^\r\n]+).*)?stdio forwarding failed",
        "the jump host cannot reach {0}: {1}",
        "correct host and port, as seen from the jump host",
    ),
    (
        r"(Permission denied|Host key verification failed|Too many authentication failures)",
        "the login at the jump host failed: {1}",
        "`ssh JUMP` must work without a question",
    ),
)
_SSH_ERRORS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key of {0} has changed",
        "if the device was reinstalled: `ssh-keygen -R {0}`; otherwise suspect an attack",
    ),
    (
        r"no matching host key type found\. Their offer: ([\w,@.-]+)",
        "{0} offers only host keys that this ssh rejects: {1}",
        "for {0} in ssh_config: HostKeyAlgorithms +{1} and PubkeyAcceptedAlgorithms +{1}",
    ),
    (
        r"no matching ([\w ]+) found\. Their offer: ([\w,@.-]+)",
        "{0} and this ssh have no {1} in common; its offer: {2}",
        "update sshd there, or allow one in ssh_config for {0}",
    ),
    (
        r"Host key verification failed",
        "the host key of {0} is not known",
        "`ssh {0}` once, and accept the fingerprint if it is the device's",
    ),
    (
        r"Too many authentication failures",
        "{0} ended the login after too many keys",
        "set key in the inventory: then only that key is offered",
    ),
    (
        r"not permitted to log in yet|System is going down|/etc/nologin",
        "{0} permits no logins: it is starting or shutting down",
        "try again in a minute; if it stays so, remove /run/nologin and /etc/nologin there",
    ),
    (
        r"Permission denied",
        "{0} accepts none of the keys offered",
        "`ssh-copy-id {0}`, or set user and key in the inventory",
    ),
    (
        r"Could not resolve hostname",
        "no address is known for {0}",
        "correct host in the inventory, or in your ssh_config",
    ),
    (
        r"No route to host",
        "there is no route to {0}, or it is off",
        "connect to its network and switch it on, or correct host in the inventory",
    ),
    (
        r"Network is unreachable",
        "the network of {0} is unreachable from this machine",
        "connect this machine to that network (cable, VPN), or correct host in the inventory",
    ),
    (
        r"Connection refused",
        "nothing listens for ssh at {0}",
        "start sshd there, or correct port in the inventory",
    ),
    (
        r"timed out",
        "{0} does not answer",
        "switch the device on, or correct host, port and jump in the inventory",
    ),
)
# The same of a login that ended before Python started, with any exit code.
_LOGIN_ERRORS = (
    (
        r"[Pp]assword has expired|[Pp]assword change required|password expired",
        "the password of the login at {0} has expired",
        "`ssh {0}` once, and set a new password",
    ),
    (
        r"(?i)\bsftp\b|Received message too long",
        "the login at {0} permits file transfer only",
        "set user in the inventory to a login with a shell",
    ),
    (
        r"account is currently not available|nologin",
        "the login at {0} has no shell (nologin)",
        "`sudo chsh -s /bin/sh USER` there, or set user in the inventory",
    ),
    (
        r'(?s)File "<string>".*SyntaxError',
        "a login script at {0} reads the standard input",
        "end the script early where there is no terminal: `[ -t 0 ] || return`",
    ),
    (
        r"kex_exchange_identification|Connection (closed|reset) by",
        "sshd at {0} ended the connection before the login",
        "wait if many logins run at once; else see `journalctl -u ssh` there (MaxStartups, a ban)",
    ),
    (
        r"No space left on device",
        "the disk of {0} is full",
        "free space on the device: `df -h`",
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
        "LogLevel": "INFO",  # errors are recognized by their text
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
        command += ["-F", str(user_path(entry.ssh_config))]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    if entry.port:
        command += ["-p", str(entry.port)]
    if entry.user:
        command += ["-l", entry.user]
    if entry.key:  # no others: sshd ends a login after six keys
        command += ["-o", "IdentitiesOnly=yes"]
        command += ["-i", str(user_path(entry.key)).replace("%", "%%")]
    if entry.jump:
        command += ["-J", entry.jump]
    return [*command, "--", entry.host, shlex.join(argv)]


def jump_log(entry: Device) -> str:
    """Return the output of a login of its own: ssh discards that of jump hosts in shared connections."""
    _, *words = command_line(entry, ["true"])
    try:
        command = ["ssh", "-o", "ControlPath=none", *words]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CONNECT_S, check=False
        ).stderr.decode(errors="replace")
    except subprocess.TimeoutExpired:
        return ""


def control_folder() -> Path:
    """Return a private folder for the sockets of shared connections.

    ssh limits their paths, and takes spaces, quotes and % in them as syntax: a folder with such a path is
    passed over.

    Raises:
        DeviceError: No folder can be used, or another user owns it or has access.
    """
    name = f"edgeship-{os.getuid()}"
    base = os.environ.get("XDG_RUNTIME_DIR")
    folders = [Path(base) / "edgeship"] if base else []
    error = ""
    for folder in (*folders, Path(tempfile.gettempdir()) / name, Path("/tmp") / name):  # noqa: S108
        if not _SOCKET_FOLDER.fullmatch(str(folder)):
            continue
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.lstat()
        except OSError as failure:
            error = f"{folder}: {failure.strerror}"
            continue
        if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
            raise DeviceError(
                f"{folder} is not yours alone: mode {status.st_mode & 0o777:o}, owner {status.st_uid}",
                hint=f"`chmod 700 {folder}`, or remove it",
            )
        return folder
    raise DeviceError(
        f"no folder for the sockets of ssh: {error or 'the paths are too long'}",
        hint="set XDG_RUNTIME_DIR to a folder of yours with a short path",
    )


def explain(entry: Device, exit_code: int | None, log: str) -> DeviceError:
    """Convert the exit code and log of a connection that ended to an error."""
    return _known(entry, log, _ssh_rows(exit_code, log)) or DeviceError(
        f"{entry.name}: the connection was lost ({_last(log, exit_code)})",
        hint="deploy again: the upload resumes",
    )


def explain_start(entry: Device, exit_code: int | None, output: str) -> DeviceError:
    """Convert the exit code and output of a login that ended before the agent's first answer to an error."""
    if exit_code == 255 and re.search(_CLOSED, output):
        output = f"{jump_log(entry)}\n{output}"
    error = _known(entry, output, (*_LOGIN_ERRORS[:1], *_ssh_rows(exit_code, output), *_LOGIN_ERRORS[1:]))
    if error is not None:
        return error
    command = entry.python if entry.local else f"ssh {entry.host} {entry.python}"
    if exit_code in {126, 127}:
        return DeviceError(
            f"{entry.name}: cannot run {entry.python} there",
            hint="install python3 on the device, or set python in the inventory",
        )
    if exit_code == -signal.SIGKILL:  # ended by `AgentSession.abort`
        jump = f", or the jump host {entry.jump} does not answer" if entry.jump else ""
        return DeviceError(
            f"{entry.name}: no answer from {entry.python}: it hangs, or a login script waits for input{jump}",
            hint=f"`{command} -V` must print a version at once",
        )
    if exit_code in {0, 11} and not printable(
        output.encode()
    ):  # 11: sftp-server on input of another protocol
        return DeviceError(
            f"{entry.name}: the login ended without running {entry.python}",
            hint="set user in the inventory to a login with a shell: a forced command or sftp ends it",
        )
    return DeviceError(
        f"{entry.name}: cannot start {entry.python} there ({_last(output, exit_code)})",
        hint=f"`{command} -V` must print a version and nothing else",
    )


def printable(output: bytes) -> str:
    """Return the printable text of terminal output, without escape sequences."""
    text = re.sub(
        r"\x1b(\][^\x07\x1b]*(\x07|\x1b\\\\)?|\[[0-?]*[ -/]*[@-~]|.)", "", output.decode(errors="replace")
    )
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _ssh_rows(exit_code: int | None, log: str) -> tuple[tuple[str, str, str], ...]:
    if exit_code != 255:  # ssh's own
        return ()
    return (*_JUMP_ERRORS, *_SSH_ERRORS) if re.search(_JUMP, log) else _SSH_ERRORS


def _known(entry: Device, log: str, rows: Iterable[tuple[str, str, str]]) -> DeviceError | None:
    for pattern, message, hint in rows:
        if match := re.search(pattern, log):
            words = (entry.host, *(group or "unknown" for group in match.groups()))
            return DeviceError(f"{entry.name}: {message.format(*words)}", hint=hint.format(*words))
    return None


def _last(log: str, exit_code: int | None) -> str:
    return log.strip().splitlines()[-1] if log.strip() else f"exit code {exit_code}"
