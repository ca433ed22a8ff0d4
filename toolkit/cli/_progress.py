"""Progress on stderr: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edgeship.toolkit.core.progress import listening

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY_SECONDS = 10.0  # between two lines of the same task
MARKS = {"done": "done", "cached": "cached", "waiting": "waiting: another process is computing this stage"}


class ProgressDisplay:
    """Progress display; `stage` fits `edgeship.toolkit.pipeline.runner.Watcher`."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}  # nested tasks have a bar each
        self._printed_at: dict[str, float] = {}

    def work(self, label: str, done: int, total: int | None) -> None:
        """Show the progress of a task: `done` of `total` units."""
        if self._bars is not None:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=total)
            self._bars.update(self._tasks[label], completed=done, total=total)
            if done == total:
                self._bars.remove_task(self._tasks.pop(label))
            return
        now = time.monotonic()
        if total and now - self._printed_at.setdefault(label, now) >= EVERY_SECONDS:
            self._printed_at[label] = now
            click.echo(f"  {label}: {done} of {total}", err=True)

    def stage(self, name: str, state: str, seconds: float) -> None:
        """Show that a stage started, waits for another process, or is done or cached."""
        if self._bars is not None:
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()
        if state == "started":
            self.work(name, 0, None)
            return
        time_taken = f"{seconds:8.1f} s" if state in ("done", "cached") else " " * 10
        line = f"{name:<10}{time_taken}  {MARKS[state]}"
        if self._bars is not None:
            self._bars.console.print(line, style="dim" if state == "cached" else None, highlight=False)
        else:
            click.echo(line, err=True)


@contextmanager
def show_progress() -> Iterator[ProgressDisplay]:
    """Show the progress of the tasks inside the block."""
    if not sys.stderr.isatty():
        plain = ProgressDisplay(None)
        with listening(plain.work):
            yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        live = ProgressDisplay(bars)
        with listening(live.work):
            yield live
