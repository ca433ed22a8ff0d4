"""Prove an application: show images, compare its outputs, name the fault and its cost in accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeship.calibration.datasets import Dataset
from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit.core import progress, statistics
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.prove import diagnosis, outputs
from edgeship.toolkit.prove.diagnosis import Verdict
from edgeship.toolkit.prove.faults import CATALOGUE
from edgeship.toolkit.prove.outputs import Answers, Kind
from edgeship.toolkit.prove.pipeline import Faults, Pipeline

CHUNK = 64  # evaluation images in memory


@dataclass(frozen=True, slots=True)
class Cost:
    """Accuracy that a fault costs on evaluation images.

    Attributes:
        images: Number of images.
        top1: Fraction right without the fault.
        top1_fault: The same with it.
        drop_pp: Difference in percentage points; positive is a loss.
        drop_ci95_pp: Its 95 % interval, see `statistics.drop_interval`.
    """

    images: int
    top1: float
    top1_fault: float
    drop_pp: float
    drop_ci95_pp: tuple[float, float]


@dataclass(frozen=True, slots=True)
class FoundFault:
    """A fault: short names, description, and the lines to change; two for a combination."""

    names: tuple[str, ...]
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """Result of a comparison of an application with an engine.

    Attributes:
        verdict: `proved`: the same pixels; `fault`: `faults` explain the difference; `undecided`: classes of
            too few images; `unexplained`: another difference.
        faults: Explanations that these images cannot tell from each other, the best first.
        kind: Form of the outputs: logits, probabilities, classes or tensors.
        images: Number of images.
        agreement: Fraction of images with the engine's class; None for tensors.
        residual: Difference from the engine's outputs, relative; log-likelihood for classes.
        residual_left: The same under the first of `faults`.
        tolerance: Largest residual of a right application; for classes the log-likelihood ratio of a fault.
        invisible: Faults without effect on these images and this engine.
        not_excluded: Faults too small to be seen in these outputs -> images that would show them, if known.
        images_needed: Images that would decide an undecided case.
        cost: Accuracy that the first of `faults` costs; None without a fault, or not measured.
        cost_missing: Reason for which the cost of a fault was not measured.
    """

    verdict: Verdict
    faults: tuple[FoundFault, ...]
    kind: str
    images: int
    agreement: float | None
    residual: float
    residual_left: float | None
    tolerance: float
    invisible: tuple[str, ...]
    not_excluded: dict[str, int | None]
    images_needed: int | None
    cost: Cost | None = None
    cost_missing: str = ""

    @property
    def proved(self) -> bool:
        """Return True if the application sees the pixels of the report."""
        return self.verdict == "proved"


def prove(
    pipeline: Pipeline,
    answers: Answers,
    labels: Sequence[str],
    cost: Callable[[Faults, IntArray | None], tuple[Cost | None, str]],
) -> Proof:
    """Compare the outputs of an application with an engine.

    Args:
        pipeline: The engine and the images.
        answers: Outputs of the application.
        labels: Class names.
        cost: Function from faults to their cost, or the reason why there is none; see `cost_of`.
    """
    decided = diagnosis.diagnose(pipeline, answers)
    found = tuple(_found(faults, pipeline, answers, labels) for faults in decided.faults)
    measured, reason = None, ""
    if decided.verdict == "fault":
        ordered = any(fault.name == "class-order" for fault in decided.faults[0])
        measured, reason = cost(
            decided.faults[0], _order(decided.faults[0], pipeline, answers) if ordered else None
        )
    hidden: dict[str, int | None] = {}
    for fault, images in decided.hidden:
        hidden[fault.name] = max(hidden.get(fault.name) or 0, images or 0) or None
    shown = {fault.name for fault, _ in decided.hidden} | {name for each in found for name in each.names}
    unseen = dict.fromkeys(fault.name for fault in decided.invisible)
    visible = {fault.name for fault in pipeline.usable(CATALOGUE)} - {*unseen} | shown
    invisible = tuple(name for name in unseen if name not in visible)
    return Proof(
        decided.verdict, _merged(found), answers.kind, len(answers.values), decided.agreement,
        decided.residual, decided.left, decided.tolerance, invisible, hidden, decided.images_needed,
        measured, reason,
    )  # fmt: skip


def _found(faults: Faults, pipeline: Pipeline, answers: Answers, labels: Sequence[str]) -> FoundFault:
    titles = []
    for fault in faults:
        extra = ""
        if fault.name == "scale":
            extra = f" by {outputs.scale(_right(faults, pipeline, answers), answers):.4g}"
        elif fault.name == "class-order":
            extra = f": {outputs.order_text(_order(faults, pipeline, answers), labels)}"
        titles.append(fault.title + extra)
    lines = tuple(fault.advice(pipeline.how) for fault in faults)
    return FoundFault(tuple(fault.name for fault in faults), "; and ".join(titles), lines)


def _right(faults: Faults, pipeline: Pipeline, answers: Answers) -> FloatArray:
    """Return the outputs before a fault of the outputs, in the form of the answers."""
    raw = pipeline.outputs(tuple(each for each in faults if each.step != "outputs"))
    kind: Kind = "probabilities" if answers.kind == "probabilities" else "logits"
    return outputs.reported(raw, kind, None, answers, softmaxed=outputs.softmaxed(raw))


def _order(faults: Faults, pipeline: Pipeline, answers: Answers) -> IntArray:
    """Return the class at each position of the application's outputs."""
    return outputs.class_order(_right(faults, pipeline, answers), answers)


