"""Planned variants, and what compiling leaves."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeship.toolkit.pipeline import compilation
from edgeship.toolkit.runs import variant_id

REFERENCE = variant_id.REFERENCE.name


def test_every_target_has_float_and_int8_and_the_reference_is_there_once():
    names = [variant.name for variant in compilation.planned(("openvino", "onnxruntime"), ("float",))]
    assert names == [REFERENCE, "openvino-fp32", "openvino-int8", "onnxruntime-int8"]
    assert compilation.planned(("openvino",), ("float",))[0].name == REFERENCE


def test_pruned_ones_stand_beside_the_whole():
    planned = compilation.planned(("openvino",), ("float", "pruned"))
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
