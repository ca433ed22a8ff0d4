"""Chart: a Plotly figure in plain JSON; the page's theme resolves the colour names."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

COLOURS = {"openvino": "@blue", "tensorrt": "@green", "onnxruntime": "@grey"}
Figure: TypeAlias = dict[str, Any]  # Any: a Plotly trace or layout, JSON
WORST = 20  # maximum of rows in a chart of the worst classes or layers


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: Caption.
        alt: Text alternative.
        data: Plotly traces.
        layout: Plotly layout, merged into the page's.
        choices: Label -> traces of a selection box; the first is shown.
    """

    title: str
    alt: str
    data: list[Figure]
    layout: Figure = field(default_factory=dict)
    choices: dict[str, list[Figure]] = field(default_factory=dict)


def text(value: str) -> str:
    """Escape a name for Plotly labels, which are a subset of HTML."""
    return html.escape(value, quote=False)


def log_axis(title: str, low: float, high: float) -> Figure:
    """Return a logarithmic axis with ticks at 1, 2 and 5 of every decade."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    return {"title": title, "type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
