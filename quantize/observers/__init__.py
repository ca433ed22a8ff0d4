"""Observers: from what was seen of a tensor to the range that its integers shall cover."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core import plugins
from edgeship.toolkit.core.quant import QuantSpec, Range

Magnitudes = npt.NDArray[np.float32]


class Observer(Protocol):
    """A rule for ranges; one file of this package is one observer."""

    def __call__(self, sample: Magnitudes, low: float, high: float, spec: QuantSpec) -> Range:
        """Choose the range of a tensor.

        Args:
            sample: Values of the tensor, spread evenly over images, positions and channels.
            low: Exact lowest value of all images.
            high: Exact highest value of all images.
            spec: Integer type the range is for.

        Returns:
            A range inside [low, high].
        """
        ...


def names() -> tuple[str, ...]:
    """Every observer, by the name of its file."""
    return plugins.names("edgeship.quantization.observers")


def get(name: str) -> Observer:
    """The observer of that name.

    Raises:
        RecipeError: There is none; the hint gives the nearest one.
    """
    found: Any = plugins.get("edgeship.quantization.observers", name, "observe")
    observer: Observer = found
    return observer


def clipped(threshold: float, low: float, high: float) -> Range:
    """The range [low, high] cut at a magnitude."""
    return Range((max(low, -threshold),), (min(high, threshold),))
