"""Decide which fault explains the outputs of an application, or that none is needed.

Outputs of numbers (logits, probabilities, input tensors): the relative residual of a hypothesis is the norm
of the difference from its prediction, over the norm of the right outputs (rows less their mean). A right
pipeline on another runtime leaves at most `JITTERS` times the residual of pixels moved by one level. A fault
is named if it leaves at most half of the residual of a right pipeline.

Classes: the likelihood of an answer is softmax(logits / noise), mixed with 1 % of anything; the noise is that
of pixels moved by one level. A fault is named by a likelihood ratio of `SURE`, which a right pipeline reaches
in less than 1 / SURE of cases for each fault (Royall 1997, "Statistical Evidence", sec. 1.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.prove import outputs
from edgeship.toolkit.prove.faults import CATALOGUE, Fault
from edgeship.toolkit.prove.outputs import Answers
from edgeship.toolkit.prove.pipeline import Faults, Pipeline

Verdict = Literal["proved", "fault", "undecided", "unexplained"]
JITTERS = 3.0  # residual of a right pipeline, in those of pixels moved by one level
LEAST_TOLERANCE = 0.01  # FP16 runtimes; INT8 engines on other runtimes
EXACT = 1e-6  # relative residual below which outputs are equal
BETTER = 0.5  # residual that a fault leaves, of that without it
MOSTLY = 0.25  # the same for a fault that leaves a difference unexplained
SURE, SUSPECT, EXCLUDED = 1e6, 1e4, 100.0  # likelihood ratios to name, suspect and exclude a fault
ODD = 0.01  # share of answers that are wrong for any reason
FEW, KEPT = 16, 8  # images of the first look at pairs, and pairs that stay
MOST_IMAGES = 1_000_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """Faults, the relative residual (or log-likelihood) that they leave, and their effect on the outputs."""

    faults: Faults
    residual: float
    effect: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The decision.

    Attributes:
        verdict: `proved`; `fault`; `undecided` (classes of too few images: a fault is suspected, or fewer
            than half of the faults are excluded); `unexplained`.
        faults: Hypotheses that explain the outputs and these images do not separate, best first.
        residual: Relative residual (log-likelihood of classes) of a right pipeline.
        left: The same under the first of `faults`; None without one.
        tolerance: Largest residual of a right pipeline.
        agreement: Share of images with the reference's class; None for tensors.
        invisible: Faults without effect on these images.
        hidden: Faults that these outputs do not exclude, with the number of images that would (classes only).
        images_needed: Images that would decide; None if decided or unknown.
    """

    verdict: Verdict
    faults: tuple[Faults, ...]
    residual: float
    left: float | None
    tolerance: float
    agreement: float | None
    invisible: tuple[Fault, ...]
    hidden: tuple[tuple[Fault, int | None], ...]
    images_needed: int | None = None


def diagnose(pipeline: Pipeline, answers: Answers, catalogue: Sequence[Fault] = CATALOGUE) -> Diagnosis:
    """Return the decision on the outputs of an application.

    Args:
        pipeline: The engine and the images.
        answers: Outputs of the application, a row for each image.
        catalogue: The faults.

    Raises:
        DataError: The application gives different images equal numbers.
    """
    values = answers.values
    if answers.kind in ("logits", "tensors") and len(values) > 1 and (values == values[0]).all():
        reference = pipeline.inputs(())
        if (reference != reference[0]).any():
            raise DataError(
                f"the {answers.kind} of all {len(values)} images are equal",
                hint="check that the application reads the image that it is given",
            )
    return _diagnose_classes(pipeline, answers, catalogue) if answers.kind == "classes" else _Values(
        pipeline, answers, catalogue
    ).decide()  # fmt: skip


