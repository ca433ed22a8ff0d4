"""Planned variants, and what compiling leaves."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.pipeline import compilation
from edgeship.toolkit.runs import variant_id

REFERENCE = variant_id.REFERENCE.name


def test_every_target_has_float_and_int8_and_the_reference_is_there_once():
    names = [v.name for v in compilation.planned(("openvino", "onnxruntime"), ("float",), ("int8",))]
    assert names == [REFERENCE, "openvino-fp32", "openvino-int8", "onnxruntime-int8"]
    assert compilation.planned(("openvino",), ("float",), ())[0].name == REFERENCE


@pytest.mark.parametrize(
    ("halves", "wanted", "planned"),
    [
        ([], ("fp16", "int8"), ["openvino-fp32", "openvino-int8"]),
        (["bf16"], ("fp16", "int8", "bf16"), ["openvino-fp32", "openvino-bf16", "openvino-int8"]),
        (["fp16"], ("fp16",), ["openvino-fp32", "openvino-fp16"]),
    ],
)
def test_sixteen_bit_floats_are_planned_where_the_runtime_computes_in_them(
    halves, wanted, planned, monkeypatch
):
    monkeypatch.setattr("edgeship.targets.openvino.Backend.halves", lambda backend: halves)
    names = [v.name for v in compilation.planned(("openvino", "tensorrt", "onnxruntime"), ("float",), wanted)]
    tensorrt = ["tensorrt-fp32", *(f"tensorrt-{each}" for each in ("fp16", "int8") if each in wanted)]
    assert names == [REFERENCE, *planned, *tensorrt, *(["onnxruntime-int8"] if "int8" in wanted else [])]


def test_a_precision_that_no_target_has_is_refused(monkeypatch):
    monkeypatch.setattr("edgeship.targets.openvino.Backend.halves", lambda backend: [])
    with pytest.raises(TargetError, match="no target of the run has BF16") as caught:
        compilation.planned(("openvino", "tensorrt"), ("float",), ("bf16", "int8"))
    assert "compile.precisions" in caught.value.hint


def test_pruned_ones_stand_beside_the_whole():
    planned = compilation.planned(("openvino",), ("float", "pruned"), ("int8",))
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
    assert compilation.size_bytes(tmp_path, ()) == 543
    assert compilation.size_bytes(tmp_path, ("typed.onnx",)) == 43


def test_a_full_disk_is_not_taken_for_a_refusal(tmp_path, monkeypatch):
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(bytes(1000))
    compilation.check_room(tmp_path, graph, ValueError("refused"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=999))
    with pytest.raises(OSError, match="No space left"):
        compilation.check_room(tmp_path, graph, ValueError("cannot save"))
