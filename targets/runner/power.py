"""Mean power of a run: board rails on a Jetson, the package's energy counter on Intel and AMD."""

from __future__ import annotations

import threading
import time
from typing import Any

from . import facts, sysfs

_EVERY_S = 0.1
_SHORTEST_S = 1.0  # the sensors average over their own window: a shorter run has no power


class Meter:
    """Measure power in a context: `mean_mw` and `source` are set at its end, None without a reading."""

    def __init__(self, tree: sysfs.Tree) -> None:
        self._tree = tree
        self._samples: list[tuple[float, int]] = []  # seconds, mW
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._counters: dict[str, int] = {}
        self.mean_mw: float | None = None
        self.source: str | None = None

    def __enter__(self) -> Meter:
        self._started_s = time.perf_counter()
        if facts.board_power(sysfs.rails(self._tree)):
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        else:
            self._counters = self._energies()
        return self

    def __exit__(self, *_: Any) -> None:
        elapsed_s = time.perf_counter() - self._started_s
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
        if elapsed_s < _SHORTEST_S:
            return
        if len(self._samples) > 1:
            self.mean_mw = _mean(self._samples)
        elif self._counters:
            used_uj = self._used(self._energies())
            self.mean_mw = None if used_uj is None else used_uj / elapsed_s / 1000
            self.source = "rapl package"

    def _watch(self) -> None:
        while not self._stop.is_set():
            total = facts.board_power(sysfs.rails(self._tree))
            if total and self.source in (None, total[1]):  # a rail that cannot be read once makes another sum
                self._samples.append((time.perf_counter(), total[0]))
                self.source = total[1]
            self._stop.wait(_EVERY_S)

    def _energies(self) -> dict[str, int]:
        zones = self._tree.find("/sys/class/powercap/intel-rapl:[0-9]")  # packages; sub-zones have a second number
        counts = {zone: self._tree.number(zone + "/energy_uj") for zone in zones}
        return {zone: count for zone, count in counts.items() if count is not None}

    def _used(self, after: dict[str, int]) -> int | None:
        used = 0
        for zone, before in self._counters.items():
            if zone not in after:
                return None
            step = after[zone] - before
            if step < 0:  # the counter wrapped
                limit = self._tree.number(zone + "/max_energy_range_uj")
                if limit is None:
                    return None
                step += limit
            used += step
        return used


def _mean(samples: list[tuple[float, int]]) -> float:
    """Return the mean of samples at uneven times, by the trapezoid rule."""
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(samples, samples[1:]))
    return area / (samples[-1][0] - samples[0][0])
