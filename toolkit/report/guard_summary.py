"""Summarize a guard for the report: promises, and what the evaluation images and the timing show."""

from __future__ import annotations

from dataclasses import replace

from edgeship.toolkit.core.guard_results import GuardSummary
from edgeship.toolkit.core.results import LatencySummary, Variant
from edgeship.toolkit.core.statistics import rate_interval
from edgeship.toolkit.report import formatting
from edgeship.toolkit.runs.guarded import Guard, GuardedRun
from edgeship.toolkit.runs.measured import LatencyRecord

SIGNIFICANT = 0.001  # p of two equal shares that run again


def with_guard(
    row: Variant,
    guard: Guard,
    run: GuardedRun | None,
    timing: LatencyRecord | None,
    int8: LatencySummary | None,
) -> Variant:
    """Add the guard to a row, with its warnings.

    Args:
        row: The row.
        guard: Threshold and promises.
        run: What it did on the evaluation images; None: not evaluated.
        timing: Its timing; None: not timed.
        int8: Latency of INT8; None: not timed.
    """
    own = row.latency_ms
    summary = GuardSummary(
        reference=guard.reference,
        threshold=guard.threshold,
        max_flips=guard.max_flips,
        bound=guard.bound,
        bound95=guard.bound95,
        images=guard.images,
        source=guard.source,
        own_images=guard.own_images,
        simulated=guard.simulated,
        promised_rerun_share=guard.rerun_share,
        evaluated=run.images if run else None,
        rerun=run.rerun if run else None,
        flips=run.flips if run else None,
        int8_flips=run.int8_flips if run else None,
        flips_ci95=rate_interval(run.flips, run.images) if run else None,
        timed_rerun_share=timing.rerun_share if timing else None,
        mean_ratio=own.mean / int8.mean if own and int8 and int8.mean > 0 else None,
    )
    return replace(row, guard=summary, warnings=(*row.warnings, *_warnings(summary)))


def sentence(guard: GuardSummary) -> str:
    """Return the promise and the observation as text."""
    promise = (
        f"at most {share(guard.bound)} of images like the {formatting.whole(guard.images)} of {guard.source} "
        f"are expected to have another class than FP32 (this draw: {share(guard.bound95)} at 95 % confidence)"
    )
    if guard.evaluated is None or guard.rerun is None or guard.flips_ci95 is None:
        return f"{promise}; not evaluated"
    seen = (
        f"{guard.flips} of {formatting.images(guard.evaluated)} had (95 %: {share(guard.flips_ci95[0])} to "
        f"{share(guard.flips_ci95[1])}; INT8 alone {guard.int8_flips}), and "
        f"{formatting.percent(guard.rerun / guard.evaluated)} ran twice"
    )
    ratio = f"; mean latency {guard.mean_ratio:.3f} of INT8's" if guard.mean_ratio is not None else ""
    return f"{promise}; of the evaluation images {seen}{ratio}"


def share(value: float) -> str:
    """Format a small share: 0.01 %."""
    return f"{100 * value:.2g} %"


def _warnings(guard: GuardSummary) -> list[str]:
    """Return why a promise may not hold."""
    lines = []
    if not guard.own_images:
        lines.append(
            f"the guard's threshold is set on images of the calibration source ({guard.source}); if the "
            "network was trained on them, its margins there are larger than on the traffic, and the bound "
            "does not hold for that: set guard.source to other images"
        )
    if guard.simulated:
        lines.append("the guard's threshold is set in a simulation; its bound is assumed for the device")
    if guard.evaluated and guard.rerun is not None and _differs(guard, guard.rerun, guard.evaluated):
        lines.append(
            f"{formatting.percent(guard.rerun / guard.evaluated)} of the evaluation images ran twice, of the "
            f"images of the threshold {formatting.percent(guard.promised_rerun_share)}: they are of another "
            "kind, and the bound does not hold for the evaluation images"
        )
    return lines


def _differs(guard: GuardSummary, rerun: int, evaluated: int) -> bool:
    """Return True if two shares differ significantly: Fisher's exact test."""
    from scipy import stats

    promised = round(guard.promised_rerun_share * guard.images)
    table = [[rerun, evaluated - rerun], [promised, guard.images - promised]]
    return bool(stats.fisher_exact(table).pvalue < SIGNIFICANT)
