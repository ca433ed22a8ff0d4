"""Guard of an INT8 engine: images whose two best classes are close run again in the reference."""

from __future__ import annotations

import math
from typing import Any, Callable

import numpy as np

from .guard_record import margin

_FEW = 100  # classes
DIFFERENT = 5.0  # standard deviations between two shares: 1 in 3 million by chance, looked at once


def margins(logits: Any) -> Any:
    """Return the margins (N,), float64, of logits (N, classes): the largest minus the second.

    Infinite with one class. Float64 is what `guard_record.margin` computes in.
    """
    if logits.shape[1] < 2:  # noqa: PLR2004
        return np.full(len(logits), np.inf)
    best = np.partition(logits, -2, axis=1)
    return best[:, -1].astype(np.float64) - best[:, -2]


class Guarded:
    """Inference in INT8, and where the margin is small, in the reference.

    Args:
        fast: Function from images (N, ...) to logits (N, classes) in INT8.
        reference: The same in the reference.
        threshold: Largest margin of an image that runs again.

    Attributes:
        images: Images so far.
        rerun: Those of them that ran again.
        changed: Those of these that got another class by it.
    """

    def __init__(self, fast: Callable[[Any], Any], reference: Callable[[Any], Any], threshold: float) -> None:
        self._fast, self._reference, self._threshold = fast, reference, threshold
        self.reset()

    def reset(self) -> None:
        """Set the counts to 0."""
        self.images = self.rerun = self.changed = 0

    def __call__(self, images: Any) -> Any:
        """Return logits (N, classes) of images (N, ...)."""
        logits = self._fast(images)
        self.images += len(logits)
        if len(logits) == 1 and logits.shape[1] <= _FEW and margin(logits[0].tolist()) > self._threshold:
            return logits  # the usual case: after an inference, calls of NumPy take longer than a few numbers in Python
        again = np.flatnonzero(margins(logits) <= self._threshold)
        if len(again) == 0:
            return logits
        exact = self._reference(images if len(again) == len(images) else images[again])
        self.rerun += len(again)
        self.changed += int((exact.argmax(1) != logits[again].argmax(1)).sum())
        result = np.array(logits)
        result[again] = exact
        return result


def status(record: dict[str, Any], counts: Guarded) -> dict[str, Any]:
    """Return counts, and the shares that were promised.

    Args:
        record: Content of guard.json.
        counts: The inference that counts.

    Returns:
        images, rerun, changed; rerun_share, its promised value, and "differs": True if they differ by more than
        chance explains (two proportions, pooled), so that the images are of another kind than those of the
        threshold and the bound does not hold; None: no images yet. bound and max_flips as promised.
    """
    share = counts.rerun / counts.images if counts.images else None
    promised, of = float(record["rerun_share"]), int(record["images"])
    differs = None
    if share is not None:
        pooled = (counts.rerun + promised * of) / (counts.images + of)
        deviation = math.sqrt(pooled * (1 - pooled) * (1 / counts.images + 1 / of))
        differs = bool(abs(share - promised) > DIFFERENT * deviation) if deviation else share != promised
    return {
        "images": counts.images,
        "rerun": counts.rerun,
        "changed": counts.changed,
        "rerun_share": share,
        "promised_rerun_share": promised,
        "differs": differs,
        "max_flips": record["max_flips"],
        "bound": record["bound"],
        "reference": record["reference"],
    }
