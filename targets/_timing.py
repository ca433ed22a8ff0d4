"""Latency and throughput, measured in turns."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence

from edgeship.targets import Session
from edgeship.targets.runner.timing import in_turn
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.statistics import NOISY, variation

MIN_RUNS = 10
TURN_S = 0.02  # timed seconds of a turn, for the quickest run
LEAD_S = 0.005  # untimed seconds at the start of a turn
TURN_RUNS = 4  # least timed runs of a turn, so that the untimed ones cost a fifth of a long run at most
TURNS = 4  # into which a given number of runs is split at least


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    warmup_s: float = 0.2,
    duration_s: float | None = None,
    count: int | None = None,
    clock_ns: Callable[[], int] | None = None,
) -> dict[str, tuple[float, ...]]:
    """Time several runs in turns: AAA BBB CCC, CCC BBB AAA, ... in one process.

    Drift of clocks, heat and load thus affects all alike. A turn begins with untimed runs, until the caches
    hold the weights (ResNet-18 in INT8, 32 pixels, after an FP32 run: 0.7 ms, a few runs later 0.2 ms). A
    preempted run is repeated, up to as many times as there are runs: on a busy machine long runs would be
    preempted more often than short ones.

    Args:
        runs: Name -> one inference.
        warmup_s: Seconds of untimed runs before, at least two.
        duration_s: Seconds of turns for each run on average, at least `MIN_RUNS` timed runs.
        count: Timed runs of each, instead of a duration.
        clock_ns: Clock of the timed runs in nanoseconds; None: wall time.

    Returns:
        Name -> latency of every timed run in ms, in order; all equally many.
    """
    if (duration_s is None) == (count is None):
        raise ValueError("give either duration_s or count")
    if not runs:
        return {}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    usual_s = _warm(runs, warmup_s)
    lead = {name: math.ceil(LEAD_S / seconds) for name, seconds in usual_s.items()}
    if count is not None:
        length, least, seconds = math.ceil(count / TURNS), count, 0.0
    else:
        length, least, seconds = TURN_RUNS, MIN_RUNS, (duration_s or 0.0) * len(runs)
        length = max(length, math.ceil(min(TURN_S, seconds / TURNS) / min(usual_s.values())))
    began, done, turns = time.perf_counter(), 0, 0
    while (early := time.perf_counter() - began < seconds) or done < least:
        timed = length if early else min(length, least - done)
        for name in in_turn(list(runs), turns):
            for _ in range(lead[name]):
                runs[name]()
            samples[name] += _undisturbed_ms(runs[name], timed, clock_ns or time.perf_counter_ns)
        done, turns = done + timed, turns + 1
        report_progress("timing", done, count)
    return {name: tuple(values) for name, values in samples.items()}


def noise_warning(samples_ms: Sequence[float]) -> str:
    """Return a warning if the samples vary too much to compare, else an empty text."""
    spread = variation(samples_ms)
    if spread <= NOISY:
        return ""
    return f"noisy: latency varies by {100 * spread:.0f} % (limit {100 * NOISY:.0f} %); is the machine busy?"


def loop_ips(session: Session, images: FloatArray | PixelArray, duration_s: float) -> float:
    """Return the images per second of a session, one batch after the other."""
    session.infer(images)
    count, seconds = count_until(lambda: session.infer(images), duration_s)
    return count * len(images) / seconds


def count_until(
    start: Callable[[], object], duration_s: float, finish: Callable[[], object] | None = None
) -> tuple[int, float]:
    """Call `start` for `duration_s` seconds, then `finish`; return the number of calls and the seconds."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < duration_s or count == 0:
        start()
        count += 1
    if finish is not None:
        finish()
    return count, time.perf_counter() - began


def _warm(runs: Mapping[str, Callable[[], object]], warmup_s: float) -> dict[str, float]:
    """Run each for `warmup_s` seconds, at least twice; return the seconds of its fastest run."""
    quickest = {}
    for name, run in runs.items():
        began, taken = time.perf_counter(), [_seconds(run, time.perf_counter_ns) for _ in range(2)]
        while time.perf_counter() - began < warmup_s:
            taken.append(_seconds(run, time.perf_counter_ns))
        quickest[name] = max(min(taken), 1e-9)  # a clock may not tick in a run that does nothing
    return quickest


def _undisturbed_ms(run: Callable[[], object], count: int, clock_ns: Callable[[], int]) -> list[float]:
    samples: list[float] = []
    spare = count
    while len(samples) < count:
        pauses = _pauses()
        seconds = _seconds(run, clock_ns)
        if spare and _pauses() != pauses:
            spare -= 1
        else:
            samples.append(1000 * seconds)
    return samples


def _pauses() -> int:
    """Return the number of preemptions of this process (involuntary context switches)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _seconds(run: Callable[[], object], clock_ns: Callable[[], int]) -> float:
    before = clock_ns()
    run()
    return (clock_ns() - before) / 1e9
