"""Convergence of calibration statistics: how precisely the images seen so far determine them.

Clip points follow the mean excess of images beyond them, not the largest value of all images, which grows
with every outlier. So the pass may end when the mean peak of an image is known precisely; the sensitivity
that multiplies the excess comes from far fewer images.
"""

from __future__ import annotations

import numpy as np

from edgeship.toolkit.core.quant import FloatArray

PRECISION = 0.025  # relative standard error of the mean peak, mean over tensors
LEAST_IMAGES = 64
LEAST_PIXELS = 2**22  # 84 images at 224 px, 1,024 at 64 px: the fits take longer than a shorter pass


class Convergence:
    """Relative standard error of the mean image peak of every tensor.

    Source:
        Welford 1962, Technometrics 4(3), and its pairwise form in Chan et al. 1979, for the sums.
    """

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, np.zeros(0), np.zeros(0)

    def add(self, peaks: FloatArray) -> None:
        """Add the largest magnitudes of some images in T tensors, (N, T)."""
        mean, squares = peaks.mean(0, np.float64), peaks.var(0, np.float64) * len(peaks)
        if not self._count:
            self._count, self._mean, self._squares = len(peaks), mean, squares
            return
        total = self._count + len(peaks)
        difference = mean - self._mean
        self._squares = self._squares + squares + difference**2 * (self._count * len(peaks) / total)
        self._mean = self._mean + difference * (len(peaks) / total)
        self._count = total

    @property
    def error(self) -> float:
        """Return the relative standard error of the mean peak, mean over the tensors; inf for one image."""
        if self._count < 2:
            return float("inf")
        nonzero = self._mean > 0
        deviation = np.sqrt(self._squares[nonzero] / (self._count - 1) / self._count)
        return float((deviation / self._mean[nonzero]).mean()) if nonzero.any() else 0.0

    def reached(self, pixels: int) -> bool:
        """Return True if the statistics have converged; `pixels`: of one image."""
        enough = self._count >= LEAST_IMAGES and self._count * pixels >= LEAST_PIXELS
        return enough and self.error <= PRECISION
