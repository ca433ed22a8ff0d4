"""Entropy observer: range of least KL divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeship.quantization.observers import clipped
from edgeship.quantization.statistics import TensorStatistics
from edgeship.toolkit.core.quant import QuantSpec, Range

BINS = 2048


def observe(tensor: TensorStatistics, spec: QuantSpec) -> Range:
    """Clip at the magnitude of least KL divergence between the observed and the quantized distribution.

    Candidate cuts of the histogram of magnitudes (2048 bins) are every 16th bin, from as many bins as there
    are integers; values beyond a cut go into the last bin. The cut histogram P is merged into one bin per
    integer and spread over its non-empty bins again, Q; the cut of least KL(P || Q) is chosen. Example with 2
    integers: P = [1, 0, 2, 3] -> merged [1, 5] -> Q = [1, 0, 2.5, 2.5].

    Source:
        Migacz 2017, "8-bit inference with TensorRT", GTC S7310.
    """
    sample, largest = tensor.sample.ravel(), tensor.largest
    magnitudes = np.abs(sample[sample != 0])
    if not len(magnitudes) or largest <= 0:
        return Range((tensor.lowest,), (tensor.highest,))
    histogram, edges = np.histogram(magnitudes, BINS, (0.0, largest))
    levels = spec.quant_max + 1
    cuts = range(levels, BINS + 1, 16)
    best = min(cuts, key=lambda cut: divergence(histogram, cut, levels))
    return clipped(float(edges[best]), tensor)


def divergence(histogram: npt.NDArray[Any], cut: int, levels: int) -> float:
    """Compute the KL divergence, in nats, between a cut histogram and its version with fewer levels."""
    counts = histogram[:cut].astype(np.float64)
    merged_into = np.arange(cut) * levels // cut
    filled = counts > 0
    merged = np.bincount(merged_into, counts, levels) / np.maximum(
        np.bincount(merged_into, filled, levels), 1
    )
    spread = np.where(filled, merged[merged_into], 0.0)
    counts[-1] += histogram[cut:].sum()
    p, q = counts / counts.sum(), spread / max(spread.sum(), 1.0)
    if (q[p > 0] <= 0).any():
        q = np.maximum(q, 1e-12)
    positive = p > 0
    return float((p[positive] * np.log(p[positive] / q[positive])).sum())
