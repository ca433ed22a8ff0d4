"""Min-max observer: full range."""

from __future__ import annotations

from edgeship.quantization.statistics import TensorStatistics
from edgeship.toolkit.core.quant import QuantSpec, Range


def observe(tensor: TensorStatistics, spec: QuantSpec) -> Range:  # noqa: ARG001
    """Return the exact lowest and highest value."""
    return Range((tensor.lowest,), (tensor.highest,))
