"""Charts of quantization and pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeship.toolkit.core.results import Variant
from edgeship.toolkit.report import formatting
from edgeship.toolkit.report.chart import COLOURS, WORST, Chart, Figure, log_axis, text
from edgeship.toolkit.runs.quantized import ActivationScale, PruningSummary, QuantizationSummary, Sensitivity
from edgeship.toolkit.runs.variant_id import split_pruned

BINS = 64  # maximum of histogram bins
EXPECTED_DROP = {
    "title": "expected drop, pp (no labels)",
    "autorange": "reversed",
}  # reversed: better is up, as in charts of top-1


def sqnr(sensitivities: Mapping[str, Sensitivity]) -> Chart | None:
    """Chart the SQNR of each layer's output when everything is quantized."""
    shown = {
        target: rows
        for target, each in sensitivities.items()
        if (rows := {row.name: row.sqnr_db for row in each.layers if row.sqnr_db is not None})
    }
    if not shown:
        return None
    return Chart(
        "SQNR of layer outputs, on calibration images",
        "; ".join(
            f"{formatting.target(target)}: lowest {formatting.decibel(min(rows.values()))} "
            f"at {min(rows, key=rows.__getitem__)}"
            for target, rows in shown.items()
        ),
        [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": text(formatting.target(target)),
                "x": [text(name) for name in rows],
                "y": list(rows.values()),
                "marker": {"size": 6},
                "line": {"color": _colour(target), "width": 1.5},
            }
            for target, rows in shown.items()
        ],
        {
            "yaxis": {"title": "dB (higher is closer to float)"},
            "xaxis": {"type": "category", "tickangle": -60},
            "showlegend": len(shown) > 1,
            "height": 380,
        },
    )


def sensitivity(sensitivities: Mapping[str, Sensitivity]) -> Chart | None:
    """Chart the most sensitive layers: SQNR gain of the logits with one layer in float."""
    shown = {
        target: sorted(costly, key=lambda pair: -pair[0])
        for target, each in sensitivities.items()
        if (costly := [(row.drop_db, row) for row in each.layers if row.drop_db and row.drop_db > 0])
    }
    if not shown:
        return None
    choices = {}
    for target, rows in shown.items():
        choices[formatting.target(target)] = [
            {
                "type": "bar",
                "orientation": "h",
                "name": text(formatting.target(target)),
                "x": [drop_db for drop_db, _ in rows[:WORST]],
                "y": [text(row.name) for _, row in rows[:WORST]],
                "marker": {"color": ["@orange" if row.reverted else "@blue" for _, row in rows[:WORST]]},
            }
        ]
    count = max(len(traces[0]["y"]) for traces in choices.values())
    return Chart(
        "Most sensitive layers",
        "; ".join(
            f"{formatting.target(target)}: {rows[0][1].name}, {len(rows)} in all"
            for target, rows in shown.items()
        ),
        next(iter(choices.values())),
        {
            "xaxis": {"title": "SQNR gain of the logits with the layer in float, dB (orange: is in float)"},
            "yaxis": {"autorange": "reversed", "type": "category"},
            "height": 100 + 20 * count,
        },
        choices if len(choices) > 1 else {},
    )


def _colour(target: str) -> str:
    return COLOURS.get(split_pruned(target)[0], "@orange")


def clipping(quantized: Mapping[str, QuantizationSummary]) -> Chart | None:
    """Chart the part of each activation's observed range that its integers represent."""
    shown = {target: each.activations for target, each in quantized.items() if each.activations}
    if not shown:
        return None
    data, least = [], []
    longest = sorted(shown.values(), key=len, reverse=True)
    order = list(dict.fromkeys(text(name) for tensors in longest for name in tensors))
    for target, tensors in shown.items():
        shares = {}
        for name, tensor in tensors.items():
            low, high = tensor.clip_points
            width = tensor.high - tensor.low
            reached = min(high, tensor.high) - max(low, tensor.low)
            shares[name] = 100 * min(max(reached / width, 0.0), 1.0) if width > 0 else 100.0
        lowest = min(shares, key=shares.__getitem__)
        least.append(f"{formatting.target(target)}: lowest {shares[lowest]:.0f} % at {lowest}")
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": text(formatting.target(target)),
                "x": [text(name) for name in shares],
                "y": list(shares.values()),
                "marker": {
                    "size": 7,
                    "color": _colour(target),
                    "symbol": "star-open" if split_pruned(target)[1] else "diamond-open",
                },
            }
        )
    return Chart(
        "Range coverage of activations",
        "; ".join(least),
        data,
        {
            "yaxis": {"title": "% of the observed range that is not clipped", "range": [0, 104]},
            "xaxis": {
                "type": "category",
                "tickangle": -60,
                "categoryorder": "array",
                "categoryarray": order,
            },
            "showlegend": len(data) > 1,
            "height": 380,
        },
    )