def _merged(found: Sequence[FoundFault]) -> tuple[FoundFault, ...]:
    """Return one entry for faults of one name: forms of a fault that have the same effect here."""
    merged: dict[tuple[str, ...], FoundFault] = {}
    for each in found:
        merged.setdefault(each.names, each)
    return tuple(merged.values())


def cost_of(
    faults: Faults,
    classifier: Classifier,
    dataset: Dataset,
    places: Sequence[int],
    order: IntArray | None = None,
) -> Cost:
    """Measure the accuracy that faults cost, image by image.

    Args:
        faults: The faults.
        classifier: The engine.
        dataset: Labelled evaluation images.
        places: Positions of those to use.
        order: Class at each position of the application's outputs, with a fault of the class order.

    Raises:
        DataError: An image cannot be read.
    """
    before = tuple(fault for fault in faults if fault.step != "outputs")
    right: list[IntArray] = []
    wrong: list[IntArray] = []
    for start in progress.track(range(0, len(places), CHUNK), "measuring the cost in accuracy"):
        part = places[start : start + CHUNK]
        names = [dataset.items[place].name for place in part]
        pipeline = Pipeline(classifier, [dataset.read(place) for place in part], names)
        right.append(pipeline.outputs(()).argmax(1))
        under = pipeline.outputs(before)
        wrong.append((under if order is None else under[:, order]).argmax(1))
    labels = dataset.labels[list(places)]
    was, now = (np.concatenate(rows) == labels for rows in (right, wrong))
    drop, interval = statistics.paired_drop(was, now)
    return Cost(len(labels), float(was.mean()), float(now.mean()), drop, interval)


def as_text(proof: Proof) -> list[str]:
    """Return a proof as lines for a terminal."""
    same = "" if proof.agreement is None else f", {proof.agreement:.1%} of classes agree"
    head = {
        "proved": "PROVED: the application sees the pixels of the report",
        "fault": "FAULT",
        "undecided": "UNDECIDED: the classes of these images do not decide",
        "unexplained": "DIFFERENT: no fault of the catalogue explains the outputs",
    }[proof.verdict]
    lines = [f"{head} ({proof.images} images, {proof.kind}{same})"]
    for index, each in enumerate(proof.faults):
        opening = "fault:   " if not index else "or:      "
        opening = "suspect: " if proof.verdict == "undecided" else opening
        lines.append(f"{opening} {each.title}")
        lines += [f"change:   {line}" for text in each.lines for line in text.splitlines()]
    if proof.cost is not None:
        low, high = proof.cost.drop_ci95_pp
        lines.append(
            f"cost:     {proof.cost.drop_pp:.2f} pp of top-1 [{low:.2f}, {high:.2f}], from "
            f"{proof.cost.top1:.2%} to {proof.cost.top1_fault:.2%} on {proof.cost.images} evaluation images"
        )
    elif proof.cost_missing:
        lines.append(f"cost:     not measured: {proof.cost_missing}")
    lines += _residuals(proof)
    if proof.verdict == "fault" and proof.kind != "classes" and (proof.residual_left or 0) > proof.tolerance:
        lines.append("rest:     another difference remains: change this, and prove it again")
    if proof.images_needed:
        lines.append(f"images:   about {proof.images_needed} would decide, or logits of these")
    if proof.not_excluded and proof.verdict in ("proved", "undecided"):
        shown = ", ".join(
            f"{name} (about {images} images)" if images else name
            for name, images in proof.not_excluded.items()
        )
        lines.append(f"too small to be excluded here: {shown}")
    if proof.invisible:
        lines.append(f"without effect on these images: {', '.join(proof.invisible)}")
    return lines


def _residuals(proof: Proof) -> list[str]:
    if proof.kind == "classes":
        return []
    left = "" if proof.residual_left is None else f", {proof.residual_left:.2%} with the fault"
    return [f"residual: {proof.residual:.2%}{left}; a right application has up to {proof.tolerance:.1%}"]
