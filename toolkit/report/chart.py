"""What a chart is: a Plotly figure in plain JSON; colours are names that the page's theme resolves."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import Any

COLOURS = {"openvino": "@blue", "tensorrt": "@green", "onnxruntime": "@grey"}
WORST = 20  # rows of a chart of the worst classes or layers


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture.

    Attributes:
        title: What it shows.
        alt: What a reader who does not see it should know.
        data: Plotly traces.
        layout: Plotly layout, on top of the page's own.
        choices: Label -> traces, where the reader chooses what to see; the first is shown.
    """

    title: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def text(value: str) -> str:
    """A name as Plotly shows it unchanged: its labels read a little HTML."""
    return html.escape(value, quote=False)


def log_axis(title: str, low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis whose every label can be read alone: 0.2, 0.5, 1, 2, 5."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    return {"title": title, "type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