def activations(quantized: Mapping[str, QuantizationSummary]) -> Chart | None:
    """Chart a histogram of each activation, with the clip points of every target."""
    choices: dict[str, list[Figure]] = {}
    for target, each in quantized.items():
        for name, tensor in each.activations.items():
            if tensor.counts and tensor.high > tensor.low:
                traces = choices.setdefault(name, [_histogram(tensor)])
                traces += [_clip(x, max(traces[0]["y"]), target) for x in tensor.clip_points]
    if not choices:
        return None
    return Chart(
        "Activations and clip points",
        f"Histograms of {len(choices)} activations; the lines are the clip points",
        next(iter(choices.values())),
        {
            "xaxis": {"title": "value"},
            "yaxis": {"title": "count (logarithmic)", "type": "log", "exponentformat": "power"},
            "bargap": 0,
            "height": 360,
        },
        choices,
    )


def _histogram(tensor: ActivationScale) -> Figure:
    counts = _rebin(tensor.counts)
    width = (tensor.high - tensor.low) / len(counts)
    return {
        "type": "bar",
        "name": "values",
        "marker": {"color": "@pale", "line": {"width": 0}},
        "x": [tensor.low + (i + 0.5) * width for i in range(len(counts))],
        "y": counts,
        "width": width,
    }


def _clip(x: float, top: float, target: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": text(formatting.target(target)),
        "x": [x, x],
        "y": [0.8, max(top, 1.0)],
        "line": {"color": _colour(target), "width": 1.5, "dash": "dash"},
        "hovertemplate": f"{text(formatting.target(target))} clips at %{{x:.3g}}<extra></extra>",
    }


