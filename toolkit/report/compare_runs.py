"""Two or more runs side by side: what differs from the first, and whether it can be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.quant import IntArray
from edgeship.toolkit.core.results import LatencySummary, RunReport, Variant
from edgeship.toolkit.core.tensors import read_size, size_text
from edgeship.toolkit.report import formatting
from edgeship.toolkit.report.paired_analysis import Kept, kept
from edgeship.toolkit.report.timing import disturbances


@dataclass(frozen=True, slots=True)
class Difference:
    """One variant of one run against the same variant of the first run.

    Attributes:
        run: Name of the run.
        variant: Name of the variant.
        drop_pp: Top-1 of the first run minus this one's, in percentage points: positive is a loss; None where
            either is absent.
        drop_ci95_pp: Its 95 % interval.
        paired: Whether both runs saw the same images and are compared image by image.
        p: McNemar's exact p-value where paired.
        drop_significant: Whether the interval leaves out zero.
        latency_ratio: Median latency of the first run over this one's: above 1 is faster.
        latency_significant: Whether the 95 % intervals of the medians lie apart; None where the two were
            not measured alike.
        size_ratio: Size over the first run's.
        remarks: What keeps the two from being compared fairly.
    """

    run: str
    variant: str
    drop_pp: float | None
    drop_ci95_pp: tuple[float, float] | None
    paired: bool
    p: float | None
    drop_significant: bool | None
    latency_ratio: float | None
    latency_significant: bool | None
    size_ratio: float | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A run to compare: its name, its report, and the predictions that were kept beside it."""

    name: str
    report: RunReport
    kept: Kept | None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run's folder.

        Raises:
            DataError: It holds no report of this schema.
        """
        from edgeship.toolkit.report.render import find, load

        return cls(str(folder), load(folder), kept(find(folder).parent))


def compare(runs: Sequence[Run]) -> tuple[Difference, ...]:
    """Compare every run with the first, variant by variant.

    Args:
        runs: Two or more.
    """
    first = runs[0]
    base = {v.name: v for v in first.report.variants}
    return tuple(
        _difference(first, base[v.name], run, v)
        for run in runs[1:]
        for v in run.report.variants
        if v.name in base
    )


def _difference(first: Run, base: Variant, run: Run, other: Variant) -> Difference:
    remarks = []
    drop = interval = p = None
    paired = False
    if base.top1 is not None and other.top1 is not None:
        outcomes = _outcomes(first, base, run, other)
        if outcomes is not None:
            paired = True
            drop, interval = statistics.paired_drop(*outcomes)
            was, now = outcomes
            p = statistics.mcnemar(int((was & ~now).sum()), int((~was & now).sum()))
        elif base.images and other.images:
            drop, interval = statistics.unpaired_difference(
                round(base.top1 * base.images), base.images, round(other.top1 * other.images), other.images
            )
            same = first.report.data.get("eval_digest") == run.report.data.get("eval_digest")
            remarks.append("predictions were not kept, so the interval is wider" if same else "other images")
    if base.kind != other.kind:
        remarks.append(f"accuracy {base.kind} against {other.kind}")
    unlike = _unlike(base.latency_ms, other.latency_ms) or _disturbed(first.report, run.report)
    sizes = [each.report.model.get("input_px") for each in (first, run)]
    if None not in sizes and sizes[0] != sizes[1]:
        first_px, px = (size_text(read_size(size)) for size in sizes)
        remarks.append(f"input of {first_px} against {px} px")
    ratio = apart = None
    if base.latency_ms and other.latency_ms:
        ratio = base.latency_ms.p50 / other.latency_ms.p50
        a, b = base.latency_ms.p50_ci95, other.latency_ms.p50_ci95
        if unlike:
            remarks.append(unlike)
        elif a and b:
            apart = a[1] < b[0] or b[1] < a[0]
    return Difference(
        run=run.name,
        variant=other.name,
        drop_pp=drop,
        drop_ci95_pp=interval,
        paired=paired,
        p=p,
        drop_significant=None if interval is None else not interval[0] <= 0 <= interval[1],
        latency_ratio=ratio,
        latency_significant=apart,
        size_ratio=other.size_bytes / base.size_bytes
        if base.size_bytes
        and other.size_bytes
        and formatting.ships_graph(base) == formatting.ships_graph(other)
        else None,
        remarks=tuple(remarks),
    )


def _outcomes(
    first: Run, base: Variant, run: Run, other: Variant
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
    """Which images each variant gets right, where both runs saw the same ones."""
    digest = first.report.data.get("eval_digest")
    if not digest or digest != run.report.data.get("eval_digest") or first.kept is None or run.kept is None:
        return None
    labels: IntArray = first.kept.labels
    was, now = first.kept.first.get(base.name), run.kept.first.get(other.name)
    if was is None or now is None or not len(labels) == len(was) == len(now):
        return None
    known = labels >= 0
    return ((was == labels)[known], (now == labels)[known]) if known.any() else None


def _unlike(a: LatencySummary | None, b: LatencySummary | None) -> str:
    """Why two latencies may not be compared; empty when they may."""
    if a is None or b is None:
        return ""
    if a.measured_on != b.measured_on or a.measured_on is None:
        return f"latency on {a.measured_on or 'unknown'} against {b.measured_on or 'unknown'}"
    if (a.batch, a.threads) != (b.batch, b.threads):
        return "latency of other batch or threads"
    return ""


def _disturbed(a: RunReport, b: RunReport) -> str:
    """Say that other work made latencies of either run longer; empty when it did not."""
    return "timed on a busy machine" if any(disturbances(each.environment) for each in (a, b)) else ""


COLUMNS = (
    "variant",
    "run",
    "top-1",
    "drop [95 %]",
    "accuracy",
    "p50",
    "speed-up",
    "speed",
    "size",
    "remarks",
)
# Columns to leave out of a narrow table, in order.
EXPENDABLE = ("size", "p50", "accuracy", "speed-up", "speed", "top-1")


def table(runs: Sequence[Run], differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """The comparison as rows of text, under COLUMNS: variant by variant, the first run's row first."""
    found = {(d.run, d.variant): d for d in differences}
    names = dict.fromkeys(v.name for run in runs for v in run.report.variants)
    return [
        _row(run, v, found.get((run.name, v.name)) if run is not runs[0] else None)
        for name in names
        for run in runs
        for v in run.report.variants
        if v.name == name
    ]


def _row(run: Run, v: Variant, d: Difference | None) -> tuple[str, ...]:
    drop = accuracy = ratio = speed = ""
    if d is not None and d.drop_pp is not None and d.drop_ci95_pp is not None:
        drop = formatting.points(d.drop_pp, d.drop_ci95_pp)
        accuracy = "significant" if d.drop_significant else "may be chance"
    if d is not None and d.latency_ratio is not None:
        ratio = formatting.times(d.latency_ratio)
        speed = {True: "significant", False: "within noise", None: "not comparable"}[d.latency_significant]
    return (
        v.name,
        run.name,
        formatting.percent(v.top1),
        drop,
        accuracy,
        formatting.milliseconds(v.latency_ms.p50 if v.latency_ms else None),
        ratio,
        speed,
        formatting.shipped(v),
        "; ".join(d.remarks) if d is not None else "",
    )


def markdown(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    """The comparison as a Markdown table."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *table(runs, differences)]
    lines = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"{lines}\n\nDrops and speed-ups are against {runs[0].name}: a positive drop is a loss.\n"