class _Values:
    """Diagnosis of logits, probabilities or tensors."""

    def __init__(self, pipeline: Pipeline, answers: Answers, catalogue: Sequence[Fault]) -> None:
        self.pipeline, self.answers = pipeline, answers
        self.tensors = answers.kind == "tensors"
        self.faults = _possible(pipeline, answers, catalogue)
        self.softmaxed = not self.tensors and outputs.softmaxed(pipeline.outputs(()))
        self.right = self.predict(())
        self.size = float(np.linalg.norm(self.right)) or 1.0

    def predict(self, faults: Faults, count: int | None = None) -> Any:
        """Return the outputs (N, ...) that an application with these faults reports, rows less their mean."""
        before, after = _parts(faults)
        if self.tensors:
            inputs = self.pipeline.inputs(before, slice(0, count))
            return inputs.reshape(len(inputs), -1).astype(np.float32)
        given = self.answers if count is None else Answers(self.answers.kind, self.answers.values[:count])
        return self.reported(self.pipeline.outputs(before)[:count], after, given)

    def reported(self, raw: FloatArray, after: Fault | None, given: Answers) -> Any:
        return outputs.centred(outputs.reported(raw, given.kind, after, given, softmaxed=self.softmaxed))

    def candidate(self, faults: Faults) -> Candidate:
        predicted = self.predict(faults)
        return Candidate(faults, self.distance(predicted, self.given), self.distance(predicted, self.right))

    @property
    def given(self) -> Any:
        return self.answers.values if self.tensors else outputs.centred(self.answers.values)

    def distance(self, one: Any, other: Any) -> float:
        """Return the norm of a difference, relative to the right outputs."""
        return float(np.linalg.norm((one - other).astype(np.float64))) / self.size

    def decide(self) -> Diagnosis:
        if self.tensors:
            moved = self.pipeline.jittered().reshape(len(self.given), -1).astype(np.float32)
        else:
            moved = self.reported(self.pipeline.jittered_outputs, None, self.answers)
        tolerance = max(JITTERS * self.distance(moved, self.right), LEAST_TOLERANCE)
        clean = self.distance(self.given, self.right)
        singles = sorted((self.candidate((fault,)) for fault in self.faults), key=lambda each: each.residual)
        visible = [each for each in singles if each.effect > EXACT]
        invisible = tuple(
            each.faults[0] for each in singles if each.effect <= EXACT and _parts(each.faults)[0]
        )
        chosen: Candidate | None = None
        if clean > EXACT and visible:
            chosen = self.choose(visible, clean, tolerance)
        group = self.group(chosen, visible) if chosen else ()
        hidden = (
            () if chosen else tuple((each.faults[0], None) for each in visible if each.effect < 2 * clean)
        )
        verdict: Verdict = "fault" if chosen else "proved" if clean <= tolerance else "unexplained"
        if verdict == "unexplained":
            hidden = ()
        agreement = None if self.tensors else self.agreement()
        return Diagnosis(
            verdict,
            group,
            clean,
            chosen.residual if chosen else None,
            tolerance,
            agreement,
            invisible,
            hidden,
        )

    def choose(self, singles: list[Candidate], clean: float, tolerance: float) -> Candidate | None:
        """Return the hypothesis that explains the outputs; None: no fault is needed, or none explains."""
        best = singles[0]
        if best.residual <= min(tolerance, BETTER * clean):
            return best
        if clean <= tolerance:
            return None
        pair = self.best_pair(singles)
        if pair and pair.residual <= min(tolerance, BETTER * best.residual):
            return pair
        if best.residual <= MOSTLY * clean:
            return best
        if pair and pair.residual <= min(MOSTLY * clean, BETTER * best.residual):
            return pair
        return None

    def best_pair(self, singles: list[Candidate]) -> Candidate | None:
        """Return the two faults with the smallest residual; few images choose those to try on all."""
        few = slice(0, FEW)
        part = _Values(
            self.pipeline.part(few), Answers(self.answers.kind, self.answers.values[few]), self.faults
        )
        pairs = _pairs(each.faults[0] for each in singles)
        ranked = sorted(pairs, key=lambda pair: part.distance(part.predict(pair), part.given))[:KEPT]
        return min((self.candidate(pair) for pair in ranked), key=lambda each: each.residual, default=None)

    def group(self, best: Candidate, singles: list[Candidate]) -> tuple[Faults, ...]:
        """Return the best hypothesis and those that predict the same within its residual."""
        if len(best.faults) > 1:
            return (best.faults,)
        wanted = self.predict(best.faults)
        near = max(2 * best.residual, EXACT)
        others = [each for each in singles if each.residual <= best.residual + near and each is not best]
        close = [each.faults for each in others if self.distance(self.predict(each.faults), wanted) <= near]
        return (best.faults, *close)

    def agreement(self) -> float:
        raw = self.pipeline.outputs(())
        return float((raw.argmax(1) == np.asarray(self.answers.values).argmax(1)).mean())


