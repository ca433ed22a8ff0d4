"""Time budget of pruning and distillation, counted over interruptions."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.artifact import read_json, write_json

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def read_seconds(value: Any) -> float:
    """Return a time in seconds: a number of them, or a text such as 90s, 20min or 1.5h.

    Raises:
        ValueError: The value is neither.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(value)
    return float(match[1]) * UNITS[match[2]]


def in_words(seconds: float) -> str:
    """Return a time as an option takes it, rounded up: 90s, 20min."""
    return f"{int(-(-seconds // 1))}s" if seconds < 120 else f"{int(-(-seconds // 60))}min"


class TimeBudget:
    """Elapsed and remaining seconds of a piece of work; a stopped process does not count."""

    def __init__(
        self,
        limit_s: float,
        file: Path | None = None,
        *,
        used_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start, or continue after an interruption.

        Args:
            limit_s: The budget in seconds.
            file: JSON file of the elapsed seconds, read at the start and written by `save`.
            used_s: Seconds that earlier work took, where the file does not exist.
            now: Clock in seconds.
        """
        self.limit_s, self._file, self._now = limit_s, file, now
        stored = read_json(file) if file is not None and file.is_file() else {}
        self._phases: dict[str, float] = stored.get("phases", {})
        self._start = now() - float(stored.get("elapsed_s", used_s))

    @property
    def elapsed_s(self) -> float:
        """Return the seconds so far."""
        return self._now() - self._start

    @property
    def left_s(self) -> float:
        """Return the remaining seconds; negative beyond the budget."""
        return self.limit_s - self.elapsed_s

    def phase_start(self, name: str) -> float:
        """Return the elapsed seconds at which a phase began: now, unless an earlier process began it."""
        start = self._phases.setdefault(name, self.elapsed_s)
        self.save()
        return start

    def save(self) -> None:
        """Write the elapsed seconds, for a process that continues."""
        if self._file is not None:
            write_json(self._file, {"elapsed_s": self.elapsed_s, "phases": self._phases})

    def restart(self) -> None:
        """Forget the elapsed seconds of an exhausted budget: the next process has all of it."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
