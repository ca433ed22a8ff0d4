"""Statistics of paired outcomes, and of the distance between two sets of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from toolkit.core.quant import FloatArray

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def paired_drop(
    reference: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]
) -> tuple[float, tuple[float, float]]:
    """Drop of accuracy between two models on the same images, with its 95 % interval.

    Only images that one model gets right and the other wrong carry information. The interval is
    Tango's score interval replaced by its simple, well-behaved relative: Bonett and Price's
    adjusted Wald interval, which adds one outcome to each discordant cell.

    Args:
        reference: N outcomes of the reference, True where right.
        other: N outcomes of the other model on the same images.

    Returns:
        The drop in percentage points (positive: the other is worse) and its interval (low, high).

    Source:
        Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
        proportions based on paired data", J. Educ. Behav. Stat. 37(4), eq. 7.
    """
    n = len(reference)
    lost, won = int((reference & ~other).sum()), int((~reference & other).sum())
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    centre = p_lost - p_won
    half = Z95 * math.sqrt(max(p_lost + p_won - centre**2, 0.0) / (n + 2))
    return 100 * (lost - won) / n, (100 * max(centre - half, -1.0), 100 * min(centre + half, 1.0))


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
    return ordered[max(len(ordered) - 1 - int((1 - percent / 100) * len(ordered)), 0)]


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
