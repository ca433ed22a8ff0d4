"""How many calibration images are enough: the scale a quantizer would choose, against their number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeship.calibration.findings import Finding
from edgeship.toolkit.core.errors import DataError

_TOLERANCE = 0.02  # growth of a scale by twice the images that no longer matters


@dataclass(frozen=True, slots=True)
class Curve:
    """Scale against number of images.

    Attributes:
        images: Numbers of images: 1, 2, 4, ... and all.
        scale: Expected scale with so many images over that with all: mean over the tensors, in (0, 1].
        enough: The smallest of these numbers from which on twice as many images raise the scale by 2 % at
            most; None where the images are too few to tell.
    """

    images: tuple[int, ...]
    scale: tuple[float, ...]
    enough: int | None


def scale_curve(maxima: Iterable[npt.ArrayLike]) -> Curve:
    """Tell how the scale grows with the number of images.

    The expectation over all choices of n out of the N images is computed exactly, so the curve is smooth and
    does not depend on their order: the i-th smallest of N maxima is the largest of n with probability
    C(i - 1, n - 1) / C(N, n).

    Args:
        maxima: For every image the T largest magnitudes of the T tensors, or what else sets a scale.

    Raises:
        DataError: No image, or values that are negative or not finite.
    """
    rows = [np.asarray(row, np.float64).ravel() for row in maxima]
    if not rows or not all(np.isfinite(row).all() and (row >= 0).all() for row in rows):
        raise DataError(
            "activation maxima are missing, negative or not finite",
            hint="check the model for NaN and infinity, and that there are calibration images",
        )
    ordered = np.sort(np.stack(rows), axis=0)
    ordered = ordered[:, ordered[-1] > 0]  # a tensor that is always 0 has no scale
    if ordered.shape[1] == 0:
        return Curve((len(rows),), (1.0,), 1)
    ordered /= ordered[-1]
    total = len(rows)
    steps = [1 << power for power in range(total.bit_length()) if 1 << power < total] + [total]
    scale = {n: float(_expected_maximum(ordered, n).mean()) for n in steps}
    enough = None
    for n in reversed([n for n in steps if 2 * n in scale]):
        if scale[2 * n] > scale[n] * (1 + _TOLERANCE):
            break
        enough = n
    return Curve(tuple(steps), tuple(scale.values()), enough)


def judge(curve: Curve, network: str = "") -> Finding:
    """Say whether the calibration images are enough, for a network of that name."""
    total = curve.images[-1]
    named = f"the {network} network" if network else ""
    if curve.enough is not None:
        return Finding(
            "info",
            f"{curve.enough} calibration images set the scales{named and f' of {named}'} to within 2 %; "
            f"there are {total}",
        )
    return Finding(
        "warning",
        f"{total} calibration images are few{named and f' for {named}'}: half of them set scales only "
        f"{_at_half(curve):.0%} as large as all of them",
        "raise select.images",
    )


def _at_half(curve: Curve) -> float:
    return float(np.interp(curve.images[-1] / 2, curve.images, curve.scale))


def _expected_maximum(ordered: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float64]:
    """Mean over all choices of n of N rows of their largest, a column each; rows ascend."""
    total = len(ordered)
    falling = np.arange(total, n, -1)
    weights = n / total * np.cumprod(np.concatenate([[1.0], (falling - n) / (falling - 1)]))
    result: npt.NDArray[np.float64] = weights @ ordered[::-1][: len(weights)]
    return result
