"""Progress on stderr: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from toolkit.core.progress import listening

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY_SECONDS = 10.0  # between plain lines about the same work
MARKS = {"done": "made", "cached": "cached", "waiting": "another run is at it: waiting", "started": ""}


class Shown:
    """What long work says of itself; `stage` fits `toolkit.pipeline.runner.Watcher`."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars
        self._task: tuple[str, TaskID] | None = None
        self._told: dict[str, float] = {}

    def work(self, label: str, done: int, total: int | None) -> None:
        """A step of some work."""
        if self._bars is not None:
            if self._task is None or self._task[0] != label:
                self._clear()
                self._task = (label, self._bars.add_task(label, total=total))
            self._bars.update(self._task[1], completed=done, total=total)
            return
        now = time.monotonic()
        if now - self._told.setdefault(label, now) >= EVERY_SECONDS:
            self._told[label] = now
            click.echo(f"  {label}: {done}" + (f" of {total}" if total else ""), err=True)

    def stage(self, name: str, state: str, seconds: float) -> None:
        """A stage starts, waits or is done."""
        self._clear()
        if state == "started":
            self.work(name, 0, None)
            return
        time_taken = f"{seconds:8.1f} s" if state in ("done", "cached") else " " * 10
        line = f"{name:<10}{time_taken}  {MARKS[state]}"
        if self._bars is not None:
            self._bars.console.print(line, style="dim" if state == "cached" else None, highlight=False)
        else:
            click.echo(line, err=True)

    def _clear(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task[1])
            self._task = None


@contextmanager
def shown() -> Iterator[Shown]:
    """Show the progress of everything inside the block."""
    if not sys.stderr.isatty():
        plain = Shown(None)
        with listening(plain.work):
            yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        live = Shown(bars)
        with listening(live.work):
            yield live
