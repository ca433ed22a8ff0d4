"""Progress of long work, told to whoever listens: functions report, only the CLI draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, "int | None"], None]  # what is done, items done, items in all

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, telling the listener after each.

    Args:
        items: What is worked through.
        label: What is done, as a person would say it ("calibrating").
        total: Number of items; taken from `len` when it can be.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    report_progress(label, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        report_progress(label, done, total)


def report_progress(label: str, done: int, total: int | None) -> None:
    """Tell the listener, if there is one, how far a piece of work is."""
    listener = _listener.get()
    if listener is not None:
        listener(label, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the progress of everything inside the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
