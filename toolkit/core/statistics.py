"""Compute statistics of paired outcomes, logits and timings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core.quant import FloatArray

TAIL = 0.025  # of either side of a 95 % interval
NODES, WEIGHTS = (points / 2 for points in np.polynomial.legendre.leggauss(64))
NODES = NODES + 0.5  # quadrature over [0, 1]
MOST_IMAGES = 10_000_000  # more would not be labelled to settle a verdict
T95_9 = 2.2621571627409915  # that of Student's t with 9 degrees of freedom: ten batch medians
NOISY = 0.05  # `variation` above which a latency is called noisy
FEWEST_TAIL_RUNS = 1000  # timings of which p99 has an interval: a hundred in each batch
FEWEST_RUNS = 50  # timings of which a median has an interval: five in each batch


def paired_drop(
    reference: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]
) -> tuple[float, tuple[float, float]]:
    """Return the drop of accuracy between two models on the same images, with its 95 % interval.

    Only images that one model gets right and the other wrong carry information; see `drop_interval`.

    Args:
        reference: N > 0 outcomes of the reference, True where right.
        other: N outcomes of the other model on the same images.

    Returns:
        The drop in percentage points (positive: the other is worse) and its interval (low, high).
    """
    n = len(reference)
    lost, won = int((reference & ~other).sum()), int((~reference & other).sum())
    return 100 * (lost - won) / n, drop_interval(lost, won, n)


@functools.lru_cache(maxsize=4096)  # the classes of a report share few counts
def drop_interval(lost: float, won: float, images: float) -> tuple[float, float]:
    """Return the exact 95 % interval of a paired drop of accuracy, in percentage points.

    The drop is T (2 B - 1): T the share of images whose outcome changed, B the share of these that were lost.
    The Clopper-Pearson distributions of T and B are multiplied. Either bound errs in at most 2.5 % of
    cases, also for a handful of changed images, where score intervals (Tango 1998) err in more than 5 %. The
    interval leaves out zero exactly when McNemar's exact test is significant.

    Args:
        lost: Images that only the reference gets right; fractions extrapolate a rate to other sizes.
        won: Images that only the other model gets right.
        images: All images, at least lost + won.

    Source:
        Fay and Lumbard 2021, "Confidence intervals for difference in proportions for matched pairs
        compatible with exact McNemar's or sign tests", Statist. Med. 40, 1147-1159.
    """
    return 100 * _lower_drop(lost, won, images), -100 * _lower_drop(won, lost, images)


def _lower_drop(lost: float, won: float, images: float) -> float:
    """Return the 2.5 % quantile of T (2 B - 1) as a fraction: by quadrature over B and bisection."""
    from scipy import special

    changed = lost + won
    if not lost:  # B is 0
        return (
            -float(special.betaincinv(changed + 1, images - changed, 1 - TAIL)) if changed < images else -1.0
        )
    balance = 2 * special.betaincinv(lost, won + 1, NODES) - 1
    positive = bool(special.betainc(lost, won + 1, 0.5) < TAIL)  # McNemar's exact test
    if changed == images and not positive:  # T is 1
        return 2 * float(special.betaincinv(lost, won + 1, TAIL)) - 1
    # The bound is lowest for the smallest T where it is positive, and for the largest T where it is not.
    a, b = (changed, images - changed + 1) if positive else (changed + 1, images - changed)

    def probability(bound: float) -> float:
        """Return the probability of T (2 B - 1) <= bound, of the bound's sign."""
        share = np.clip(bound / np.where(balance == 0, np.inf, balance), 0, 1)
        below = special.betainc(a, b, share)
        part = np.where(balance > 0, below, 1) if positive else np.where(balance < 0, 1 - below, 0)
        return float(WEIGHTS @ part)

    low, high = (0.0, 1.0) if positive else (-1.0, 0.0)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < TAIL else (low, middle)
    return (low + high) / 2


