"""Accuracy of the variants by hand."""

import numpy as np
import pytest

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.pipeline import accuracy, evaluation
from edgeship.toolkit.pipeline.evaluation import Outcome
from edgeship.toolkit.runs import variant_id
from edgeship.toolkit.runs.compiled import CompiledVariant
from edgeship.toolkit.runs.variant_id import VariantId

REFERENCE = variant_id.REFERENCE.name


def outcome(labels):
    """Ten images of three classes: the reference gets 9 right, the other 7, two of these lost."""
    truth = np.arange(10) % 3
    reference, other = np.eye(3, dtype=np.float32)[truth], np.eye(3, dtype=np.float32)[truth]
    reference[9] = np.roll(reference[9], 1)
    for image in (0, 1, 9):
        other[image] = np.roll(other[image], 1)
    return Outcome(
        {REFERENCE: reference, "openvino-int8": other}, truth if labels else np.full(10, -1), np.arange(10)
    )


RECORDS = {
    variant_id.REFERENCE: CompiledVariant("x", runs_here=True),
    VariantId("openvino", "int8"): CompiledVariant("x", runs_here=False),
}


def test_accuracy_by_hand():
    rows = accuracy.accuracies(outcome(labels=True), RECORDS)
    assert rows[REFERENCE].top1 == pytest.approx(0.9)
    assert rows[REFERENCE].drop_pp == 0 and rows[REFERENCE].agreement == 1
    int8 = rows["openvino-int8"]
    assert int8.top1 == pytest.approx(0.7)
    assert int8.drop_pp == pytest.approx(20.0)
    assert int8.drop_ci95_pp[0] < 20 < int8.drop_ci95_pp[1]
    assert int8.agreement == pytest.approx(0.8)
    # power of the reference: 10; of the difference: two images, (1 - 0)^2 twice each
    assert int8.sqnr_db == pytest.approx(10 * np.log10(10 / 4))
    assert int8.top5 is None  # of three classes five are no feat
    assert int8.images == 10


def test_what_is_simulated_is_called_so():
    rows = accuracy.accuracies(outcome(labels=True), RECORDS)
    assert rows["openvino-int8"].source == "simulated" and rows[REFERENCE].source == "measured"
    assert rows["openvino-int8"].measured_on == "simulation (ONNX Runtime)"
    assert rows[REFERENCE].measured_on.startswith("this machine (")


def test_without_labels_there_is_agreement_but_no_accuracy():
    row = accuracy.accuracies(outcome(labels=False), RECORDS)["openvino-int8"]
    assert row.top1 is row.drop_pp is row.drop_ci95_pp is None
    assert row.agreement == pytest.approx(0.8)


def test_top5_counts_the_five_best():
    logits = np.tile(np.arange(7, dtype=np.float32), (4, 1))  # classes 6, 5, 4, 3, 2 are the best
    seen = Outcome({REFERENCE: logits}, np.array([6, 2, 1, 0]), np.arange(4))
    row = accuracy.accuracies(seen, {next(iter(RECORDS)): CompiledVariant("x", runs_here=True)})[REFERENCE]
    assert (row.top1, row.top5) == (0.25, 0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_variant_whose_logits_are_no_numbers_is_left_out_and_a_score_of_minus_infinity_is_one(bad):
    """A NaN would count as the class of its place."""
    other, log = np.zeros((10, 3), np.float32), np.zeros((10, 3), np.float32)
    other[4, 1], log[:, 2] = bad, -np.inf
    logits = {REFERENCE: np.zeros((10, 3), np.float32), "tensorrt-fp16": other, "openvino-int8": log}
    seen = Outcome(logits, np.zeros(10, int), np.arange(10))
    (reason,) = evaluation.leave_out_not_numbers(seen).values()
    assert reason.startswith("computes NaN or infinity on 1 of 10 images")
    assert set(seen.logits) == {REFERENCE, "openvino-int8"}
    with pytest.raises(ModelError, match="the float network computes NaN or infinity on 1 of 10"):
        evaluation.leave_out_not_numbers(Outcome({REFERENCE: other}, np.zeros(10, int), np.arange(10)))
