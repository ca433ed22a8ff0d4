"""Estimate how many calibration images are enough from the growth of the scales."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.results import DataFinding

_TOLERANCE = 0.02  # negligible growth of a scale when the number of images doubles


@dataclass(frozen=True, slots=True)
class Curve:
    """Expected scale as a function of the number of images.

    Attributes:
        images: Numbers of images: 1, 2, 4, ... and all.
        scale: Expected scale relative to that with all images: mean over the tensors, in (0, 1].
        enough: Smallest of these numbers from which on doubling raises the scale by at most 2 %; None if
            there are too few images.
    """

    images: tuple[int, ...]
    scale: tuple[float, ...]
    enough: int | None


def scale_curve(maxima: Iterable[npt.ArrayLike]) -> Curve:
    """Compute the expected scale as a function of the number of images.

    The expectation over all choices of n of N images is exact, so the curve is smooth and independent of the
    order: the i-th smallest of N maxima is the largest of n with probability
    C(i - 1, n - 1) / C(N, n).

    Args:
        maxima: For every image the (T,) largest magnitudes of the T tensors.

    Raises:
        DataError: There is no image, or a value is negative or not finite.
    """
    rows = [np.asarray(row, np.float64).ravel() for row in maxima]
    if not rows or not all(np.isfinite(row).all() and (row >= 0).all() for row in rows):
        raise DataError(
            "activation maxima are missing, negative or not finite",
            hint="check the model for NaN and infinity, and that there are calibration images",
        )
    ordered = np.sort(np.stack(rows), axis=0)
    ordered = ordered[:, ordered[-1] > 0]  # constant 0: no scale
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


def sample_size_finding(curve: Curve, selected: int, network: str = "") -> DataFinding:
    """Return a finding: the calibration images are enough (info) or too few (warning).

    Args:
        curve: Scales of the images that were run.
        selected: Number of selected images; more than were run if the statistics converged before.
        network: Name of the network.
    """
    total = curve.images[-1]
    named = f"the {network} network" if network else ""
    if total < selected:
        return DataFinding(
            "info",
            f"the statistics{named and f' of {named}'} converged after {total} of {selected} calibration "
            "images; the others were not run (calibrate.early_stop)",
        )
    if curve.enough is not None:
        return DataFinding(
            "info",
            f"{curve.enough} calibration images set the scales{named and f' of {named}'} to within 2 %; "
            f"there are {total}",
        )
    return DataFinding(
        "warning",
        f"{total} calibration images are few{named and f' for {named}'}: half of them set scales only "
        f"{_at_half(curve):.0%} as large as all of them",
        "raise select.images",
    )


def _at_half(curve: Curve) -> float:
    return float(np.interp(curve.images[-1] / 2, curve.images, curve.scale))


def _expected_maximum(ordered: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float64]:
    """Return the expected column maxima of n of N rows; the columns are sorted ascending."""
    total = len(ordered)
    falling = np.arange(total, n, -1)
    weights = n / total * np.cumprod(np.concatenate([[1.0], (falling - n) / (falling - 1)]))
    result: npt.NDArray[np.float64] = weights @ ordered[::-1][: len(weights)]
    return result
