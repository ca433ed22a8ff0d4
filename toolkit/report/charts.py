"""Charts of accuracy and speed, and the list of all charts of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgeship.toolkit.core.results import RunReport, Variant
from edgeship.toolkit.report import formatting, quantization_charts
from edgeship.toolkit.report.chart import COLOURS, WORST, Chart, Figure, log_axis, text
from edgeship.toolkit.report.details import details

SYMBOLS = {"fp32": "circle", "fp16": "square", "int8": "diamond"}


def charts(report: RunReport) -> dict[str, Chart]:
    """Return the charts that have data, by their key in the page."""
    shown = details(report)
    drawn: dict[str, Chart | None] = {
        "tradeoff": _tradeoff(report),
        "drop": _drop(report),
        "latency": _latency(report.variants),
        "throughput": _throughput(report.variants),
        "sqnr": quantization_charts.sqnr(shown.sensitivity),
        "sensitivity": quantization_charts.sensitivity(shown.sensitivity),
        "clipping": quantization_charts.clipping(shown.quantize),
        "activations": quantization_charts.activations(shown.quantize),
        "weights": quantization_charts.weights(shown.quantize),
        "widths": quantization_charts.widths(shown.pruning),
        "refit": quantization_charts.refit(shown.pruning),
        "frontier": quantization_charts.frontier(shown.pruning, report.variants),
    }
    for variant in report.variants:
        drawn[f"classes-{variant.name}"] = _classes(variant, report.data.classes)
    for target in dict.fromkeys(v.target for v in report.variants):
        drawn[f"layers-{target}"] = _layers([v for v in report.variants if v.target == target], target)
    return {name: chart for name, chart in drawn.items() if chart is not None}


def _colour(variant: Variant) -> str:
    return COLOURS.get(variant.target, "@orange")


def _symbol(variant: Variant) -> str:
    """Return the marker symbol: hollow if the accuracy was not measured."""
    symbol = SYMBOLS.get(variant.precision, "circle") + ("-cross" if variant.pruned else "")
    return symbol if variant.kind == "measured" else f"{symbol}-open"


def _tradeoff(report: RunReport) -> Chart | None:
    shown = [v for v in report.variants if v.latency_ms and v.top1 is not None]
    if not shown:
        return None
    data = []
    timed = [v.latency_ms for v in shown if v.latency_ms]
    widest = min(1.4 * max(ms.p99 for ms in timed), 2.5 * max(ms.p50 for ms in timed))  # cut long tails
    shown.sort(key=lambda v: v.latency_ms.p50 if v.latency_ms else 0.0)
    labelled = _labels_fit(shown, widest)
    for rank, v in enumerate(shown):  # labels alternate above and below the markers
        latency, top1 = v.latency_ms, v.top1
        if latency is None or top1 is None:
            continue
        trace: Figure = {
            "type": "scatter",
            "mode": "markers+text" if labelled else "markers",
            "name": text(formatting.title(v)),
            "x": [latency.p50],
            "y": [100 * top1],
            "text": [text(formatting.title(v))],
            "textposition": "bottom right" if rank % 2 else "top right",
            "cliponaxis": False,
            "marker": {"size": 12, "color": _colour(v), "symbol": _symbol(v)},
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [max(min(latency.p99, widest) - latency.p50, 0.0)],
                "arrayminus": [0],
                "thickness": 1,
                "width": 3,
                "color": _colour(v),
            },
            "hovertemplate": f"%{{y:.2f}} % top-1<br>%{{x:.3g}} ms median<extra>{v.kind}</extra>",
        }
        if v.drop_ci95_pp and v.drop_pp is not None:
            least, most = _top1_interval(v)
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [most - 100 * top1],
                "arrayminus": [100 * top1 - least],
                "thickness": 1,
                "width": 3,
                "color": _colour(v),
            }
        data.append(trace)
    return Chart(
        "Accuracy against latency",
        "Median latency and top-1 accuracy of "
        + "; ".join(
            f"{formatting.title(v)}: {formatting.milliseconds(v.latency_ms.p50 if v.latency_ms else None)}, "
            f"{formatting.percent(v.top1)}"
            for v in shown
        ),
        data,
        {
            "xaxis": {"title": "median latency, ms (whisker to p99)", "range": [0, widest]},
            "showlegend": not labelled,
            "yaxis": {"title": "top-1, % (whiskers: 95 % of the drop)", "range": _top1_range(shown)},
            "height": 340,
        },
    )


def _top1_interval(v: Variant) -> tuple[float, float]:
    """Return the ends of a top-1 whisker in percent: the drop's interval, within 0 and 100."""
    top1, drop = 100 * (v.top1 or 0.0), v.drop_pp or 0.0
    low, high = v.drop_ci95_pp or (drop, drop)
    return max(top1 + drop - high, 0.0), min(top1 + drop - low, 100.0)


