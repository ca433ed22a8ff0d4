"""CPU load during a measurement: other processes, hypervisor steal, thermal throttling."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

BUSY = ("user", "nice", "system", "irq", "softirq")
FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # of /proc/stat, in ticks


@dataclass(frozen=True, slots=True)
class Activity:
    """Means over the measurement; None: unknown.

    Attributes:
        other_share: Share of CPU time of other processes.
        stolen_share: Share of CPU time that the hypervisor gave to other guests.
        throttled: True if the processor was throttled for heat.
    """

    other_share: float | None
    stolen_share: float | None
    throttled: bool | None


class Watch:
    """Context that measures; the result is `activity`."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Read the system files below `root`."""
        self._root = root

    def __enter__(self) -> Watch:
        """Begin."""
        self._began_s, self._own_s = time.monotonic(), _own_seconds()
        self._ticks, self._throttles = self._processors(), self._throttle_count()
        return self

    def __exit__(self, *_: object) -> None:
        """Read the counters again."""
        elapsed_s = max(time.monotonic() - self._began_s, 1e-9)
        own_s, ticks, throttles = _own_seconds() - self._own_s, self._processors(), self._throttle_count()
        tick_s = 1 / os.sysconf("SC_CLK_TCK")
        whole_s = elapsed_s * (os.cpu_count() or 1)
        other = stolen = None
        if ticks and self._ticks:
            spent_s = {name: tick_s * (ticks[name] - self._ticks[name]) for name in FIELDS}
            other = max(sum(spent_s[name] for name in BUSY) - own_s, 0.0) / whole_s
            stolen = max(spent_s["steal"], 0.0) / whole_s
        known = throttles is not None and self._throttles is not None
        self.activity = Activity(other, stolen, throttles != self._throttles if known else None)

    def _processors(self) -> dict[str, int]:
        """Ticks of all processors since the start; empty where unknown."""
        try:
            words = (self._root / "proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        except OSError:
            return {}
        counts = dict(zip(FIELDS, map(int, words[1:]), strict=False))
        return counts if len(counts) == len(FIELDS) else {}

    def _throttle_count(self) -> int | None:
        files = self._root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
        counts = [int(file.read_text(encoding="ascii")) for file in files]
        return sum(counts) if counts else None


def _own_seconds() -> float:
    """Processor time of this process and of the children it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