def _rebin(counts: Sequence[float]) -> list[float]:
    """Merge neighbouring bins until there are at most BINS."""
    step = -(-len(counts) // BINS)
    return [sum(counts[i : i + step]) for i in range(0, len(counts), step)] if step > 1 else list(counts)


def weights(quantized: Mapping[str, QuantizationSummary]) -> Chart | None:
    """Chart the spread of weight scales over the channels of each layer."""
    target, tensors = next(((t, each.weights) for t, each in quantized.items() if each.weights), ("", {}))
    if not tensors:
        return None
    names = [text(name) for name in tensors]
    largest = [tensor.largest_scale for tensor in tensors.values()]
    smallest = largest
    trace: Figure = {
        "type": "scatter",
        "mode": "markers",
        "name": "largest channel",
        "x": names,
        "y": largest,
        "marker": {"color": "@blue", "size": 6},
    }
    median = [tensor.median_scale for tensor in tensors.values() if tensor.median_scale]
    lowest = [tensor.smallest_scale for tensor in tensors.values() if tensor.smallest_scale]
    if len(median) == len(lowest) == len(largest):
        smallest = lowest
        trace |= {
            "name": "median channel",
            "y": median,
            "error_y": {
                "type": "data",
                "symmetric": False,
                "thickness": 1.2,
                "width": 3,
                "color": "@blue",
                "array": [high - middle for high, middle in zip(largest, median, strict=True)],
                "arrayminus": [middle - low for middle, low in zip(median, smallest, strict=True)],
            },
        }
    return Chart(
        f"Weight scales per channel, {formatting.target(target)}",
        f"Largest scale {max(largest):.3g} at {list(tensors)[largest.index(max(largest))]}",
        [trace],
        {
            "xaxis": {"type": "category", "tickangle": -60},
            "yaxis": log_axis("scale of a channel", min(smallest), max(largest)),
            "height": 380,
        },
    )


def widths(plan: PruningSummary | None) -> Chart | None:
    """Chart the channels of each group before and after pruning."""
    if plan is None or plan.widths_before is None or plan.widths_after is None:
        return None
    before, after = plan.widths_before.by_position(), plan.widths_after.by_position()
    names = [text(name) for name in before]
    return Chart(
        "Channels before and after pruning",
        f"{sum(before.values())} channels before, {sum(after.values())} after",
        [
            {
                "type": "bar",
                "name": name,
                "x": names,
                "y": [counts.get(place, 0) for place in before],
                "marker": {"color": colour},
            }
            for name, counts, colour in (("before", before, "@pale"), ("after", after, "@purple"))
        ],
        {
            "barmode": "overlay",
            "yaxis": {"title": "channels"},
            "xaxis": {"type": "category", "tickangle": -60},
            "showlegend": True,
            "height": 380,
        },
    )


def refit(plan: PruningSummary | None) -> Chart | None:
    """Chart the relative error of each refitted layer on held-out images."""
    errors = {name: error for name, error in plan.errors.items() if error is not None} if plan else {}
    if not errors:
        return None
    worst = max(errors, key=errors.__getitem__)
    return Chart(
        "Error of each refitted layer",
        f"Largest {100 * errors[worst]:.1f} % at {worst}",
        [
            {
                "type": "bar",
                "x": [text(name) for name in errors],
                "y": [100 * error for error in errors.values()],
                "marker": {"color": "@purple"},
            }
        ],
        {
            "yaxis": {"title": "% of the output power, held-out images"},
            "xaxis": {"type": "category", "tickangle": -60},
            "height": 360,
        },
    )


def frontier(plan: PruningSummary | None, variants: Sequence[Variant] = ()) -> Chart | None:
    """Chart accuracy against cost of the pruning candidates, with the knee.

    Args:
        plan: The plan of the pruning.
        variants: Rows of the report. Where the candidates have latencies and expected drops, the measured
            drops and latencies of the dense network in FP32 and INT8 and of the result are drawn too.
    """
    rows = plan.frontier if plan else ()
    timed = all(row.latency_ms for row in rows)
    measured = all(row.top1 is not None for row in rows)
    points = sorted(
        (cost, 100 * row.top1 if row.top1 is not None and measured else row.expected_drop_pp, row.chosen)
        for row in rows
        if (cost := row.latency_ms if timed else row.macs) and (measured or row.expected_drop_pp is not None)
    )
    if len(points) < max(len(rows), 2):
        return None
    x, y = [point[0] for point in points], [point[1] or 0.0 for point in points]
    knee = knee_of(x, y if measured else [-drop for drop in y])
    chosen = [i for i, point in enumerate(points) if point[2]]
    data: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "candidates",
            "x": x,
            "y": y,
            "marker": {"color": "@purple", "size": 6},
            "line": {"color": "@purple", "width": 1.5},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "knee",
            "x": [x[knee]],
            "y": [y[knee]],
            "marker": {"color": "@orange", "size": 16, "symbol": "circle-open", "line": {"width": 2}},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "this run",
            "x": [x[i] for i in chosen],
            "y": [y[i] for i in chosen],
            "marker": {"color": "@purple", "size": 12, "symbol": "star"},
        },
    ]
    reading = formatting.milliseconds if timed else formatting.count
    if not chosen:
        del data[2]
    if timed and not measured:
        data += _competitors(variants)
    height = f"{y[knee]:.2f} % top-1" if measured else f"an expected drop of {formatting.points(y[knee])}"
    return Chart(
        "Pruning candidates and knee",
        f"{len(rows)} candidates; the knee is at {reading(x[knee])}, {height}",
        data,
        {
            "xaxis": {"title": "latency, ms" if timed else "multiply-accumulates"},
            "yaxis": {"title": "top-1, %"} if measured else EXPECTED_DROP,
            "showlegend": True,
            "height": 360,
        },
    )


def _competitors(variants: Sequence[Variant]) -> list[Figure]:
    """Return the measured networks of the first target that has a pruned INT8 one: latency and drop."""
    target = next((v.target for v in variants if v.pruned and v.precision == "int8" and v.latency_ms), None)
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": text(f"{formatting.title(v)}, measured"),
            "x": [v.latency_ms.p50],
            "y": [v.drop_pp or 0.0],
            "marker": {"color": "@blue", "size": 11, "symbol": "star" if v.pruned else symbol},
        }
        for v in variants
        for precision, symbol in (("fp32", "circle"), ("int8", "diamond"))
        if v.target == target and v.precision == precision and v.latency_ms
        if v.drop_pp is not None or precision == "fp32"
    ]


def knee_of(x: Sequence[float], y: Sequence[float]) -> int:
    """Return the index of the point farthest above the line between the ends, on axes scaled to [0, 1].

    Source:
        Satopää et al. 2011, "Finding a kneedle in a haystack", sec. III.
    """
    width, height = (x[-1] - x[0]) or 1.0, (y[-1] - y[0]) or 1.0
    above = [(y[i] - y[0]) / height - (x[i] - x[0]) / width for i in range(len(x))]
    return max(range(len(x)), key=above.__getitem__)
