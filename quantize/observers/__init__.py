"""Observers: choose the quantization range of a tensor from its statistics."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core import plugins
from edgeship.toolkit.core.quant import QuantSpec, Range

Magnitudes = npt.NDArray[np.float32]


class Observer(Protocol):
    """Range selection rule; each module of this package is one observer."""

    def __call__(self, sample: Magnitudes, low: float, high: float, spec: QuantSpec) -> Range:
        """Choose the range of a tensor.

        Args:
            sample: Values of the tensor, spread evenly over images, positions and channels.
            low: Exact lowest value over all images.
            high: Exact highest value over all images.
            spec: Integer type.

        Returns:
            A range inside [low, high].
        """
        ...


def names() -> tuple[str, ...]:
    """Return the names of all observers (module names)."""
    return plugins.names("edgeship.quantization.observers")


def get(name: str) -> Observer:
    """Return an observer by name.

    Raises:
        RecipeError: Unknown name; the hint has the nearest one.
    """
    plugin: Any = plugins.get("edgeship.quantization.observers", name, "observe")
    observer: Observer = plugin
    return observer


def clipped(threshold: float, low: float, high: float) -> Range:
    """Clip the range [low, high] at a magnitude."""
    return Range((max(low, -threshold),), (min(high, threshold),))
