"""End a command by a signal: clean up, whatever becomes of the interrupt. Python 3.8: devices run it too."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

_received: list[int] = []
_report = sys.unraisablehook
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by a signal"}


def install() -> None:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM; a shell's background command keeps ignoring SIGINT."""
    _received.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _unraisable


def ignore() -> None:
    """Ignore SIGINT and SIGTERM from now on: the command has ended, and its result is written whole."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def received() -> bool:
    """Return True after a signal."""
    return bool(_received)


def check(error: BaseException | None = None) -> None:
    """Raise the interrupt of a signal again: Python drops one in a destructor or a weak reference's callback.

    Args:
        error: The exception that came in its place.

    Raises:
        KeyboardInterrupt: A signal was received.
    """
    if _received:
        raise KeyboardInterrupt(_WORDS[signal.Signals(_received[0])]) from error


@contextmanager
def interrupts() -> Iterator[None]:
    """Raise the interrupt of a signal where another exception came in its place.

    An extension that is interrupted during its import raises ImportError, and the start of a thread
    RuntimeError ("release unlocked lock").

    Raises:
        KeyboardInterrupt: A signal was received, and the block raised an exception.
    """
    try:
        yield
    except Exception as error:
        check(error)
        raise


def leave(code: int) -> NoReturn:
    """Exit; after a signal, without the interpreter's finalization, which aborts where a thread is in C++."""
    if not _received:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed or absent
            stream.flush()
    os._exit(code)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    check()


def _unraisable(dropped: Any) -> None:
    """Report an exception that Python drops, unless `check` raises it again."""
    if not (_received and issubclass(dropped.exc_type, KeyboardInterrupt)):
        _report(dropped)
