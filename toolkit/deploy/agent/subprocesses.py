"""Run programs until their time limit or until the client disconnects."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import IO, Any, Callable, Iterator  # noqa: UP035 (Python 3.8)

from edgeship.toolkit.deploy.agent.protocol import BLOCK, SILENCE_S, Client, DisconnectedError, RefusedError

LOG_TAIL = 4000  # bytes of a program's log to send back
TICK_S = 0.5

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def run_program(
    client: Client,
    argv: list[str],
    limit_s: float,
    *,
    cwd: str,
    variables: dict[str, str],
    on_event: Callable[[Any], None],
) -> tuple[int, str]:
    """Run a program in its own process group.

    The program is killed with this process, when the client disconnects, and at the time limit; daemons that
    it started survive.

    Args:
        client: Connection to watch.
        argv: Program and arguments.
        limit_s: Time limit in seconds.
        cwd: Working directory.
        variables: Environment variables to add.
        on_event: Called with every output line that is JSON.

    Returns:
        Exit code (negative: killed by that signal) and the end of the log (stderr, output that is not JSON).

    Raises:
        RefusedError: The program cannot be started, or exceeded the time limit.
        DisconnectedError: The client disconnected.
    """
    with tempfile.TemporaryFile() as log:
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=cwd,
                env=dict(os.environ, **variables),
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (this process has one thread)
            )
        except OSError as error:
            hint = "check the device's entry in the inventory"
            raise RefusedError(f"cannot run {argv[0]}: {error.strerror}", hint) from error
        output: IO[bytes] = child.stdout  # type: ignore[assignment]
        code = None
        try:
            for line in _lines(client, child, output.fileno(), limit_s):
                try:
                    event = json.loads(line.decode())
                except ValueError:
                    log.write(line + b"\n")  # not an event: goes to the log
                else:
                    on_event(event)
            code = child.wait()
        finally:
            if code is None:
                _kill(child)
            output.close()
        log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL))
        return code, log.read().decode(errors="replace")


def _lines(client: Client, child: subprocess.Popen[bytes], output: int, limit_s: float) -> Iterator[bytes]:
    """Yield output lines of a child until it closes its output or ends."""
    started = last_contact = time.monotonic()
    rest = b""
    while True:
        ready = select.select([0, output], [], [], TICK_S)[0]
        if 0 in ready:
            client.check_connected()
            last_contact = time.monotonic()
        if output in ready:
            block = os.read(output, BLOCK)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
        elif child.poll() is not None:  # a daemon that it started holds the pipe open
            return
        if time.monotonic() > last_contact + SILENCE_S:
            raise DisconnectedError
        if time.monotonic() > started + limit_s:
            raise RefusedError(
                f"stopped after the time limit of {limit_s:g} s",
                "allow more with --limit SECONDS; check the device's load and free memory",
                "time",
            )


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the process group of a child."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
