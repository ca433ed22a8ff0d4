"""Inference of any number of images with any session."""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import ArraySession

_SUM_TOLERANCE = 1e-3  # of outputs that are probabilities already


class Inference:
    """A session that takes arrays.

    Attributes:
        session: The session of a backend.
        takes_pixels: True for uint8 images (N, H, W, C), False for float32 (N, C, H, W).
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.takes_pixels = bool(session.takes_pixels)
        self._prepared = 0

    def __call__(self, images: Any) -> Any:
        """Return logits (N, classes) of N images in the form that the engine takes; the array is not kept."""
        batch = self.session.batch or min(self.session.batch_max or len(images), len(images))
        if len(images) == batch:
            return self._run(images)
        parts = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            filled = part
            if len(part) < batch:  # an engine of a fixed batch: zeros complete the last one
                filled = np.concatenate([part, np.zeros_like(images[:1]).repeat(batch - len(part), 0)])
            parts.append(self._run(np.ascontiguousarray(filled))[: len(part)])
        return np.concatenate(parts)

    def prepare(self, batch: int) -> None:
        """Allocate for inferences of `batch` images."""
        if self._prepared != batch:
            self.session.prepare(batch, True, False)
            self._prepared = batch

    def _run(self, images: Any) -> Any:
        if isinstance(self.session, ArraySession):
            return self.session.run(images)
        self.prepare(len(images))
        self.session.load(np.ascontiguousarray(images, "u1" if self.takes_pixels else "<f4").tobytes())
        self.session.step()
        return np.frombuffer(self.session.logits(), "<f4").reshape(len(images), -1)


def are_probabilities(outputs: Any) -> bool:
    """Return True for a graph that ends in a Softmax: its outputs are shares of 1."""
    sums = outputs.sum(1)
    return bool((outputs >= 0).all() and np.abs(sums - 1).max() < _SUM_TOLERANCE)


def softmax(logits: Any) -> Any:
    """Return the probabilities of the logits (classes,) of an image."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return (powers / powers.sum()).astype(np.float32)
