"""The whole range that was seen."""

from __future__ import annotations

from quantize.observers import Magnitudes
from toolkit.core.quant import QuantSpec, Range


def observe(sample: Magnitudes, low: float, high: float, spec: QuantSpec) -> Range:  # noqa: ARG001
    """The exact lowest and highest value."""
    return Range((low,), (high,))
