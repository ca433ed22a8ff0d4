"""Check an FP32 baseline from logits and labels: chance level, confidence, class order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment, minimize_scalar

from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.quant import FloatArray, IntArray

OVERCONFIDENT = 0.5  # accuracy below this part of the mean confidence: overfitted networks stay above it
LEAST_GAIN = 0.05  # accuracy that another class order must restore: confusions of a weak network give less
LEAST_RESTORED = 0.6  # part of the mean confidence that the restored accuracy must reach
MOST_LOG_TEMPERATURE = 6.0
_SHIFTS = {1: "labels start one too low (a background class comes first)", -1: "labels start at 1, not at 0"}


@dataclass(frozen=True, slots=True)
class Baseline:
    """Accuracy of a float network against what chance and its own confidence predict.

    Attributes:
        images: Number of labelled images, N > 0.
        accuracy: Top-1 in [0, 1].
        interval: Its 95 % score interval.
        chance: Accuracy expected if predictions did not depend on the labels, with the same frequencies.
        confidence: Mean softmax probability of the first class.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    chance: float
    confidence: float

    @property
    def at_chance(self) -> bool:
        """Return True if the interval of the accuracy includes chance."""
        return self.interval[0] <= self.chance

    @property
    def overconfident(self) -> bool:
        """Return True if the whole interval is below half of the mean confidence."""
        return self.interval[1] < OVERCONFIDENT * self.confidence


@dataclass(frozen=True, slots=True)
class ClassOrder:
    """A permutation of the classes with which a network is right far more often.

    Attributes:
        outputs: Network output of each label.
        cause: The rule that the permutation follows; empty where it follows none that is tried.
        accuracy: Top-1 with it on the held-out half of the images.
        accuracy_stated: Top-1 of the labels as they are, on the same images.
        images: Images of that half.
    """

    outputs: tuple[int, ...]
    cause: str
    accuracy: float
    accuracy_stated: float
    images: int

    @property
    def moved(self) -> tuple[int, ...]:
        """Return the labels that the permutation moves."""
        return tuple(label for label, output in enumerate(self.outputs) if label != output)


def baseline(logits: FloatArray, labels: IntArray) -> Baseline:
    """Return accuracy, chance level and mean confidence of (N, classes) logits.

    Source:
        Chance: the expected agreement of Cohen 1960, Educ. Psychol. Meas. 20, 37-46. Interval: Wilson 1927.
    """
    predicted = logits.argmax(1)
    n = len(labels)
    classes = max(logits.shape[1], int(labels.max()) + 1)
    share_predicted = np.bincount(predicted, minlength=classes) / n
    share_labels = np.bincount(labels, minlength=classes) / n
    accuracy, low, high = statistics.wilson(int((predicted == labels).sum()), n)
    return Baseline(
        n,
        accuracy,
        (low, high),
        float(share_predicted @ share_labels),
        float(probabilities(logits).max(1).mean()),
    )


def find_class_order(logits: FloatArray, labels: IntArray, names: Sequence[str] = ()) -> ClassOrder | None:
    """Search a permutation of the classes that restores the accuracy.

    Half of the images of each class give the assignment that maximizes the probability of the labels; the
    other half validates it, against overfitting to random confusions. Usual orders (reversed, shifted
    by one, names sorted as text or by number) are preferred where they explain the images as well.

    Args:
        logits: (N, C) outputs.
        labels: N labels, below C.
        names: Class name of each label, for orders by name.

    Returns:
        The order; None where no other one is far better than the labels as they are.

    Source:
        Kuhn 1955, Nav. Res. Logist. Q. 2, 83-97 (assignment problem).
    """
    classes = logits.shape[1]
    count = max(int(labels.max()) + 1, len(names))
    if count > classes:
        return None
    first = _first_half(labels)
    predicted, truth = logits[~first].argmax(1), labels[~first]
    if not len(predicted):
        return None
    stated = predicted == truth
    assigned = _assignment(probabilities(logits[first]), labels[first], count)
    best, cause = assigned, ""
    right = assigned[truth] == predicted
    tolerance = np.sqrt(max(right.mean() * (1 - right.mean()), 1 / len(right)) / len(right))
    usual = {name: (order[truth] == predicted).mean() for name, order in _usual_orders(count, classes, names)}
    if usual:
        likely = max(usual, key=lambda name: usual[name])
        if usual[likely] >= right.mean() - 2 * tolerance:
            best, cause = dict(_usual_orders(count, classes, names))[likely], likely
            right = best[truth] == predicted
    gain = float(right.mean() - stated.mean())
    _, (_, highest) = statistics.paired_drop(stated, right)
    enough = LEAST_RESTORED * float(probabilities(logits[~first]).max(1).mean())
    if gain < LEAST_GAIN or highest >= 0 or right.mean() < enough:
        return None
    if not cause:  # accepted: fit small classes on all images
        best = _assignment(probabilities(logits), labels, count)
    outputs = tuple(int(output) for output in best)
    return ClassOrder(outputs, cause, float(right.mean()), float(stated.mean()), len(right))


