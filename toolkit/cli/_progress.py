"""Progress on stderr: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edgeship.toolkit.core import signals
from edgeship.toolkit.core.progress import listening

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY_SECONDS = 10.0  # between two lines of the same task
MARKS = {"done": "done", "cached": "cached", "waiting": "waiting: another process is computing this stage"}


class ProgressDisplay:
    """Progress display; `stage` fits `edgeship.toolkit.pipeline.runner.Watcher`."""

    def __init__(self, bars: Progress | None, stages: Sequence[str] = (), *, quiet: bool = False) -> None:
        self._bars, self._stages, self._quiet = bars, stages, quiet
        self._tasks: dict[str, TaskID] = {}  # nested tasks have a bar each
        self._started: dict[str, float] = {}
        self._printed_at: dict[str, float] = {}

    def work(self, label: str, done: int, total: int | None) -> None:
        """Show the progress of a task: `done` of `total` units."""
        if self._stages:  # a run; a rollout goes on after an interrupt, until its devices are safe
            signals.check()
        if self._bars is not None:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=total)
            self._bars.update(self._tasks[label], completed=done, total=total)
            if done == total:
                self._bars.remove_task(self._tasks.pop(label))
            return
        now = time.monotonic()
        started = self._started.setdefault(label, now)
        if total and now - self._printed_at.setdefault(label, now) >= EVERY_SECONDS and not self._quiet:
            self._printed_at[label] = now
            left = f", {(now - started) / done * (total - done):.0f} s left" if done else ""
            click.echo(f"  {label}: {done} of {total}{left}", err=True)

    def stage(self, name: str, state: str, seconds: float) -> None:
        """Show that a stage started, waits for another process, or is done or cached.

        With the stages of the run a stage is numbered, and one that has nothing to do is left out.
        """
        if self._stages:
            signals.check()
        if self._quiet or (self._stages and name not in self._stages):
            return
        number = ""
        if self._stages:
            number = f"stage {self._stages.index(name) + 1:>2} of {len(self._stages)}  "
        if self._bars is not None:
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()
        if state == "started":
            self.work(f"{number}{name}", 0, None)
            return
        time_taken = f"{seconds:8.1f} s" if state in ("done", "cached") else " " * 10
        line = f"{number}{name:<10}{time_taken}  {MARKS[state]}"
        if self._bars is not None:
            self._bars.console.print(line, style="dim" if state == "cached" else None, highlight=False)
        else:
            click.echo(line, err=True)


@contextmanager
def show_progress(stages: Sequence[str] = ()) -> Iterator[ProgressDisplay]:
    """Show the progress of the tasks inside the block.

    Args:
        stages: Stages of the run that have something to do; empty: not a run.
    """
    context = click.get_current_context(silent=True)
    quiet = bool(context and (context.find_root().obj or {}).get("quiet"))
    if quiet or not sys.stderr.isatty():
        plain = ProgressDisplay(None, stages, quiet=quiet)
        with listening(plain.work):
            yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        live = ProgressDisplay(bars, stages)
        with listening(live.work):
            yield live