def _top1_range(shown: Sequence[Variant]) -> list[float]:
    """Return the range of the top-1 axis: all whiskers, with a margin for markers."""
    ends = [end for v in shown for end in (*_top1_interval(v), 100 * (v.top1 or 0.0))]
    room = max(0.08 * (max(ends) - min(ends)), 0.1)
    return [min(ends) - room, max(ends) + room]


def _labels_fit(shown: Sequence[Variant], widest: float) -> bool:
    """Return True if no two labels overlap in a plot of 480 x 250 pixels, with letters of 7 x 16."""
    lowest, highest = _top1_range(shown)
    height = highest - lowest
    boxes: list[tuple[float, float, float]] = []
    for rank, v in enumerate(shown):
        x = 480 * (v.latency_ms.p50 if v.latency_ms else 0.0) / widest
        y = 250 * 100 * (v.top1 or 0.0) / height + (-12 if rank % 2 else 12)
        right = x + 8 + 7 * len(formatting.title(v))
        if any(abs(y - other) < 16 and x < end and begin < right for begin, end, other in boxes):
            return False
        boxes.append((x, right, y))
    return True


def _drop(report: RunReport) -> Chart | None:
    shown = [v for v in report.variants if v.drop_pp is not None and v.drop_ci95_pp]
    if not shown:
        return None
    limit = next((gate.limit for gate in report.gates if gate.name == "max_drop_pp"), None)
    shapes = [_line(0.0, "@ink", "solid")] + ([_line(limit, "@red", "dash")] if limit is not None else [])
    notes = (
        []
        if limit is None
        else [
            {
                "x": limit,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "text": "limit",
                "font": {"color": "@red"},
            }
        ]
    )
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": text(formatting.title(v)),
            "x": [v.drop_pp],
            "y": [text(formatting.title(v))],
            "marker": {"size": 10, "color": _colour(v), "symbol": _symbol(v)},
            "error_x": {
                "type": "data",
                "symmetric": False,
                "color": _colour(v),
                "thickness": 1.5,
                "width": 4,
                "array": [v.drop_ci95_pp[1] - v.drop_pp],
                "arrayminus": [v.drop_pp - v.drop_ci95_pp[0]],
            },
            "hovertemplate": f"{formatting.points(v.drop_pp, v.drop_ci95_pp)}<extra>{v.kind}</extra>",
        }
        for v in shown
        if v.drop_ci95_pp and v.drop_pp is not None
    ]
    return Chart(
        "Top-1 drop against the reference",
        "; ".join(f"{formatting.title(v)} {formatting.points(v.drop_pp, v.drop_ci95_pp)}" for v in shown),
        data,
        {
            "xaxis": {"title": "drop, pp (whiskers: paired 95 % interval)"},
            "yaxis": {"autorange": "reversed"},
            "shapes": shapes,
            "annotations": notes,
            "height": 110 + 38 * len(shown),
        },
    )


def _line(x: float, colour: str, dash: str) -> Figure:
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": colour, "width": 1, "dash": dash},
    }


def _classes(variant: Variant, names: Sequence[str]) -> Chart | None:
    if variant.paired is None or not variant.paired.classes:
        return None
    by_drop = sorted(variant.paired.classes, key=lambda c: c.top1 - c.top1_reference)[:WORST]
    if all(c.top1 == c.top1_reference for c in variant.paired.classes):
        return None
    labels = [text(formatting.label(names, c.label)) for c in by_drop]
    drops = [100 * (c.top1_reference - c.top1) for c in by_drop]
    # Older reports have no intervals per class.
    ends = [c.drop_ci95_pp or (drop, drop) for c, drop in zip(by_drop, drops, strict=True)]
    which = f"the {WORST} largest" if len(variant.paired.classes) > WORST else "all classes"
    return Chart(
        f"Drop per class: {which}",
        f"Worst: {formatting.label(names, by_drop[0].label)}, "
        f"{formatting.points(drops[0], by_drop[0].drop_ci95_pp)}",
        [
            {
                "type": "bar",
                "orientation": "h",
                "x": drops,
                "y": labels,
                "marker": {  # grey: the interval contains zero
                    "color": ["@red" if low > 0 else "@green" if high < 0 else "@grey" for low, high in ends]
                },
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - drop for (_, high), drop in zip(ends, drops, strict=True)],
                    "arrayminus": [drop - low for (low, _), drop in zip(ends, drops, strict=True)],
                    "thickness": 1,
                    "width": 3,
                    "color": "@ink",
                },
                "customdata": [
                    f"{formatting.points(drop, c.drop_ci95_pp)} of {formatting.images(c.images)}"
                    for c, drop in zip(by_drop, drops, strict=True)
                ],
                "hovertemplate": "%{y}: %{customdata}<extra></extra>",
            }
        ],
        {
            "xaxis": {"title": "drop, pp (whiskers: 95 %; grey: not significant)"},
            "yaxis": {"autorange": "reversed", "type": "category"},
            "height": 90 + 20 * len(by_drop),
        },
    )


