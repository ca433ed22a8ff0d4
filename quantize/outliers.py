"""Detection of activations whose scale an outlier sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgeship.quantization.statistics import TensorStatistics
from edgeship.toolkit.core.quant import QParams

TYPICAL = 0.95  # quantile of the nonzero values
FEW_STEPS = 4.0


def underused_ranges(
    activations: Mapping[str, QParams], tensors: Mapping[str, TensorStatistics]
) -> Iterator[str]:
    """Yield a warning for each tensor whose values nearly all lie within a few quantization steps.

    Args:
        activations: Tensor name -> parameters.
        tensors: Tensor name -> statistics.
    """
    for name, qparams in activations.items():
        tensor = tensors[name]
        magnitudes = np.abs(tensor.sample[tensor.sample != 0])
        if not len(magnitudes):
            continue
        typical, step = float(np.quantile(magnitudes, TYPICAL)), qparams.scale[0]
        if typical < FEW_STEPS * step:
            yield (
                f"activation '{name}': {TYPICAL:.0%} of nonzero values are below {typical:.3g}, "
                f"{FEW_STEPS:g} quantization steps are {FEW_STEPS * step:.3g}; an outlier of "
                f"{tensor.largest:.3g} sets the scale; check for damaged calibration images or channels, or "
                "set quantize.float_layers"
            )
