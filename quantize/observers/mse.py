"""The range with the least squared error."""

from __future__ import annotations

import numpy as np

from edgeship.quantization.observers import Magnitudes, clipped
from edgeship.toolkit.core.quant import QuantSpec, Range

STEPS = np.linspace(1.0, 0.2, 81)  # cuts that are tried, as parts of the largest magnitude


def observe(sample: Magnitudes, low: float, high: float, spec: QuantSpec) -> Range:
    """Cut where the squared error of rounding and clipping together is least.

    Rounding errors are uniform, so a value inside the range costs scale^2 / 12, and an exact zero
    nothing; a value beyond it costs the square of its distance.

    Source:
        Banner et al. 2019, arXiv:1810.05723, sec. 3, with the empirical distribution.
    """
    largest = max(-low, high)
    values = np.sort(np.abs(sample[sample != 0])).astype(np.float64)
    if not len(values) or largest <= 0:
        return Range((low,), (high,))
    cuts = largest * STEPS
    above = np.searchsorted(values, cuts, side="right")
    ones, sums, squares = (
        np.concatenate([np.cumsum(v[::-1])[::-1], [0.0]]) for v in (values**0, values, values**2)
    )
    clipping = squares[above] - 2 * cuts * sums[above] + cuts**2 * ones[above]
    error = clipping + above * (cuts / spec.quant_max) ** 2 / 12
    return clipped(float(cuts[error.argmin()]), low, high)
