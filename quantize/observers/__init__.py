"""Observers: choose the quantization range of a tensor from its statistics."""

from __future__ import annotations

from typing import Protocol

from edgeship.quantization.statistics import TensorStatistics
from edgeship.toolkit.core import plugins
from edgeship.toolkit.core.quant import QuantSpec, Range


class Observer(Protocol):
    """Range selection rule; each module of this package, or plug-in (see `plugins`), is one observer."""

    def __call__(self, tensor: TensorStatistics, spec: QuantSpec) -> Range:
        """Choose the range of a tensor: inside [tensor.lowest, tensor.highest].

        Args:
            tensor: Statistics over all calibration images, with the maxima of single images.
            spec: Integer type.
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
    observer: Observer = plugins.get("edgeship.quantization.observers", name, "observe")
    return observer


def clipped(threshold: float, tensor: TensorStatistics) -> Range:
    """Clip the range of a tensor at a magnitude."""
    return Range((max(tensor.lowest, -threshold),), (min(tensor.highest, threshold),))
