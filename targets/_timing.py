"""Latency and throughput: interleaved, in alternating order, by one clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from targets import Session
from toolkit.core.progress import tell
from toolkit.core.quant import FloatArray

NOISY_CV = 0.05  # coefficient of variation above which a latency is called noisy
MIN_RUNS = 10


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    warmup_s: float = 0.2,
    duration_s: float | None = None,
    count: int | None = None,
) -> dict[str, tuple[float, ...]]:
    """Time several runs against each other: A B C, C B A, A B C, ... in one process.

    What the machine does meanwhile (clocks, heat, neighbours) then falls on all of them alike, and the
    alternating order takes away the advantage of following a run that left the cache warm.

    Args:
        runs: Name -> one inference.
        warmup_s: Seconds of untimed rounds before, at least two rounds.
        duration_s: Seconds of timed rounds for each run on average, at least `MIN_RUNS` rounds.
        count: Rounds, instead of a duration.

    Returns:
        Name -> latency of every timed run in ms, in order; all equally many.
    """
    if (duration_s is None) == (count is None):
        raise ValueError("give either duration_s or count")
    names = list(runs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    _rounds(runs, names, warmup_s * len(names), 2)
    if count is not None:
        _rounds(runs, names, 0.0, count, samples)
    elif duration_s is not None:
        _rounds(runs, names, duration_s * len(names), MIN_RUNS, samples)
    return {name: tuple(values) for name, values in samples.items()}


def variation(samples_ms: Sequence[float]) -> float:
    """Coefficient of variation of the middle 90 % of samples: standard deviation over mean.

    A rare pause of the system says nothing about the run, so 5 % at either end are left out.
    """
    ordered = sorted(samples_ms)
    cut = len(ordered) // 20
    middle = ordered[cut : len(ordered) - cut]
    return statistics.pstdev(middle) / statistics.fmean(middle)


def noise_warning(samples_ms: Sequence[float]) -> str:
    """What to say about samples that scatter too much to compare; empty when they do not."""
    spread = variation(samples_ms)
    if spread <= NOISY_CV:
        return ""
    return (
        f"noisy: latency varies by {100 * spread:.0f} % (limit {100 * NOISY_CV:.0f} %); is the machine busy?"
    )


def loop_ips(session: Session, images: FloatArray, duration_s: float) -> float:
    """Images a second of one session that is given one batch after the other."""
    session.infer(images)
    count, seconds = count_until(lambda: session.infer(images), duration_s)
    return count * len(images) / seconds


def count_until(
    start: Callable[[], object], duration_s: float, finish: Callable[[], object] | None = None
) -> tuple[int, float]:
    """Call `start` for `duration_s` seconds, then `finish`; how many calls, and all seconds they took."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < duration_s or count == 0:
        start()
        count += 1
    if finish is not None:
        finish()
    return count, time.perf_counter() - began


def _rounds(
    runs: Mapping[str, Callable[[], object]],
    names: list[str],
    seconds: float,
    least: int,
    samples: dict[str, list[float]] | None = None,
) -> None:
    began, done = time.perf_counter(), 0
    while done < least or time.perf_counter() - began < seconds:
        for name in names if done % 2 == 0 else reversed(names):
            before = time.perf_counter_ns()
            runs[name]()
            elapsed_ms = (time.perf_counter_ns() - before) / 1e6
            if samples is not None:
                samples[name].append(elapsed_ms)
        done += 1
        if samples is not None:
            tell("timing", done, least if seconds == 0 else None)
