"""Convert outputs of an engine to those an application reports, with the faults after the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.prove.faults import Fault

Kind = Literal["logits", "probabilities", "classes", "tensors"]
SAME_SCALE = 1.05  # largest factor of outputs that is no fault
_SMALLEST = 1e-12  # of a probability, before its logarithm


@dataclass(frozen=True, slots=True)
class Answers:
    """Outputs of an application on N images.

    Attributes:
        kind: Form of the values.
        values: (N, classes) of logits or probabilities, (N,) class indices, or (N, size) of input tensors.
    """

    kind: Kind
    values: Any


def softmax(values: FloatArray) -> FloatArray:
    """Return the softmax of each row."""
    powers = np.exp(values.astype(np.float64) - values.max(1, keepdims=True))
    result: FloatArray = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return result


def softmaxed(outputs: FloatArray) -> bool:
    """Return True for outputs of a graph that ends in a Softmax: shares of 1."""
    return bool((outputs >= 0).all() and np.abs(outputs.sum(1) - 1).max() < 1e-3)


def logits_of(outputs: FloatArray, *, softmaxed: bool) -> FloatArray:
    """Return outputs as logits, up to a constant of each row."""
    result: FloatArray = np.log(np.maximum(outputs, _SMALLEST)) if softmaxed else outputs
    return result


def reported(
    outputs: FloatArray, kind: Kind, fault: Fault | None, answers: Answers, *, softmaxed: bool
) -> FloatArray:
    """Return what an application reports for the outputs of an engine.

    Args:
        outputs: (N, classes).
        kind: Form of the report: logits or probabilities.
        fault: A fault after the engine; None: without one.
        answers: Outputs of the application, to which class order and scale are fitted.
        softmaxed: True for an engine whose outputs are probabilities.

    Returns:
        (N, classes).
    """
    right = softmax(outputs) if kind == "probabilities" and not softmaxed else outputs
    name = fault.name if fault else ""
    if name == "softmax-twice":
        return softmax(right)
    if name == "softmax-missing":
        return logits_of(outputs, softmaxed=softmaxed)
    if name == "class-order":
        return right[:, class_order(right, answers)]
    if name == "scale":
        return right * scale(right, answers)
    return right


def scale(right: FloatArray, answers: Answers) -> float:
    """Return the factor between the answers and the right outputs, by least squares; 1 if about 1."""
    a, b = centred(answers.values), centred(right)
    factor = float((a * b).sum() / max(float((b * b).sum()), 1e-30))
    return factor if factor > 0 and not 1 / SAME_SCALE < factor < SAME_SCALE else 1.0


def class_order(right: FloatArray, answers: Answers) -> IntArray:
    """Return the class (an index of the engine's outputs) at each position of the application's outputs.

    The assignment with the smallest squared difference (Kuhn 1955; SciPy's implementation by Crouse 2016).

    Args:
        right: (N, classes) outputs; log probabilities for answers that are classes.
        answers: Outputs of the application.
    """
    from scipy.optimize import linear_sum_assignment

    classes = right.shape[1]
    if answers.kind == "classes":
        gain = np.zeros((classes, classes))
        np.add.at(gain, answers.values, right)
        gain += np.eye(classes) * 1e-9  # positions without an image stay
    else:
        given = centred(answers.values)
        gain = given.T.astype(np.float64) @ centred(right) + np.eye(classes) * 1e-9
    order: IntArray = linear_sum_assignment(gain, maximize=True)[1].astype(np.int64)
    return order


def order_text(order: IntArray, labels: Sequence[str]) -> str:
    """Describe a class order: a known one, or its first differences."""
    classes = len(order)
    known = {
        "reversed": np.arange(classes)[::-1],
        "moved by one (a background class?)": np.roll(np.arange(classes), 1),
        "moved by one (a missing background class?)": np.roll(np.arange(classes), -1),
        "sorted by name": np.argsort(np.array(labels), kind="stable"),
        "sorted as text (0, 1, 10, 2)": np.argsort(np.arange(classes).astype(str), kind="stable"),
    }
    for text, permutation in known.items():
        if np.array_equal(order, permutation):
            return text
    moved = np.flatnonzero(order != np.arange(classes))
    shown = ", ".join(f"position {place} is {labels[order[place]]}" for place in moved[:4])
    return shown + (f" and {len(moved) - 4} more" if len(moved) > 4 else "")


def centred(values: Any) -> Any:
    """Return rows less their mean: softmax does not depend on it."""
    return values - values.mean(1, keepdims=True)
