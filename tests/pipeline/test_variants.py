"""Planned variants and their records."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.pipeline import variants
from edgeship.toolkit.pipeline.recipe import BenchOptions
from edgeship.toolkit.pipeline.variants import Outcome
from edgeship.toolkit.runs import variant_id
from edgeship.toolkit.runs.variant_id import VariantId

REFERENCE = variant_id.REFERENCE.name


def test_every_target_has_float_and_int8_and_the_reference_is_there_once():
    names = [variant.name for variant in variants.planned(("openvino", "onnxruntime"), ("float",))]
    assert names == [REFERENCE, "openvino-fp32", "openvino-int8", "onnxruntime-int8"]
    assert variants.planned(("openvino",), ("float",))[0].name == REFERENCE


def test_pruned_ones_stand_beside_the_whole():
    planned = variants.planned(("openvino",), ("float", "pruned"))
    assert [variant.name for variant in planned[1:]] == [
        "openvino-fp32",
        "openvino-fp32-pruned",
        "openvino-int8",
        "openvino-int8-pruned",
    ]
    inputs = {"export": Path("e"), "quantize": Path("q")}
    assert [str(variant.graph(inputs)) for variant in planned] == [
        "e/float.onnx",
        "e/float.onnx",
        "e/pruned.onnx",
        "q/openvino.onnx",
        "q/openvino-pruned.onnx",
    ]


def test_of_two_forms_of_a_graph_one_ships(tmp_path):
    for name, size in (("model.xml", 3), ("model.bin", 40), ("typed.onnx", 500)):
        (tmp_path / name).write_bytes(bytes(size))
    assert variants.size_bytes(tmp_path, ()) == 543
    assert variants.size_bytes(tmp_path, ("typed.onnx",)) == 43


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
    variant_id.REFERENCE: {"runs_here": True},
    VariantId("openvino", "int8"): {"runs_here": False},
}


def test_accuracy_by_hand():
    rows = variants.accuracies(outcome(labels=True), RECORDS)
    assert rows[REFERENCE]["top1"] == pytest.approx(0.9)
    assert rows[REFERENCE]["drop_pp"] == 0 and rows[REFERENCE]["agreement"] == 1
    int8 = rows["openvino-int8"]
    assert int8["top1"] == pytest.approx(0.7)
    assert int8["drop_pp"] == pytest.approx(20.0)
    assert int8["drop_ci95_pp"][0] < 20 < int8["drop_ci95_pp"][1]
    assert int8["agreement"] == pytest.approx(0.8)
    # power of the reference: 10; of the difference: two images, (1 - 0)^2 twice each
    assert int8["sqnr_db"] == pytest.approx(10 * np.log10(10 / 4))
    assert int8["top5"] is None  # of three classes five are no feat
    assert int8["images"] == 10


def test_what_is_simulated_is_called_so():
    rows = variants.accuracies(outcome(labels=True), RECORDS)
    assert rows["openvino-int8"]["measured_on"] == "simulation (ONNX Runtime)"
    assert rows[REFERENCE]["measured_on"].startswith("this machine (")


def test_without_labels_there_is_agreement_but_no_accuracy():
    row = variants.accuracies(outcome(labels=False), RECORDS)["openvino-int8"]
    assert row["top1"] is row["drop_pp"] is row["drop_ci95_pp"] is None
    assert row["agreement"] == pytest.approx(0.8)


def test_top5_counts_the_five_best():
    logits = np.tile(np.arange(7, dtype=np.float32), (4, 1))  # classes 6, 5, 4, 3, 2 are the best
    seen = Outcome({REFERENCE: logits}, np.array([6, 2, 1, 0]), np.arange(4))
    row = variants.accuracies(seen, {next(iter(RECORDS)): {"runs_here": True}})[REFERENCE]
    assert (row["top1"], row["top5"]) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("asked", "graph", "batch"), [(None, None, 1), (None, 4, 4), (8, None, 8), (4, 4, 4)]
)
def test_the_batch_that_is_timed(asked, graph, batch):
    assert variants.bench_batch(BenchOptions(batch=asked), graph) == batch


def test_a_batch_the_graph_cannot_take():
    with pytest.raises(RecipeError, match=r"bench\.batch = 8, but the graph takes 1") as caught:
        variants.bench_batch(BenchOptions(batch=8), 1)
    assert "export.batch=8" in caught.value.hint


def test_a_full_disk_is_not_taken_for_a_refusal(tmp_path, monkeypatch):
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(bytes(1000))
    variants.check_room(tmp_path, graph, ValueError("refused"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=999))
    with pytest.raises(OSError, match="No space left"):
        variants.check_room(tmp_path, graph, ValueError("cannot save"))
