"""Run programs until their time limit or until the client disconnects."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from typing import IO, Any, Callable, Iterator, Sequence  # noqa: UP035 (Python 3.8)

from edgeship.toolkit.deploy.agent.protocol import BLOCK, SILENCE_S, Client, DisconnectedError, RefusedError

LOG_TAIL = 4000  # bytes of a program's log to send back
LONGEST_LINE = 1 << 20  # bytes of an event
TICK_S = 0.5
ENDING_S = 0.01  # between the end of a program's output and its own

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
        on_event: Called with every output line that is a JSON object.

    Returns:
        Exit code (negative: killed by that signal) and the end of the log (stderr, output that is no event).

    Raises:
        RefusedError: The program cannot be started, or exceeded the time limit.
        DisconnectedError: The client disconnected.
    """
    parent = os.getpid()
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=dict(os.environ, **variables),
            start_new_session=True,
            preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509 (the other thread sleeps, see `Client`)
        )
    except OSError as error:
        hint = "check the device's entry in the inventory"
        raise RefusedError(f"cannot run {argv[0]}: {error.strerror}", hint) from error
    log, rest, code = b"", b"", None
    output: IO[bytes] = child.stdout  # type: ignore[assignment]
    errors: IO[bytes] = child.stderr  # type: ignore[assignment]
    try:
        for stream, block in _blocks(client, child, (output, errors), limit_s):
            if stream is errors:
                log = (log + block)[-LOG_TAIL:]
                continue
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                event = _event(line)
                if event is None:
                    log = (log + line + b"\n")[-LOG_TAIL:]
                else:
                    on_event(event)
        code = child.wait()
    finally:
        if code is None:
            _kill(child)
        output.close()
        errors.close()
    return code, (log + rest)[-LOG_TAIL:].decode(errors="replace")


def _event(line: bytes) -> Any:
    """Return the event of a line, or None: it belongs to the log."""
    try:
        event = json.loads(line.decode())
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _blocks(
    client: Client, child: subprocess.Popen[bytes], streams: Sequence[IO[bytes]], limit_s: float
) -> Iterator[tuple[IO[bytes], bytes]]:
    """Yield blocks of a child's output until it ends."""
    started = last_contact = time.monotonic()
    unread, ended = list(streams), 0.0
    while True:
        exited = child.poll() is not None  # before the look at its output: what it wrote last is read
        watched: list[Any] = [0, *unread]
        ready = select.select(watched, [], [], TICK_S if unread else ENDING_S)[0]
        if 0 in ready:
            client.check_connected()
            last_contact = time.monotonic()
        for stream in unread[:]:
            if stream in ready:
                block = os.read(stream.fileno(), BLOCK)
                if block:
                    yield stream, block
                else:
                    unread.remove(stream)
        if exited:
            ended = ended or time.monotonic()
            if not set(ready) - {0} or time.monotonic() > ended + TICK_S:  # a daemon may hold its pipes open
                return
        if time.monotonic() > last_contact + SILENCE_S:
            raise DisconnectedError
        if time.monotonic() > started + limit_s:
            raise RefusedError(
                f"stopped after the time limit of {limit_s:g} s",
                "allow more with --limit SECONDS; check the device's load and free memory",
                "time",
            )


def _die_with(parent: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the process group of a child."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
