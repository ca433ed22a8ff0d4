"""Latency as trtexec defines it: warm-up, duration, percentiles; several engines interleaved."""

from __future__ import annotations

import math
import time
from typing import Any

from . import sysfs
from .backend import Session
from .power import Meter
from .output import Output

PARTS = ("wall_ms", "gpu_ms", "h2d_ms", "d2h_ms", "enqueue_ms", "latency_ms")
_WARM_RUNS = 10
_SPREAD_LIMIT = 0.05
_CLOCK_TOLERANCE = 0.02
_HOST_BOUND = 0.8  # trtexec's limit: enqueueing takes as long as computing
_SLOW_FIRST_RUN = 10.0


def percentile(ordered: list[float], percent: int) -> float:
    """trtexec's rule on N sorted values: index max(N - 1 - int((1 - percent / 100) * N), 0)."""
    cut = len(ordered) * (100 - percent) // 100  # whole numbers: no rounding decides the index
    return ordered[max(len(ordered) - 1 - cut, 0)]


def summary(samples: list[float]) -> dict[str, float] | None:
    """Mean, spread and percentiles of samples, in their unit; None without samples.

    The spread "cv" is of the middle 90 %, as the host counts it: rare pauses of the system do not count.
    """
    if not samples:
        return None
    ordered, count = sorted(samples), len(samples)
    mean = math.fsum(ordered) / count
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    calm = ordered[count // 20 : count - count // 20]
    usual = math.fsum(calm) / len(calm)
    deviation = math.sqrt(math.fsum((value - usual) ** 2 for value in calm) / len(calm))
    return {
        "min": ordered[0],
        "mean": mean,
        "median": middle,
        **{f"p{percent}": percentile(ordered, percent) for percent in (90, 95, 99)},
        "max": ordered[-1],
        "cv": deviation / usual if usual > 0 else 0.0,
    }


def quick_mean(samples: list[float]) -> float:
    """Return the mean of the fastest quarter: other load only slows a run down."""
    fastest = sorted(samples)[: math.ceil(len(samples) / 4)]
    return math.fsum(fastest) / len(fastest)


class Subject:
    """One engine and its measurements."""

    def __init__(self, engine: str, session: Session, record: dict[str, Any], batch: int) -> None:
        self.engine, self.session, self.record, self.batch = engine, session, record, batch
        self.samples: dict[str, list[float]] = {part: [] for part in PARTS}
        self.powers_mw: list[float] = []
        self.power_source: str | None = None
        self.first_ms = 0.0
        self.busy_s = 0.0

    def run(self, warm_up_s: float, duration_s: float, iterations: int, tree: sysfs.Tree) -> None:
        """One round: warm up, then step until both the duration and the iterations are reached."""
        started_s, runs = time.perf_counter(), 0
        while time.perf_counter() - started_s < warm_up_s or runs < _WARM_RUNS:
            times = self.session.step()
            self.first_ms = self.first_ms or times["wall_ms"]
            runs += 1
        meter = Meter(tree)
        with meter:
            started_s, runs = time.perf_counter(), 0
            while time.perf_counter() - started_s < duration_s or runs < iterations:
                for part, value in self.session.step().items():
                    self.samples[part].append(value)
                runs += 1
            self.busy_s += time.perf_counter() - started_s
        if meter.mean_mw is not None:
            self.powers_mw.append(meter.mean_mw)
            self.power_source = meter.source

    def result(self, keep_samples: bool, transfers: bool) -> dict[str, Any]:
        """The fields of one entry of "timings"."""
        runs = len(self.samples["wall_ms"])
        power = sum(self.powers_mw) / len(self.powers_mw) if self.powers_mw else None
        on_gpu = bool(self.samples["gpu_ms"])
        copies = "copies to and from the device" if transfers else "no copies"
        parts = {part: summary(values) for part, values in self.samples.items()}
        found = {
            "engine": self.engine,
            "backend": self.record["backend"],
            "precision": self.record["precision"],
            "batch": self.batch,
            "runs": runs,
            **parts,
            "first_run_ms": self.first_ms,
            "throughput_ips": runs * self.batch / self.busy_s,
            "included": f"inference, {copies}" if on_gpu else "inference call; input is in place",
            "power_mw": power,
            "power_of": self.power_source,
            "energy_mj": None if power is None else power * self.busy_s / runs / self.batch,
            "marks": self._marks(parts),
        }
        if keep_samples:
            found["samples_ms"] = self.samples["gpu_ms" if on_gpu else "wall_ms"]
        return found

    def _marks(self, parts: dict[str, Any]) -> list[str]:
        marks = []
        main = parts["gpu_ms"] or parts["wall_ms"]
        if main["cv"] > _SPREAD_LIMIT:
            marks.append(f"spread is {main['cv']:.0%} of the mean: lock the clocks, stop other programs")
        if parts["gpu_ms"] and parts["enqueue_ms"]["median"] > _HOST_BOUND * parts["gpu_ms"]["median"]:
            marks.append("the host cannot enqueue as fast as the GPU computes: use --cuda-graph")
        if self.first_ms > _SLOW_FIRST_RUN * main["median"]:
            marks.append("the first run was slow (kernels load lazily): warm up before serving")
        return marks


def in_turn(subjects: list[Any], turn: int) -> list[Any]:
    """Return the order of a turn: A B C, C B A, A B C, ..., so that thermal drift affects all alike."""
    return subjects if turn % 2 == 0 else subjects[::-1]


def measure(
    subjects: list[Subject], rounds: int, warm_up_s: float, duration_s: float, iterations: int,
    tree: sysfs.Tree, output: Output,
) -> dict[str, Any]:  # fmt: skip
    """Time the subjects in turns, see `in_turn`.

    Returns:
        "before" and "after", "throttled" and "marks" of the whole measurement.
    """
    before = sysfs.snapshot(tree)
    for number in range(rounds):
        for subject in in_turn(subjects, number):
            output.progress("time", engine=subject.engine, round=number + 1, rounds=rounds)
            subject.run(warm_up_s, duration_s / rounds, -(-iterations // rounds), tree)
    after = sysfs.snapshot(tree)
    throttled, marks = compare_snapshots(before, after)
    return {"before": before, "after": after, "throttled": throttled, "marks": marks}


def compare_snapshots(before: dict[str, Any], after: dict[str, Any]) -> tuple[bool | None, list[str]]:
    """Compare two snapshots: throttling, and all reasons not to trust the figures.

    Returns:
        True if throttled, None without counters; the reasons.
    """
    marks = []
    counters = {name: (before["throttle_counters"].get(name), now) for name, now in after["throttle_counters"].items()}
    throttled: bool | None = False if counters else None
    for name, (old, now) in counters.items():
        if old is not None and now > old:
            throttled = True
            marks.append(f"throttled: {name} went from {old} to {now}")
        elif now > 0 and ("alarm" in name or "cooling_device" in name):
            throttled = True
            marks.append(f"throttled: {name} is at {now}")
    old_gpu, new_gpu = before["gpu_clock"], after["gpu_clock"]
    if old_gpu and new_gpu:
        for key in ("min_hz", "max_hz"):
            if old_gpu[key] != new_gpu[key]:
                marks.append(f"GPU {key} changed from {old_gpu[key]} to {new_gpu[key]}")
        if new_gpu["locked"] is False:
            marks.append("GPU clocks are not locked: sudo jetson_clocks --store FILE, then sudo jetson_clocks")
        now, top = new_gpu["current_hz"], new_gpu["max_hz"]
        if new_gpu["locked"] and now is not None and now < top * (1 - _CLOCK_TOLERANCE):
            throttled = True
            marks.append(f"throttled: the GPU runs at {now} Hz below its locked {top} Hz")
    if before["power_mode"] != after["power_mode"]:
        marks.append(f"the power mode changed from {before['power_mode']} to {after['power_mode']}")
    return throttled, marks
