"""Charts of what happened inside: quantization and pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.report import words
from toolkit.report.figure import COLOURS, WORST, Chart, text

BINS = 64  # of a histogram


def sqnr(sensitivity: Any) -> Chart | None:
    """How far each layer's output is from float."""
    shown = _per_target(sensitivity, "sqnr_db")
    if not shown:
        return None
    return Chart(
        "SQNR of every layer's output",
        "; ".join(
            f"{words.target(target)}: lowest {words.decibel(min(row['sqnr_db'] for row in rows))} "
            f"at {min(rows, key=lambda row: row['sqnr_db'])['name']}"
            for target, rows in shown.items()
        ),
        [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": text(words.target(target)),
                "x": [text(row["name"]) for row in rows],
                "y": [row["sqnr_db"] for row in rows],
                "marker": {"size": 6},
                "line": {"color": COLOURS.get(target, "@orange"), "width": 1.5},
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
    """What each layer costs when it alone is quantized."""
    shown = _per_target(sensitivity, "drop")
    if not shown:
        return None
    choices = {}
    for target, rows in shown.items():
        worst = sorted(rows, key=lambda row: -row["drop"])[:WORST]
        choices[words.target(target)] = [
            {
                "type": "bar",
                "orientation": "h",
                "name": text(words.target(target)),
                "x": [row["drop"] for row in worst],
                "y": [text(row["name"]) for row in worst],
                "marker": {"color": ["@orange" if row.get("reverted") else "@blue" for row in worst]},
            }
        ]
    count = max(len(traces[0]["y"]) for traces in choices.values())
    return Chart(
        "The layers that cost most when quantized alone",
        "; ".join(
            f"{words.target(target)}: {max(rows, key=lambda row: row['drop'])['name']}"
            for target, rows in shown.items()
        ),
        next(iter(choices.values())),
        {
            "xaxis": {"title": "dB of SQNR lost at the logits (orange: left in float)"},
            "yaxis": {"autorange": "reversed", "type": "category"},
            "height": 100 + 20 * count,
        },
        choices if len(choices) > 1 else {},
    )


def _per_target(sensitivity: Any, key: str) -> dict[str, list[dict[str, Any]]]:
    rows = {
        target: [row for row in (content or {}).get("layers", ()) if row.get(key) is not None]
        for target, content in (sensitivity or {}).items()
        if isinstance(content, Mapping)
    }
    return {target: found for target, found in rows.items() if found}


def activations(ranges: Any) -> Chart | None:
    """Histogram of each activation with its clip points."""
    rows = [row for row in (ranges or {}).get("activations", ()) if row.get("counts")]
    if not rows:
        return None
    choices = {str(row["name"]): _histogram(row) for row in rows}
    return Chart(
        "Activations and where they are clipped",
        f"A histogram of each of {len(rows)} activations; the lines are the clip points",
        next(iter(choices.values())),
        {
            "xaxis": {"title": "value"},
            "yaxis": {"title": "count (logarithmic)", "type": "log", "exponentformat": "power"},
            "bargap": 0,
            "height": 340,
        },
        choices,
    )


def _histogram(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    counts = _rebin([float(count) for count in row["counts"]])
    width = (row["max"] - row["min"]) / len(counts)
    top = max(counts) or 1.0
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": "values",
            "marker": {"color": "@blue", "line": {"width": 0}},
            "x": [row["min"] + (i + 0.5) * width for i in range(len(counts))],
            "y": counts,
            "width": width,
        }
    ]
    traces += [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "clip point",
            "x": [row[side]] * 2,
            "y": [0.8, top],
            "line": {"color": "@red", "width": 1.5, "dash": "dash"},
        }
        for side in ("low", "high")
        if row.get(side) is not None
    ]
    return traces


