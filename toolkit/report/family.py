"""Page and table of a family of pruned networks: accuracy against latency, with the knee."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import partial
from typing import Any

from edgeship.toolkit.report import formatting
from edgeship.toolkit.report.chart import Chart, text
from edgeship.toolkit.report.quantization_charts import EXPECTED_DROP
from edgeship.toolkit.report.render import print_table, templates

DENSE = "dense"


def page(family: Mapping[str, Any]) -> str:
    """Render the HTML page of a family.json (`edgeship.toolkit.pipeline.family.compare`)."""
    import plotly

    shown = chart(family)
    return (
        templates()
        .get_template("family.html.j2")
        .render(
            family=family,
            rows=[*family["frontier"], *family["float"]],
            figure=partial(_figures, labelled=family["judged"]["labelled"]),
            dense_int8=dense_int8(family),
            words=formatting,
            charts={"family": shown},
            figures={"family": {"data": shown.data, "layout": shown.layout, "choices": {}}},
            plotly=(pkgutil.get_data(plotly.__name__, "package_data/plotly.min.js") or b"").decode(),
        )
    )


def terminal(family: Mapping[str, Any]) -> None:
    """Print one line per network, widest first."""
    labelled = family["judged"]["labelled"]
    floats = {row["name"]: row for row in family["float"]}
    dense = dense_int8(family)
    rows = []
    for row in reversed(family["frontier"]):
        plain, marks = floats[row["name"]], ["noisy"] if row["noise"] else []
        rows.append(
            (
                row["name"],
                formatting.count(row["macs"]),
                *(_figures(each, labelled=labelled) for each in (plain, row)),
                formatting.milliseconds(row["latency_ms"]),
                formatting.times(dense["latency_ms"] / row["latency_ms"]),
                formatting.times(floats[DENSE]["latency_ms"] / row["latency_ms"]),
                ", ".join(["knee", *marks] if row["knee"] else marks),
            )
        )
    drop = "drop, FP32", "drop, INT8"
    print_table(("variant", "MACs", *drop, "INT8", "vs dense INT8", "vs FP32", "remarks"), rows)


def dense_int8(family: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row of the dense network in INT8, the baseline of pruning."""
    row: Mapping[str, Any] = next(row for row in family["frontier"] if row["name"] == DENSE)
    return row


def chart(family: Mapping[str, Any]) -> Chart:
    """Chart accuracy against latency in INT8: pruned networks, dense network, and the knee."""
    rows, labelled = family["frontier"], family["judged"]["labelled"]
    dense = next(row for row in family["float"] if row["name"] == DENSE)
    pruned = [row for row in rows if row["name"] != DENSE]
    data = [
        _points("pruned, INT8", pruned, labelled, "lines+markers+text", {"color": "@purple", "size": 9}),
        _points(
            "dense, INT8",
            [dense_int8(family)],
            labelled,
            "markers",
            {"color": "@blue", "size": 13, "symbol": "diamond"},
        ),
    ]
    knee = [row for row in rows if row["knee"]]
    if knee:
        ring = {"color": "@orange", "size": 20, "symbol": "circle-open", "line": {"width": 2}}
        data.append(_points("knee", knee, labelled, "markers", ring))
    level = _height(dense, labelled=labelled)
    return Chart(
        "Accuracy against latency of the pruned networks in INT8",
        "; ".join(
            f"{row['name']}: {formatting.milliseconds(row['latency_ms'])}, "
            f"{_height(row, labelled=labelled):.2f}" + (" (knee)" if row["knee"] else "")
            for row in rows
        ),
        data,
        {
            "xaxis": {"title": "median latency, ms", "rangemode": "tozero"},
            "yaxis": {"title": "top-1, %"} if labelled else EXPECTED_DROP,
            "shapes": [
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": level,
                    "y1": level,
                    "line": {"color": "@ink", "width": 1, "dash": "dot"},
                }
            ],
            "annotations": [
                {
                    "xref": "paper",
                    "x": 0,
                    "y": level,
                    "xanchor": "left",
                    "yanchor": "bottom",
                    "showarrow": False,
                    "text": f"dense, FP32 ({formatting.milliseconds(dense['latency_ms'])})",
                }
            ],
            "showlegend": True,
            "height": 380,
        },
    )


def _points(name: str, rows: Any, labelled: bool, mode: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": [row["latency_ms"] for row in rows],
        "y": [_height(row, labelled=labelled) for row in rows],
        "text": [text(row["name"]) for row in rows],
        "textposition": "bottom left",
        "cliponaxis": False,
        "marker": marker,
        "line": {"color": marker["color"], "width": 1.5},
        "hovertemplate": "%{text}<br>%{x:.3g} ms<br>%{y:.2f}<extra></extra>",
    }


def _figures(row: Mapping[str, Any], *, labelled: bool) -> str:
    return formatting.points(row["drop_pp"], row["drop_ci95_pp"]) if labelled else _expected(row)


def _expected(row: Mapping[str, Any]) -> str:
    return f"{formatting.points(row['expected_drop_pp'])} expected"


def _height(row: Mapping[str, Any], *, labelled: bool) -> float:
    """Return the height of a row on the axis: top-1 in percent, or the expected drop in points."""
    return 100 * float(row["top1"]) if labelled else float(row["expected_drop_pp"])
