"""Tensors whose scale is of no use to most of their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgeship.quantization.statistics import TensorStatistics
from edgeship.toolkit.core.quant import QParams

TYPICAL = 0.95  # part of the values that are not 0
FEW_STEPS = 4.0


def underused_ranges(
    activations: Mapping[str, QParams], tensors: Mapping[str, TensorStatistics]
) -> Iterator[str]:
    """Say of which tensors nearly all values fall on a few steps, because an outlier sets the scale.

    Args:
        activations: Tensor name -> parameters.
        tensors: Tensor name -> what was seen of it.
    """
    for name, qparams in activations.items():
        seen = tensors[name]
        magnitudes = np.abs(seen.sample[seen.sample != 0])
        if not len(magnitudes):
            continue
        typical, step = float(np.quantile(magnitudes, TYPICAL)), qparams.scale[0]
        if typical < FEW_STEPS * step:
            yield (
                f"activation '{name}' loses nearly all it holds: {TYPICAL:.0%} of its values are below "
                f"{typical:.3g}, one step is {step:.3g}, for an outlier of {seen.largest:.3g}; look for a "
                "damaged calibration image or channel, or leave the layers that read it in float"
            )