def _latency(variants: Iterable[Variant]) -> Chart | None:
    shown = [(v, v.latency_ms) for v in variants if v.latency_ms]
    if not shown:
        return None
    return Chart(
        "Distribution of latency",
        "; ".join(
            f"{formatting.title(v)}: median {formatting.milliseconds(ms.p50)}, "
            f"p99 {formatting.milliseconds(ms.p99)}"
            for v, ms in shown
        ),
        [
            {
                "type": "box",
                "orientation": "h",
                "name": text(formatting.title(v)),
                "x": list(ms.samples),
                "marker": {"color": _colour(v), "size": 3, "opacity": 0.5},
                "line": {"width": 1.2},
                "boxpoints": "outliers",
                "hoverinfo": "x+name",
            }
            for v, ms in shown
        ],
        {
            "xaxis": log_axis(
                "ms (logarithmic)",
                min(min(ms.samples) for _, ms in shown),
                max(max(ms.samples) for _, ms in shown),
            ),
            "yaxis": {"autorange": "reversed"},
            "height": 110 + 44 * len(shown),
        },
    )


def _throughput(variants: Iterable[Variant]) -> Chart | None:
    shown = [v for v in variants if len(v.batch_throughput) > 1]
    if not shown:
        return None
    points = {v.name: sorted((int(b), ips) for b, ips in v.batch_throughput.items()) for v in shown}
    return Chart(
        "Throughput against batch size",
        "; ".join(
            f"{formatting.title(v)}: best {formatting.whole(max(v.batch_throughput.values()))} images/s"
            for v in shown
        ),
        [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": text(formatting.title(v)),
                "x": [b for b, _ in points[v.name]],
                "y": [ips for _, ips in points[v.name]],
                "marker": {"color": _colour(v), "symbol": _symbol(v), "size": 8},
                "line": {"color": _colour(v), "dash": "dot" if v.precision == "fp32" else "solid"},
            }
            for v in shown
        ],
        {
            "xaxis": {"title": "batch size", "type": "category"},
            "yaxis": {"title": "images/s", "rangemode": "tozero"},
            "showlegend": True,
            "height": 340,
        },
    )


def _layers(variants: Sequence[Variant], target: str) -> Chart | None:
    """Chart the time per layer: a trace per variant, float layers of INT8 variants in orange."""
    timed = [v for v in variants if any(layer.time_ms is not None for layer in v.audit)]
    if not timed:
        return None
    order = list(
        dict.fromkeys(
            text(layer.name) for v in reversed(timed) for layer in v.audit if layer.time_ms is not None
        )
    )
    data = []
    for v in timed:
        layers = [layer for layer in v.audit if layer.time_ms is not None]
        colour = "@pale" if v.precision == "fp32" else "@blue" if not v.pruned else "@purple"
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": text(formatting.title(v)),
                "x": [layer.time_ms for layer in layers],
                "y": [text(layer.name) for layer in layers],
                "customdata": [layer.precision for layer in layers],
                "marker": {
                    "color": [
                        "@orange" if v.precision == "int8" and layer.precision != "int8" else colour
                        for layer in layers
                    ]
                },
                "hovertemplate": "%{y}: %{x:.3f} ms in %{customdata}<extra></extra>",
            }
        )
    return Chart(
        f"Time per layer on {formatting.target(target)}",
        " ".join(f"{formatting.title(v)}: {formatting.layer_total(v)}" for v in timed),
        data,
        {
            "barmode": "group",
            "bargap": 0.25,
            "bargroupgap": 0,
            "xaxis": {"title": "ms (orange: runs in float)"},
            "yaxis": {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": order,
                "autorange": "reversed",
            },
            "showlegend": len(timed) > 1,
            "height": 110 + 12 * len(order) * max(len(timed), 2),
        },
    )