def images_to_decide(lost: int, won: int, images: int, limit_pp: float) -> int | None:
    """Return the number of images at which the interval of a drop no longer holds a limit.

    Args:
        lost: Images that only the reference gets right, of `images`; the rates are taken to stay.
        won: Images that only the other model gets right.
        images: Images of the measurement.
        limit_pp: The limit, in percentage points.

    Returns:
        Two significant digits, rounded up; None where even `MOST_IMAGES` do not decide.
    """
    below = 100 * (lost - won) / images <= limit_pp

    def decided(factor: float) -> bool:
        low, high = drop_interval(factor * lost, factor * won, factor * images)
        return high <= limit_pp if below else low > limit_pp

    few, many = 1.0, 2.0
    while not decided(many):
        few, many = many, 2 * many
        if many * images > MOST_IMAGES:
            return None
    while many - few > 0.01 * few:
        middle = (few + many) / 2
        few, many = (few, middle) if decided(middle) else (middle, many)
    step: int = 10 ** max(math.floor(math.log10(many * images)) - 1, 0)
    return step * math.ceil(many * images / step)


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided exact p-value of equal error rates, from images that one model gets right.

    Args:
        lost: Images that only the first model gets right.
        won: Images that only the second gets right.

    Source:
        McNemar 1947, Psychometrika 12(2), 153-157; the exact form is the binomial test of `lost` out of
        `lost + won` at one half.
    """
    from scipy import special

    return min(1.0, 2 * float(special.bdtr(min(lost, won), lost + won, 0.5)))


def unpaired_difference(right_a: int, n_a: int, right_b: int, n_b: int) -> tuple[float, tuple[float, float]]:
    """Return accuracy a minus accuracy b on different images, in percentage points, with its 95 % interval.

    Source:
        Newcombe 1998, Statist. Med. 17, 873-890, method 10 (from two Wilson intervals).
    """
    (a, low_a, high_a), (b, low_b, high_b) = wilson(right_a, n_a), wilson(right_b, n_b)
    low = a - b - math.hypot(a - low_a, high_b - b)
    high = a - b + math.hypot(high_a - a, b - low_b)
    return 100 * (a - b), (100 * low, 100 * high)


def wilson(right: int, n: int) -> tuple[float, float, float]:
    """Return a proportion and its 95 % score interval (low, high)."""
    from scipy import stats

    interval = stats.binomtest(right, n).proportion_ci(method="wilson")
    return right / n, float(interval.low), float(interval.high)


def rate_interval(count: int, n: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a rate (low, high), `count` of n.

    Source:
        Clopper and Pearson 1934, Biometrika 26, 404-413.
    """
    from scipy import stats

    interval = stats.binomtest(count, n).proportion_ci(method="exact")
    return float(interval.low), float(interval.high)


def expected_calibration_error(
    confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], bins: int = 15
) -> float:
    """Return the mean gap of confidence and accuracy over bins of equal width, weighted by images.

    Args:
        confidence: N probabilities of the first class.
        right: N outcomes.
        bins: Bins of equal width over [0, 1]; a bin holds its upper edge.

    Source:
        Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, confidence - right, bins)
    return float(np.abs(gap).sum() / len(confidence))


def variation(samples: Sequence[float]) -> float:
    """Return the coefficient of variation of the middle 90 % of samples: standard deviation over mean.

    5 % at either end are trimmed, against rare pauses of the system. 0 for samples that are all 0.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    cut = len(ordered) // 20
    middle = ordered[cut : len(ordered) - cut]
    mean = float(middle.mean())
    return float(middle.std()) / mean if mean > 0 else 0.0


def batch_interval(
    samples: Sequence[float],
    statistic: Callable[[Any], Any] = np.median,
    fewest: int = FEWEST_RUNS,
) -> tuple[float, float] | None:
    """Return the 95 % interval of a statistic of autocorrelated timings, by ten batches.

    The samples are cut, in order, into ten runs; the spread of their statistics holds the slow drift
    (clocks, neighbours) that an interval for independent samples would miss.

    Args:
        samples: The timings, in order.
        statistic: The median, the mean or another function from samples to a number.
        fewest: Samples of which there is an interval.

    Returns:
        Low and high, in the unit of the samples and within them; None for fewer than `fewest` samples.

    Source:
        The batch means method, Law 2014, "Simulation Modeling and Analysis", sec. 9.5.3.
    """
    if len(samples) < fewest:
        return None
    values = [float(statistic(part)) for part in np.array_split(np.asarray(samples, np.float64), 10)]
    half = T95_9 * float(np.std(values, ddof=1)) / math.sqrt(10)
    centre = float(statistic(samples))
    return max(centre - half, min(samples)), min(centre + half, max(samples))


def agreement(reference: FloatArray, other: FloatArray) -> float:
    """Return the fraction of N images on which two (N, classes) logits have the same first class."""
    return float((reference.argmax(1) == other.argmax(1)).mean())


def sqnr_db(reference: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Return the signal to quantization noise ratio in dB: power of the reference over that of the error."""
    signal = np.asarray(reference, np.float64)
    noise = signal - np.asarray(other, np.float64)
    power, error = float((signal**2).sum()), float((noise**2).sum())
    if error == 0.0:
        return math.inf
    return 10 * math.log10(power / error) if power > 0 else -math.inf


def kl_divergence(reference: FloatArray, other: FloatArray) -> float:
    """Return the mean KL(softmax(reference) || softmax(other)) over N images, in nats."""
    log_p, log_q = _log_softmax(reference), _log_softmax(other)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the percentile by trtexec's rule: index max(N - 1 - int((1 - p/100) N), 0) of N sorted."""
    ordered = sorted(samples)
    cut = int((100 - percent) * len(ordered) / 100)  # exact for whole percents: no rounding decides the index
    return ordered[max(len(ordered) - 1 - cut, 0)]


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
