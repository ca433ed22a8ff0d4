"""The name of a variant is read and written in one place, and decides which graph it is built from."""

from pathlib import Path

import pytest

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.runs.variant_id import VariantId, quantized_name, split_pruned

FOLDERS = {"export": Path("e"), "quantize": Path("q")}


@pytest.mark.parametrize(
    ("variant", "name", "graph"),
    [
        (VariantId("openvino", "int8"), "openvino-int8", "q/openvino.onnx"),
        (VariantId("openvino", "int8", True), "openvino-int8-pruned", "q/openvino-pruned.onnx"),
        (VariantId("my-npu", "fp32", True), "my-npu-fp32-pruned", "e/pruned.onnx"),
        (VariantId("tensorrt", "fp16"), "tensorrt-fp16", "e/float.onnx"),
        (VariantId("tensorrt", "fp8", True), "tensorrt-fp8-pruned", "q/tensorrt-fp8-pruned.onnx"),
        (VariantId("openvino", "int8", False, True), "openvino-int8-guarded", "q/openvino.onnx"),
        (VariantId("x", "int8", True, True), "x-int8-pruned-guarded", "q/x-pruned.onnx"),
    ],
)
def test_a_variant_has_one_name_and_one_graph(variant, name, graph):
    assert variant.name == name and VariantId.parse(name) == variant
    assert variant.graph(FOLDERS) == Path(graph)


@pytest.mark.parametrize(
    "name", ["openvino", "openvino-int4", "-int8", "", "openvino-pruned", "x-fp16-guarded", "x-guarded"]
)
def test_other_names_are_refused(name):
    with pytest.raises(DataError, match="TARGET-PRECISION"):
        VariantId.parse(name)


def test_quantized_graphs_are_named_by_target():
    assert [quantized_name("openvino", graph) for graph in ("float", "pruned")] == [
        "openvino",
        "openvino-pruned",
    ]
    assert split_pruned("openvino-pruned") == ("openvino", True) and split_pruned("openvino") == (
        "openvino",
        False,
    )
