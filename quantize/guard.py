"""Set the threshold of guarded INT8: the margin up to which an image runs again in the reference.

A flip is an image whose class is not that of FP32. With the threshold t an image with an INT8 margin of at
most t has the reference's class, any other that of INT8. On n images without labels the flips that t leaves
are counted; t is the smallest threshold with `allowed_flips` of them at most. Conformal risk control bounds
the expected share of flips of a new image by (flips left + 1) / (n + 1) if it is exchangeable with the n
images: the bound is a mean over draws of these images. With one draw, the share that is left is at most a
quantile of the beta distribution of an order statistic.

Sources:
    Angelopoulos et al. 2022, "Conformal Risk Control", arXiv:2208.02814, theorem 1 (B = 1).
    Vovk 2012, "Conditional validity of inductive conformal predictors", arXiv:1209.2673, proposition 2a.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.guard_results import Threshold
from edgeship.toolkit.core.quant import FloatArray

CONFIDENCE = 0.95  # of the bound for one draw
ROUNDING = 1e-9  # relative: 1e-4 * 10,000 is 1


def fewest_images(max_flips: float) -> int:
    """Return the number of images without which no threshold has this bound: 1 / max_flips - 1."""
    return max(math.ceil((1 - ROUNDING) / max_flips) - 1, 1)


def allowed_flips(max_flips: float, images: int) -> int:
    """Return the number of flips among the images that a threshold may leave; negative: too few images."""
    return math.floor(max_flips * (images + 1) * (1 + ROUNDING)) - 1


def check_enough(max_flips: float, images: int, source: str) -> None:
    """Check that a number of images supports a bound.

    Raises:
        RecipeError: It does not; the message has the least bound that it supports.
    """
    if allowed_flips(max_flips, images) < 0:
        raise RecipeError(
            f"guard.max_flips = {max_flips:g} needs {fewest_images(max_flips)} images, {source} has {images} "
            f"for it: their least bound is 1 in {images + 1}",
            hint=f"give more images as guard.source, or set guard.max_flips={least_bound(images):.2g}",
        )


def least_bound(images: int) -> float:
    """Return the least bound that images support, 1 / (n + 1), rounded up to two significant digits."""
    bound = 1 / (images + 1)
    step = 10.0 ** (math.floor(math.log10(bound)) - 1)
    return math.ceil(bound / step * (1 - ROUNDING)) * step


def set_threshold(
    margins: FloatArray,
    flips: npt.NDArray[np.bool_],
    reference_flips: npt.NDArray[np.bool_],
    max_flips: float,
    source: str = "the source",
) -> Threshold:
    """Return the smallest threshold whose bound is at most `max_flips`.

    An image that the reference flips counts as a flip at every threshold, so that the count never rises with
    the threshold, as the theorem requires.

    Args:
        margins: (N,) INT8 margins: largest logit minus the second.
        flips: (N,) True where INT8 has another class than FP32.
        reference_flips: (N,) the same of the reference; never True if it is FP32.
        max_flips: Largest expected share of flips.
        source: Name of the images, for messages.

    Raises:
        RecipeError: The images are too few, or the reference flips too many of them.
    """
    count = len(margins)
    check_enough(max_flips, count, source)
    allowed = allowed_flips(max_flips, count)
    always = int(reference_flips.sum())
    if always > allowed:
        raise RecipeError(
            f"the reference itself flips {always} of {count} images, and guard.max_flips = {max_flips:g} "
            f"allows {allowed}",
            hint="set guard.reference=fp32",
        )
    ordered = np.sort(margins[flips & ~reference_flips])[::-1]
    candidates = [*ordered, np.float32(-1.0)]  # a margin is never negative: -1 reruns nothing
    margin = float(candidates[min(allowed - always, len(ordered))])
    left = always + int((ordered > margin).sum())
    return Threshold(
        threshold=margin,
        bound=(left + 1) / (count + 1),
        bound95=_beta_quantile(left, count),
        images=count,
        flips=int(flips.sum()),
        left=left,
        rerun_share=float((margins <= margin).mean()),
    )


def _beta_quantile(left: int, count: int) -> float:
    """Return the share that one draw exceeds with 5 %: a quantile of Beta(left + 1, count - left)."""
    from scipy import special

    return float(special.betaincinv(left + 1, count - left, CONFIDENCE))