def _rebin(counts: Sequence[float]) -> list[float]:
    """At most BINS bins: neighbours added up."""
    step = -(-len(counts) // BINS)
    return [sum(counts[i : i + step]) for i in range(0, len(counts), step)] if step > 1 else list(counts)


def weights(ranges: Any) -> Chart | None:
    """Spread of the weights over the channels of each layer."""
    rows = (ranges or {}).get("weights") or []
    if not rows:
        return None
    names = [text(row["name"]) for row in rows]
    widest = max(rows, key=lambda row: row["largest"] / max(row["median"], 1e-30))
    return Chart(
        "Weight ranges over the channels of each layer",
        f"Widest spread at {widest['name']}: largest {widest['largest']:.3g}, median {widest['median']:.3g}",
        [
            {
                "type": "scatter",
                "mode": "markers",
                "name": "median channel",
                "x": names,
                "y": [row["median"] for row in rows],
                "marker": {"color": "@blue", "size": 7},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "thickness": 1.2,
                    "width": 3,
                    "color": "@blue",
                    "array": [row["largest"] - row["median"] for row in rows],
                    "arrayminus": [row["median"] - row["smallest"] for row in rows],
                },
            }
        ],
        {
            "xaxis": {"type": "category", "tickangle": -60},
            "yaxis": {"title": "largest absolute weight of a channel", "type": "log", "dtick": "D2"},
            "height": 380,
        },
    )


def widths(plan: Any) -> Chart | None:
    """Channels of each group before and after pruning."""
    rows = (plan or {}).get("groups") or []
    if not rows:
        return None
    names = [text(str(row["name"])) for row in rows]
    return Chart(
        "Channels before and after pruning",
        f"{sum(row['before'] for row in rows)} channels before, {sum(row['after'] for row in rows)} after",
        [
            {
                "type": "bar",
                "name": "before",
                "x": names,
                "y": [r["before"] for r in rows],
                "marker": {"color": "@pale"},
            },
            {
                "type": "bar",
                "name": "after",
                "x": names,
                "y": [r["after"] for r in rows],
                "marker": {"color": "@purple"},
            },
        ],
        {
            "barmode": "overlay",
            "yaxis": {"title": "channels"},
            "xaxis": {"type": "category", "tickangle": -60},
            "showlegend": True,
            "height": 380,
        },
    )


def frontier(plan: Any) -> Chart | None:
    """Accuracy of every pruned candidate against its cost."""
    rows = [row for row in (plan or {}).get("frontier") or [] if row.get("top1") is not None]
    cost = next((key for key in ("latency_ms", "macs") if rows and all(row.get(key) for row in rows)), None)
    if cost is None or len(rows) < 2:
        return None
    rows = sorted(rows, key=lambda row: row[cost])
    knee = _knee([row[cost] for row in rows], [row["top1"] for row in rows])
    chosen = [row for row in rows if row.get("chosen")]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "candidates",
            "x": [row[cost] for row in rows],
            "y": [100 * row["top1"] for row in rows],
            "marker": {"color": "@purple", "size": 6},
            "line": {"color": "@purple", "width": 1.5},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "knee",
            "x": [rows[knee][cost]],
            "y": [100 * rows[knee]["top1"]],
            "marker": {"color": "@orange", "size": 16, "symbol": "circle-open", "line": {"width": 2}},
        },
    ]
    if chosen:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "this run",
                "x": [row[cost] for row in chosen],
                "y": [100 * row["top1"] for row in chosen],
                "marker": {"color": "@purple", "size": 12, "symbol": "star"},
            }
        )
    reading = words.milliseconds if cost == "latency_ms" else words.count
    unit = "latency, ms" if cost == "latency_ms" else "multiply-accumulates"
    return Chart(
        "Frontier of pruning and its knee",
        f"{len(rows)} candidates; the knee is at {reading(rows[knee][cost])}, "
        f"{words.percent(rows[knee]['top1'])}",
        data,
        {"xaxis": {"title": unit}, "yaxis": {"title": "top-1, %"}, "showlegend": True, "height": 360},
    )


def _knee(x: Sequence[float], y: Sequence[float]) -> int:
    """The point farthest above the straight line between the ends, on axes scaled to [0, 1].

    Source:
        Satopää et al. 2011, "Finding a kneedle in a haystack", sec. III.
    """
    width, height = (x[-1] - x[0]) or 1.0, (y[-1] - y[0]) or 1.0
    above = [(y[i] - y[0]) / height - (x[i] - x[0]) / width for i in range(len(x))]
    return max(range(len(x)), key=above.__getitem__)