def _diagnose_classes(pipeline: Pipeline, answers: Answers, catalogue: Sequence[Fault]) -> Diagnosis:
    """Decide by the likelihood of classes."""
    raw = pipeline.outputs(())
    softmaxed = outputs.softmaxed(raw)
    given: npt.NDArray[np.int64] = answers.values
    rows = np.arange(len(given))
    right = outputs.centred(outputs.logits_of(raw, softmaxed=softmaxed))
    moved = outputs.centred(outputs.logits_of(pipeline.jittered_outputs, softmaxed=softmaxed))
    noise = max(float((moved - right).std()), 1e-3 * float(right.std()), 1e-12)

    def logs(faults: Faults) -> FloatArray:
        """Return the log probability (N, classes) of each answer."""
        before, after = _parts(faults)
        values = outputs.logits_of(pipeline.outputs(before), softmaxed=softmaxed)
        share = (1 - ODD) * outputs.softmax(values / noise) + ODD / values.shape[1]
        result: FloatArray = np.log(share)
        return result[:, outputs.class_order(result, answers)] if after else result

    def penalty(faults: Faults, log: FloatArray) -> float:
        """Return the cost of a fitted class order: the logarithm of the number of orders."""
        if _parts(faults)[1] is None:
            return 0.0
        before = logs(_parts(faults)[0])
        moved_classes = int((outputs.class_order(before, answers) != np.arange(log.shape[1])).sum())
        return moved_classes * math.log(log.shape[1])

    def likelihood(faults: Faults) -> float:
        log = logs(faults)
        return float(log[rows, given].sum()) - penalty(faults, log)

    def fits(log: FloatArray) -> bool:
        """Return True if the likelihood of the answers is one that the hypothesis leads to."""
        share = np.exp(log.astype(np.float64))
        mean = (share * log).sum(1)
        spread = (share * log**2).sum(1) - mean**2
        return float(log[rows, given].sum()) >= float(
            mean.sum() - 4 * math.sqrt(spread.sum()) - math.log(EXCLUDED)
        )

    def needed(one: FloatArray, other: FloatArray, ratio: float) -> int | None:
        """Return the images at which the expected likelihood ratio of two hypotheses decides."""
        each = float((np.exp(one) * (one - other)).sum(1).mean())
        images = math.ceil(math.log(ratio) / each) if each > 0 else MOST_IMAGES
        return images if images < MOST_IMAGES else None

    faults = _possible(pipeline, answers, catalogue)
    clean_log = logs(())
    clean = float(clean_log[rows, given].sum())
    singles = []
    for fault in faults:
        log = logs((fault,))
        singles.append(Candidate((fault,), likelihood((fault,)), float(np.abs(log - clean_log).max())))
    singles.sort(key=lambda each: -each.residual)
    visible = [each for each in singles if each.effect > 1e-3]
    invisible = tuple(each.faults[0] for each in singles if each.effect <= 1e-3 and _parts(each.faults)[0])
    ranked = list(visible)
    if not fits(clean_log) and not (visible and fits(logs(visible[0].faults))):
        usable = [each.faults[0] for each in visible]
        ranked += [Candidate(pair, likelihood(pair), 1.0) for pair in _pairs(usable)]
        ranked.sort(key=lambda each: -each.residual)
    best = ranked[0] if ranked else None
    agreement = float((raw.argmax(1) == given).mean())
    base = {"residual": clean, "tolerance": math.log(SURE), "agreement": agreement, "invisible": invisible}
    if best and best.residual - clean >= math.log(SURE) and fits(logs(best.faults)):
        group = tuple(
            each.faults for each in ranked
            if best.residual - each.residual < math.log(EXCLUDED) and len(each.faults) == len(best.faults)
        )  # fmt: skip
        return Diagnosis("fault", group, left=best.residual, hidden=(), **base)  # type: ignore[arg-type]
    if fits(clean_log):
        hidden = tuple(
            (each.faults[0], needed(clean_log, logs(each.faults), EXCLUDED))
            for each in visible
            if clean - each.residual < math.log(EXCLUDED)
        )
        if best is None or best.residual <= clean + math.log(SUSPECT):
            excluded = len(visible) - len(hidden)
            verdict: Verdict = "proved" if 2 * excluded >= len(singles) else "undecided"
            return Diagnosis(verdict, (), left=None, hidden=hidden, **base)  # type: ignore[arg-type]
        more = needed(logs(best.faults), clean_log, SURE)
        images = max(more, len(given) + 1) if more else None
        return Diagnosis("undecided", (best.faults,), left=best.residual, hidden=hidden, images_needed=images,
                         **base)  # type: ignore[arg-type]  # fmt: skip
    return Diagnosis("unexplained", (), left=None, hidden=(), **base)  # type: ignore[arg-type]


def _possible(pipeline: Pipeline, answers: Answers, catalogue: Sequence[Fault]) -> list[Fault]:
    """Return the faults that can change these answers."""
    before = pipeline.usable(catalogue)
    after = [fault for fault in catalogue if fault.step == "outputs"]
    allowed = {
        "tensors": (),
        "classes": ("class-order",),
        "logits": ("softmax-twice", "class-order", "scale"),
        "probabilities": ("softmax-twice", "softmax-missing", "class-order"),
    }[answers.kind]
    return [*before, *(fault for fault in after if fault.name in allowed)]


def _parts(faults: Faults) -> tuple[Faults, Fault | None]:
    """Return the faults before the outputs, and that of the outputs."""
    before = tuple(fault for fault in faults if fault.step != "outputs")
    return before, next((fault for fault in faults if fault.step == "outputs"), None)


def _pairs(faults: Iterable[Fault]) -> Iterator[Faults]:
    return (pair for pair in combinations(tuple(faults), 2) if pair[0].step != pair[1].step)
