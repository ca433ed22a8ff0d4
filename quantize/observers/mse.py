"""MSE observer: range of least squared error."""

from __future__ import annotations

import numpy as np

from edgeship.quantization.observers import clipped
from edgeship.quantization.statistics import TensorStatistics
from edgeship.toolkit.core.quant import QuantSpec, Range

STEPS = np.linspace(1.0, 0.2, 81)  # candidate cuts, as fractions of the largest magnitude


def observe(tensor: TensorStatistics, spec: QuantSpec) -> Range:
    """Clip at the magnitude of least squared error of rounding plus clipping.

    Rounding errors are uniform: a nonzero value inside the range has the squared error scale^2 / 12, an exact
    zero none; a value outside has its squared distance from the range.

    Source:
        Banner et al. 2019, arXiv:1810.05723, sec. 3, with the empirical distribution.
    """
    sample, largest = tensor.sample.ravel(), tensor.largest
    values = np.sort(np.abs(sample[sample != 0])).astype(np.float64)
    if not len(values) or largest <= 0:
        return Range((tensor.lowest,), (tensor.highest,))
    cuts = largest * STEPS
    above = np.searchsorted(values, cuts, side="right")
    ones, sums, squares = (
        np.concatenate([np.cumsum(v[::-1])[::-1], [0.0]]) for v in (values**0, values, values**2)
    )
    clipping = squares[above] - 2 * cuts * sums[above] + cuts**2 * ones[above]
    error = clipping + above * (cuts / spec.quant_max) ** 2 / 12
    return clipped(float(cuts[error.argmin()]), tensor)
