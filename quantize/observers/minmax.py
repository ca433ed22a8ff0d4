"""Min-max observer: full range."""

from __future__ import annotations

from edgeship.quantization.observers import Magnitudes
from edgeship.toolkit.core.quant import QuantSpec, Range


def observe(sample: Magnitudes, low: float, high: float, spec: QuantSpec) -> Range:  # noqa: ARG001
    """Return the exact lowest and highest value."""
    return Range((low,), (high,))
