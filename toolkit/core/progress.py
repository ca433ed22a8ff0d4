"""Report progress of long work to a listener; only the CLI draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, "int | None"], None]  # label, items done, total

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and report progress after each.

    Args:
        items: The items.
        label: The activity, e.g. "calibrating".
        total: Number of items; None: `len` of a sized iterable.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    report_progress(label, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        report_progress(label, done, total)


def report_progress(label: str, done: int, total: int | None) -> None:
    """Report items done and the total to the listener, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(label, done, total)


def has_listener() -> bool:
    """Return True if progress is reported to a listener here."""
    return _listener.get() is not None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send all progress inside the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