def label_losses(logits: FloatArray, labels: IntArray) -> npt.NDArray[np.float64]:
    """Return the negative log-likelihood of each label, in nats, at the temperature that fits best.

    The temperature removes the scale of the logits, which depends on the scale of the input.

    Source:
        Guo et al. 2017, arXiv:1706.04599, sec. 4.2 (temperature scaling).
    """
    finite = np.nan_to_num(logits.astype(np.float64), nan=0.0, posinf=1e6, neginf=-1e6)
    shifted = finite - finite.max(1, keepdims=True)
    rows = np.arange(len(labels))

    def losses(log_temperature: float) -> npt.NDArray[np.float64]:
        scaled = shifted * np.exp(-log_temperature)
        result: npt.NDArray[np.float64] = np.log(np.exp(scaled).sum(1)) - scaled[rows, labels]
        return result

    bounds = (-MOST_LOG_TEMPERATURE, MOST_LOG_TEMPERATURE)
    fit = minimize_scalar(lambda value: losses(value).mean(), bounds=bounds, method="bounded")
    return losses(float(fit.x))


def paired_t(differences: npt.NDArray[np.float64]) -> float:
    """Return Student's t of N > 1 paired differences; 0 where all of them are 0."""
    spread = float(differences.std(ddof=1)) / np.sqrt(len(differences))
    return float(differences.mean()) / spread if spread > 0 else 0.0


def mutual_information(logits: FloatArray) -> float:
    """Return the mutual information of images and predicted classes, in nats: sure and varied is high.

    Source:
        Bridle, Heading and MacKay 1991, "Unsupervised classifiers, mutual information and phantom targets".
    """
    p = probabilities(logits)
    return _entropy(p.mean(0)) - float(np.mean([_entropy(row) for row in p]))


def probabilities(logits: FloatArray) -> npt.NDArray[np.float64]:
    """Return the softmax of (N, classes) logits; of logits that are not finite, equal probabilities."""
    with np.errstate(invalid="ignore"):
        shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
        p: npt.NDArray[np.float64] = np.exp(shifted)
        p /= p.sum(1, keepdims=True)
    return np.where(np.isfinite(p), p, 1 / p.shape[1])


def _entropy(p: npt.NDArray[np.float64]) -> float:
    return -float((p * np.log(np.maximum(p, 1e-300))).sum())


def _first_half(labels: IntArray) -> npt.NDArray[np.bool_]:
    """Mark every second image of each label."""
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[::2]] = True
    return mask


def _assignment(p: npt.NDArray[np.float64], labels: IntArray, count: int) -> IntArray:
    """Return the output of each of `count` labels with the highest total probability; in doubt, its own."""
    weight = np.zeros((count, p.shape[1]))
    np.add.at(weight, labels, p)
    weight[np.arange(count), np.arange(count)] += 1e-6
    _, columns = linear_sum_assignment(weight, maximize=True)
    outputs: IntArray = columns.astype(np.int64)
    return outputs


def _usual_orders(count: int, classes: int, names: Sequence[str]) -> list[tuple[str, IntArray]]:
    """Return the usual ways in which labels and outputs disagree: cause, and the output of each label."""
    labels = np.arange(count)
    orders = [("the order is reversed", labels[::-1])]
    orders += [(cause, (labels + step) % classes) for step, cause in _SHIFTS.items()]
    if len(names) == count:
        keys: dict[str, Callable[[str], Any]] = {
            "the outputs follow the names sorted by number": _natural,
            "the outputs follow the names sorted as text": str,
            "the outputs follow the names sorted without regard to capitals": str.casefold,
        }
        for cause, key in keys.items():
            order = np.empty(count, np.int64)
            order[sorted(range(count), key=lambda label: key(names[label]))] = labels
            orders.append((cause, order))
    return [(cause, order) for cause, order in orders if (order != labels).any()]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a natural sort key: 2 before 10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part]
