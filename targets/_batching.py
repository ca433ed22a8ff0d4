"""Inference with a fixed batch size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeship.toolkit.core.quant import FloatArray, PixelArray


def in_batches(
    run: Callable[[FloatArray | PixelArray], FloatArray],
    images: FloatArray | PixelArray,
    batch: int | None,
) -> FloatArray:
    """Run N images through an engine in batches; zeros complete the last one.

    Args:
        run: Function from one batch to logits (batch, classes).
        images: N images, in the form of `Session.takes_pixels`.
        batch: Batch size of the engine; None: any.

    Returns:
        Logits (N, classes).
    """
    if batch is None or len(images) == batch:
        return run(images)
    parts = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        missing = batch - len(part)
        filled = np.concatenate([part, np.zeros_like(images[:1]).repeat(missing, 0)]) if missing else part
        parts.append(run(np.ascontiguousarray(filled))[: len(part)])
    return np.concatenate(parts)
