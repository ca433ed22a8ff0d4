"""Statistics of paired outcomes, and of the distance between two sets of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from toolkit.core.quant import FloatArray

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
T95_9 = 2.2621571627409915  # that of Student's t with 9 degrees of freedom: ten batch medians
NOISY = 0.05  # `variation` above which a latency is called noisy
FEWEST_RUNS = 50  # timings of which a median has an interval: five in each batch


def paired_drop(
    reference: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]
) -> tuple[float, tuple[float, float]]:
    """Drop of accuracy between two models on the same images, with its 95 % interval.

    Only images that one model gets right and the other wrong carry information. The interval is
    Tango's: every drop that the score test does not reject. It holds when hardly any image changes,
    and it leaves out zero exactly when McNemar's chi-squared test is significant.

    Args:
        reference: N > 0 outcomes of the reference, True where right.
        other: N outcomes of the other model on the same images.

    Returns:
        The drop in percentage points (positive: the other is worse) and its interval (low, high).

    Source:
        Tango 1998, "Equivalence test and confidence interval for the difference in proportions for
        the paired-sample design", Statist. Med. 17, 891-908; recommended by Fagerland, Lydersen and
        Laake 2014, Statist. Med. 33, 2850-2875.
    """
    n = len(reference)
    lost, won = int((reference & ~other).sum()), int((~reference & other).sum())
    drop = (lost - won) / n
    low, high = (_tango_bound(lost, won, n, end) for end in (-1.0, 1.0))
    return 100 * drop, (100 * low, 100 * high)


def _tango_bound(lost: int, won: int, n: int, outside: float) -> float:
    """The drop on the side of `outside` at which the score test starts to reject, by bisection."""
    inside = (lost - won) / n
    for _ in range(60):
        middle = (inside + outside) / 2
        # Largest-likelihood probability of a won image if the drop were `middle`: the root of a quadratic.
        b = (2 * n - lost + won) * middle - lost - won
        root = (math.sqrt(b * b + 8 * n * won * middle * (1 - middle)) - b) / (4 * n)
        spread = math.sqrt(max(n * (2 * root + middle * (1 - middle)), 1e-300))
        if abs(lost - won - n * middle) / spread < Z95:
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p-value that two models err equally often, from the images only one gets right.

    Args:
        lost: Images that only the first model gets right.
        won: Images that only the second gets right.

    Source:
        McNemar 1947, Psychometrika 12(2), 153-157; the exact form is the binomial test of `lost` out of
        `lost + won` at one half.
    """
    n = lost + won
    log_all = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(min(lost, won) + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(term - n * math.log(2)) for term in log_all))


def unpaired_difference(right_a: int, n_a: int, right_b: int, n_b: int) -> tuple[float, tuple[float, float]]:
    """Accuracy a minus accuracy b on different images, in percentage points, with its 95 % interval.

    Source:
        Newcombe 1998, Statist. Med. 17, 873-890, method 10 (from two Wilson intervals).
    """
    (a, low_a, high_a), (b, low_b, high_b) = _wilson(right_a, n_a), _wilson(right_b, n_b)
    low = a - b - math.hypot(a - low_a, high_b - b)
    high = a - b + math.hypot(high_a - a, b - low_b)
    return 100 * (a - b), (100 * low, 100 * high)


def _wilson(right: int, n: int) -> tuple[float, float, float]:
    """A proportion and its 95 % score interval."""
    p, z2 = right / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return p, centre - half, centre + half


def expected_calibration_error(
    confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, weighted by their images.

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
    """Coefficient of variation of the middle 90 % of samples: standard deviation over mean.

    A rare pause of the system says nothing about the run, so 5 % at either end are left out. Of nothing
    but zeros it is 0.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    cut = len(ordered) // 20
    middle = ordered[cut : len(ordered) - cut]
    mean = float(middle.mean())
    return float(middle.std()) / mean if mean > 0 else 0.0


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the median of timings that depend on each other, by batch medians.

    The samples are cut, in order, into ten runs; the spread of their medians holds the slow drift
    (clocks, neighbours) that an interval for independent samples would miss.

    Returns:
        Low and high, in the unit of the samples; None for fewer than `FEWEST_RUNS` samples.

    Source:
        The batch means method, Law 2014, "Simulation Modeling and Analysis", sec. 9.5.3.
    """
    if len(samples) < FEWEST_RUNS:
        return None
    medians = [float(np.median(part)) for part in np.array_split(np.asarray(samples, np.float64), 10)]
    half = T95_9 * float(np.std(medians, ddof=1)) / math.sqrt(10)
    centre = float(np.median(samples))
    return centre - half, centre + half


def agreement(reference: FloatArray, other: FloatArray) -> float:
    """Fraction of N images on which two (N, classes) logits have the same first class."""
    return float((reference.argmax(1) == other.argmax(1)).mean())


def sqnr_db(reference: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Signal to quantization noise ratio: power of the reference over that of the difference, in dB."""
    signal = np.asarray(reference, np.float64)
    noise = signal - np.asarray(other, np.float64)
    power, error = float((signal**2).sum()), float((noise**2).sum())
    if error == 0.0:
        return math.inf
    return 10 * math.log10(power / error) if power > 0 else -math.inf


def kl_divergence(reference: FloatArray, other: FloatArray) -> float:
    """Mean KL(softmax(reference) || softmax(other)) over N images, in nats."""
    log_p, log_q = _log_softmax(reference), _log_softmax(other)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def percentile(samples: Sequence[float], percent: float) -> float:
    """Percentile by trtexec's rule: the value at index max(N - 1 - int((1 - p/100) N), 0) of N sorted."""
    ordered = sorted(samples)
    cut = int((100 - percent) * len(ordered) / 100)  # exact for whole percents: no rounding decides the index
    return ordered[max(len(ordered) - 1 - cut, 0)]


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
