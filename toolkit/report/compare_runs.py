"""Comparison of runs with the first run, with significance of the differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.quant import IntArray
from edgeship.toolkit.core.results import LatencySummary, RunReport, Variant
from edgeship.toolkit.core.tensors import read_size, size_text
from edgeship.toolkit.report import formatting
from edgeship.toolkit.report.paired_analysis import StoredPredictions, load_predictions
from edgeship.toolkit.report.quantization_charts import knee_of
from edgeship.toolkit.report.timing import disturbances


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference between a variant of a run and the same variant of the first run.

    Attributes:
        run: Name of the run.
        variant: Name of the variant.
        drop_pp: Top-1 of the first run minus that of this run, in percentage points; positive is a loss. None
            if one of the two is absent.
        drop_ci95_pp: 95 % interval of the drop.
        paired: True if both runs were evaluated on the same images and are compared image by image.
        p: McNemar's exact p-value, if paired.
        drop_significant: True if the interval excludes zero.
        latency_ratio: Median latency of the first run over that of this run; above 1 is faster.
        latency_significant: True if the 95 % intervals of the medians do not overlap; None if the conditions
            of the two measurements differ.
        size_ratio: Size over the size in the first run.
        remarks: Reasons why the two are not fully comparable.
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
    """A run to compare: name, report and stored predictions."""

    name: str
    report: RunReport
    predictions: StoredPredictions | None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read the folder of a run.

        Raises:
            DataError: The folder has no report of this schema.
        """
        from edgeship.toolkit.report.render import find, load

        return cls(str(folder), load(folder), load_predictions(find(folder).parent))


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
            remarks.append(
                "predictions were not kept: unpaired, wider interval"
                if same
                else "different images: unpaired"
            )
    if base.kind != other.kind:
        remarks.append(f"accuracy {base.kind} vs {other.kind}")
    obstacle = _obstacle(base.latency_ms, other.latency_ms) or _disturbed(first.report, run.report)
    sizes = [each.report.model.get("input_px") for each in (first, run)]
    if None not in sizes and sizes[0] != sizes[1]:
        first_px, px = (size_text(read_size(size)) for size in sizes)
        remarks.append(f"input {first_px} vs {px} px")
    ratio = distinct = None
    if base.latency_ms and other.latency_ms:
        ratio = base.latency_ms.p50 / other.latency_ms.p50
        a, b = base.latency_ms.p50_ci95, other.latency_ms.p50_ci95
        if obstacle:
            remarks.append(obstacle)
        elif a and b:
            distinct = a[1] < b[0] or b[1] < a[0]
    return Difference(
        run=run.name,
        variant=other.name,
        drop_pp=drop,
        drop_ci95_pp=interval,
        paired=paired,
        p=p,
        drop_significant=None if interval is None else not interval[0] <= 0 <= interval[1],
        latency_ratio=ratio,
        latency_significant=distinct,
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
    """Return per-image correctness of both variants; None if the images are not the same."""
    digest = first.report.data.get("eval_digest")
    if (
        not digest
        or digest != run.report.data.get("eval_digest")
        or first.predictions is None
        or run.predictions is None
    ):
        return None
    labels: IntArray = first.predictions.labels
    was, now = first.predictions.first.get(base.name), run.predictions.first.get(other.name)
    if was is None or now is None or not len(labels) == len(was) == len(now):
        return None
    labelled = labels >= 0
    return ((was == labels)[labelled], (now == labels)[labelled]) if labelled.any() else None


def _obstacle(a: LatencySummary | None, b: LatencySummary | None) -> str:
    """Return why two latencies are not comparable; empty if they are."""
    if a is None or b is None:
        return ""
    if a.measured_on != b.measured_on or a.measured_on is None:
        return f"latency on {a.measured_on or 'unknown device'} vs {b.measured_on or 'unknown device'}"
    if (a.batch, a.threads) != (b.batch, b.threads):
        return "latency with different batch or threads"
    return ""


def _disturbed(a: RunReport, b: RunReport) -> str:
    """Return a remark if other work disturbed the timing of either run; else empty."""
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
# Columns to drop from a table that is too wide, in order.
EXPENDABLE = ("size", "p50", "accuracy", "speed-up", "speed", "top-1")


def table(runs: Sequence[Run], differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Return the table rows, with columns COLUMNS: by variant, the first run first."""
    by_variant = {(d.run, d.variant): d for d in differences}
    names = dict.fromkeys(v.name for run in runs for v in run.report.variants)
    return [
        _row(run, v, by_variant.get((run.name, v.name)) if run is not runs[0] else None)
        for name in names
        for run in runs
        for v in run.report.variants
        if v.name == name
    ]


def _row(run: Run, v: Variant, d: Difference | None) -> tuple[str, ...]:
    drop = accuracy = ratio = speed = ""
    if d is not None and d.drop_pp is not None and d.drop_ci95_pp is not None:
        drop = formatting.points(d.drop_pp, d.drop_ci95_pp)
        accuracy = "significant" if d.drop_significant else "not significant"
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


def differing_options(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Return recipe option -> its value in every run, of the options that are not the same in all.

    A run without the option has the value "". A report may have only the name of its recipe; then there are
    no options to compare.
    """
    recipes = [dict(formatting.flat_options(run.report.recipe)) for run in runs]
    if not all(recipes):
        return {}
    names = dict.fromkeys(name for recipe in recipes for name in recipe if name != "name")
    values = {name: tuple(recipe.get(name, "") for recipe in recipes) for name in names}
    return {name: each for name, each in values.items() if len(set(each)) > 1}


def options_table(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return the options that differ as rows, the first of headings; empty if there are none."""
    rows = [(name, *values) for name, values in differing_options(runs).items()]
    return [("option", *(run.name for run in runs)), *rows] if rows else []


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of headings, as a Markdown table."""
    ruled = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in ruled)


def markdown(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    """Return the comparison, and the options that differ, as Markdown tables."""
    lines = markdown_table([COLUMNS, *table(runs, differences)])
    options = options_table(runs)
    if options:
        lines = f"{markdown_table(options)}\n{lines}"
    return f"{lines}\nDrops and speed-ups are relative to {runs[0].name}; a positive drop is a loss.\n"


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One INT8 network of some runs: accuracy and latency, both against networks of the same run.

    Attributes:
        run: Name of the run; "dense" for the network that is not pruned.
        variant: The row of its report.
        speedup_dense: Median latency of the dense network in INT8 over this one's; None if one is absent.
        speedup_fp32: The same for the dense network in FP32.
        knee: True at the point farthest above the line between the ends of the frontier.
    """

    run: str
    variant: Variant
    speedup_dense: float | None
    speedup_fp32: float | None
    knee: bool = False


FRONTIER = ("run", "MACs", "top-1", "drop [95 %]", "agreement", "INT8", "speed-up over INT8",
            "speed-up over FP32", "remarks")  # fmt: skip


def frontier(runs: Sequence[Run], target: str) -> list[FrontierPoint]:
    """Return accuracy against latency of the dense and the pruned INT8 networks of runs, fastest first."""
    points = []
    for run in runs:
        rows = {v.name: v for v in run.report.variants}
        int8, fp32 = rows[f"{target}-int8"], rows[f"{target}-fp32"]
        pruned = rows.get(f"{target}-int8-pruned")
        for name, v in (("dense", int8), (run.name, pruned)):
            if v is not None and (name != "dense" or run is runs[0]):
                points.append(FrontierPoint(name, v, _speedup(int8, v), _speedup(fp32, v)))
    timed = [p for p in points if p.variant.latency_ms]
    timed.sort(key=lambda p: 1 / (p.speedup_dense or 1))
    accuracies = [p.variant.agreement if p.variant.top1 is None else p.variant.top1 for p in timed]
    place = 0
    if len(timed) > 2 and None not in accuracies:
        place = knee_of([1 / (p.speedup_dense or 1) for p in timed], [a or 0.0 for a in accuracies])
    if 0 < place < len(timed) - 1:  # a straight frontier has no knee
        timed[place] = replace(timed[place], knee=True)
    return [*timed, *(p for p in points if not p.variant.latency_ms)]


def frontier_row(point: FrontierPoint) -> tuple[str, ...]:
    """Return the table row of a point, with columns FRONTIER."""
    v = point.variant
    return (
        point.run,
        formatting.count(v.macs),
        formatting.percent(v.top1),
        formatting.points(v.drop_pp, v.drop_ci95_pp),
        formatting.percent(v.agreement),
        formatting.milliseconds(v.latency_ms.p50 if v.latency_ms else None),
        formatting.times(point.speedup_dense),
        formatting.times(point.speedup_fp32),
        "knee" if point.knee else "",
    )


def _speedup(base: Variant, other: Variant) -> float | None:
    return base.latency_ms.p50 / other.latency_ms.p50 if base.latency_ms and other.latency_ms else None
