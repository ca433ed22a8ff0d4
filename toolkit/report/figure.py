"""What a chart is: a Plotly figure in plain JSON; colours are names that the page's theme resolves."""

from __future__ import annotations

import html
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
