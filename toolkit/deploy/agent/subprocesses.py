"""Runs programs for as long as the client is there and their time has not run out."""

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

from edgeship.toolkit.deploy.agent.protocol import BLOCK, SILENCE_S, Client, GoneError, RefusedError

LOG_TAIL = 4000  # bytes of a program's log that are worth sending back
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
    tell: Callable[[Any], None],
) -> tuple[int, str]:
    """Run a program in its own process group.

    It dies with this process, with the client, and at the time limit; what it left running on purpose stays.

    Args:
        client: Watched meanwhile.
        argv: Program and arguments.
        limit_s: Seconds it may take.
        cwd: Folder to run it in.
        variables: Environment variables to add.
        tell: Gets every line of its output that is JSON.

    Returns:
        Exit code (negative: the signal that killed it) and the end of its log: stderr, and what is not JSON.

    Raises:
        RefusedError: It cannot be started, or took too long.
        GoneError: The client went away.
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
                    log.write(line + b"\n")  # not for us: a person may want it
                else:
                    tell(event)
            code = child.wait()
        finally:
            if code is None:
                _kill(child)
            output.close()
        log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL))
        return code, log.read().decode(errors="replace")


def _lines(client: Client, child: subprocess.Popen[bytes], output: int, limit_s: float) -> Iterator[bytes]:
    """Lines of a child's output, until it ends it or ends itself."""
    started = heard = time.monotonic()
    rest = b""
    while True:
        ready = select.select([0, output], [], [], TICK_S)[0]
        if 0 in ready:
            client.still_there()
            heard = time.monotonic()
        if output in ready:
            block = os.read(output, BLOCK)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
        elif child.poll() is not None:  # something it started still holds the pipe
            return
        if time.monotonic() > heard + SILENCE_S:
            raise GoneError
        if time.monotonic() > started + limit_s:
            raise RefusedError(
                f"stopped after the time limit of {limit_s:g} s",
                "see whether the device is busy or short of memory, or allow more with --limit",
                "time",
            )


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child and all it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
