"""Charts of quantization and pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeship.toolkit.report import formatting
from edgeship.toolkit.report.chart import COLOURS, WORST, Chart, log_axis, text
from edgeship.toolkit.runs.variant_id import split_pruned

BINS = 64  # maximum of histogram bins
ACTIVATION = ("dtype", "scale", "zero_point", "low", "high")
EXPECTED_DROP = {
    "title": "expected drop, pp (no labels)",
    "autorange": "reversed",
}  # reversed: better is up, as in charts of top-1
INTEGERS = {"int8": (-128, 127), "uint8": (0, 255)}


def sqnr(sensitivity: Any) -> Chart | None:
    """Chart the SQNR of each layer's output when everything is quantized."""
    shown = _per_target(sensitivity, "sqnr_db")
    if not shown:
        return None
    return Chart(
        "SQNR of layer outputs, on calibration images",
        "; ".join(
            f"{formatting.target(target)}: lowest {formatting.decibel(min(row['sqnr_db'] for row in rows))} "
            f"at {min(rows, key=lambda row: row['sqnr_db'])['name']}"
            for target, rows in shown.items()
        ),
        [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": text(formatting.target(target)),
                "x": [text(row["name"]) for row in rows],
                "y": [row["sqnr_db"] for row in rows],
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


def sensitivity(sensitivity: Any) -> Chart | None:
    """Chart the most sensitive layers: SQNR gain of the logits with one layer in float."""
    shown = {
        target: costly
        for target, rows in _per_target(sensitivity, "drop_db").items()
        if (costly := [row for row in rows if row["drop_db"] > 0])
    }
    if not shown:
        return None
    choices = {}
    for target, rows in shown.items():
        worst = sorted(rows, key=lambda row: -row["drop_db"])[:WORST]
        choices[formatting.target(target)] = [
            {
                "type": "bar",
                "orientation": "h",
                "name": text(formatting.target(target)),
                "x": [row["drop_db"] for row in worst],
                "y": [text(row["name"]) for row in worst],
                "marker": {"color": ["@orange" if row.get("reverted") else "@blue" for row in worst]},
            }
        ]
    count = max(len(traces[0]["y"]) for traces in choices.values())
    return Chart(
        "Most sensitive layers",
        "; ".join(
            f"{formatting.target(target)}: {max(rows, key=lambda row: row['drop_db'])['name']}, "
            f"{len(rows)} in all"
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


def _per_target(sensitivity: Any, key: str) -> dict[str, list[dict[str, Any]]]:
    rows = {
        target: [row for row in content.get("layers") or () if row.get("name") and row.get(key) is not None]
        for target, content in (sensitivity or {}).items()
        if isinstance(content, Mapping)
    }
    return {target: layers for target, layers in rows.items() if layers}


def _colour(target: str) -> str:
    return COLOURS.get(split_pruned(target)[0], "@orange")


def _tensors(quantized: Any, kind: str, needed: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return target -> tensor -> quantization data, without tensors that lack a needed key."""
    by_target = {
        target: {
            name: dict(tensor)
            for name, tensor in (summary.get(kind) or {}).items()
            if isinstance(tensor, Mapping) and all(tensor.get(key) is not None for key in needed)
        }
        for target, summary in (quantized or {}).items()
        if isinstance(summary, Mapping)
    }
    return {target: tensors for target, tensors in by_target.items() if tensors}


def clip_points(tensor: Mapping[str, Any]) -> tuple[float, float]:
    """Return the lowest and highest value that an activation's integers represent."""
    lowest, highest = INTEGERS[tensor["dtype"]]
    scale, zero = tensor["scale"], tensor["zero_point"]
    return (lowest - zero) * scale, (highest - zero) * scale


def clipping(quantized: Any) -> Chart | None:
    """Chart the part of each activation's observed range that its integers represent."""
    shown = _tensors(quantized, "activations", ACTIVATION)
    if not shown:
        return None
    data, least = [], []
    longest = sorted(shown.values(), key=len, reverse=True)
    order = list(dict.fromkeys(text(name) for tensors in longest for name in tensors))
    for target, tensors in shown.items():
        shares = {}
        for name, tensor in tensors.items():
            low, high = clip_points(tensor)
            width = tensor["high"] - tensor["low"]
            reached = min(high, tensor["high"]) - max(low, tensor["low"])
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


def activations(quantized: Any) -> Chart | None:
    """Chart a histogram of each activation, with the clip points of every target."""
    shown = _tensors(quantized, "activations", ACTIVATION)
    choices: dict[str, list[dict[str, Any]]] = {}
    for target, tensors in shown.items():
        for name, tensor in tensors.items():
            if tensor.get("counts") and tensor["high"] > tensor["low"]:
                traces = choices.setdefault(name, [_histogram(tensor)])
                traces += [_clip(x, max(traces[0]["y"]), target) for x in clip_points(tensor)]
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


def _histogram(tensor: Mapping[str, Any]) -> dict[str, Any]:
    counts = _rebin([float(count) for count in tensor["counts"]])
    width = (tensor["high"] - tensor["low"]) / len(counts)
    return {
        "type": "bar",
        "name": "values",
        "marker": {"color": "@pale", "line": {"width": 0}},
        "x": [tensor["low"] + (i + 0.5) * width for i in range(len(counts))],
        "y": counts,
        "width": width,
    }


def _clip(x: float, top: float, target: str) -> dict[str, Any]:
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


def weights(quantized: Any) -> Chart | None:
    """Chart the spread of weight scales over the channels of each layer."""
    shown = _tensors(quantized, "weights", ("largest_scale",))
    if not shown:
        return None
    target, tensors = next(iter(shown.items()))
    names = [text(name) for name in tensors]
    largest = [float(tensor["largest_scale"]) for tensor in tensors.values()]
    smallest = largest
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": "largest channel",
        "x": names,
        "y": largest,
        "marker": {"color": "@blue", "size": 6},
    }
    if all(tensor.get(key) for key in ("median_scale", "smallest_scale") for tensor in tensors.values()):
        median = [float(tensor["median_scale"]) for tensor in tensors.values()]
        smallest = [float(tensor["smallest_scale"]) for tensor in tensors.values()]
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


def channels(widths: Mapping[str, Any]) -> dict[str, int]:
    """Return the channel counts of a network by position; a dropped block has none."""
    counts = {"stem": int(widths["stem"])}
    for stage, stream in enumerate(widths["streams"], 1):
        counts[f"stream{stage}"] = int(stream)
        for block, inner in enumerate(widths["inner"][stage - 1]):
            counts |= {f"layer{stage}.{block}.inner{i}": int(count) for i, count in enumerate(inner, 1)}
    return counts


def widths(plan: Any) -> Chart | None:
    """Chart the channels of each group before and after pruning."""
    pair = [(plan or {}).get(key) or {} for key in ("widths_before", "widths_after")]
    if not all(each.get(key) for each in pair for key in ("stem", "streams", "inner")):
        return None
    before, after = (channels(each) for each in pair)
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


def refit(plan: Any) -> Chart | None:
    """Chart the relative error of each refitted layer on held-out images."""
    errors = {name: error for name, error in ((plan or {}).get("errors") or {}).items() if error is not None}
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


def frontier(plan: Any) -> Chart | None:
    """Chart accuracy against cost of the pruning candidates, with the knee."""
    rows = (plan or {}).get("frontier") or []
    cost = next((key for key in ("latency_ms", "macs") if rows and all(row.get(key) for row in rows)), None)
    measured = all(row.get("top1") is not None for row in rows)
    if cost is None or len(rows) < 2 or not (measured or all("expected_drop_pp" in row for row in rows)):
        return None
    rows = sorted(rows, key=lambda row: float(row[cost]))
    x = [row[cost] for row in rows]
    y = [100 * row["top1"] if measured else row["expected_drop_pp"] for row in rows]
    knee = knee_of(x, y if measured else [-drop for drop in y])
    chosen = [i for i, row in enumerate(rows) if row.get("chosen")]
    data: list[dict[str, Any]] = [
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
    reading = formatting.milliseconds if cost == "latency_ms" else formatting.count
    height = f"{y[knee]:.2f} % top-1" if measured else f"an expected drop of {formatting.points(y[knee])}"
    return Chart(
        "Pruning candidates and knee",
        f"{len(rows)} candidates; the knee is at {reading(x[knee])}, {height}",
        data if chosen else data[:2],
        {
            "xaxis": {"title": "latency, ms" if cost == "latency_ms" else "multiply-accumulates"},
            "yaxis": {"title": "top-1, %"} if measured else EXPECTED_DROP,
            "showlegend": True,
            "height": 360,
        },
    )


def knee_of(x: Sequence[float], y: Sequence[float]) -> int:
    """Return the index of the point farthest above the line between the ends, on axes scaled to [0, 1].

    Source:
        Satopää et al. 2011, "Finding a kneedle in a haystack", sec. III.
    """
    width, height = (x[-1] - x[0]) or 1.0, (y[-1] - y[0]) or 1.0
    above = [(y[i] - y[0]) / height - (x[i] - x[0]) / width for i in range(len(x))]
    return max(range(len(x)), key=above.__getitem__)
