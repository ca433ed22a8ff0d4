"""NVIDIA's parser and builder accept the TensorRT placement, and refuse what they must."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from qdq_graphs import FLOAT, OPENVINO, TENSORRT, Placement, images, residual_net, save

from edgeship.targets.tensorrt import TARGET, rtx_check
from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.models import resnet
from edgeship.toolkit.models.export import export

pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")


@pytest.mark.parametrize("batch", [1, "batch"], ids=["static", "dynamic"])
def test_a_legal_graph_is_accepted_and_every_weighted_layer_reads_int8(batch, tmp_path):
    compiled = TARGET.compile(
        save(residual_net(TENSORRT, batch=batch), tmp_path / "net.onnx"), tmp_path / "out", "int8"
    )
    assert compiled.note.startswith("accepted by TensorRT-RTX")
    assert not compiled.runs_here
    assert (tmp_path / "out" / compiled.file).is_file()
    assert compiled.instead == ("typed.onnx",)
    typed = rtx_check.check(tmp_path / "out" / "typed.onnx")
    assert typed.accepted, typed.errors
    assert {layer.precision for layer in typed.layers} == {"int8"}
    assert {layer.name for layer in compiled.audit} >= {
        "conv1",
        "layer1.conv1",
        "layer2.downsample",
        "logits",
    }
    assert {layer.precision for layer in compiled.audit} == {"int8"}


def test_a_float_graph_is_accepted_as_float(tmp_path):
    compiled = TARGET.compile(save(residual_net(FLOAT), tmp_path / "net.onnx"), tmp_path / "out", "fp32")
    assert {layer.precision for layer in compiled.audit if layer.kind == "Convolution"} == {"fp32"}
    assert not (tmp_path / "out" / "typed.onnx").exists()


def test_values_that_fp16_cannot_hold_are_a_warning_and_the_portable_graph_stays(tmp_path):
    model = residual_net(TENSORRT)
    bias = next(item for item in model.graph.initializer if item.name.endswith("conv1.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e6), bias.name))
    compiled = TARGET.compile(save(model, tmp_path / "net.onnx"), tmp_path / "out", "int8")
    assert [text for text in compiled.warnings if "no FP16-typed form for TensorRT 11" in text]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [compiled.file]
    assert compiled.instead == ()


@pytest.mark.parametrize(
    ("placement", "says"),
    [
        pytest.param(OPENVINO, "UINT8", id="uint8 is only a warning of the parser, and an error here"),
        pytest.param(Placement(zero_point=3), "zero", id="asymmetric"),
        pytest.param(Placement(axis=None), "scales", id="per channel without an axis"),
    ],
)
def test_illegal_graphs_are_refused_by_the_parser_and_before_it_by_the_linter(placement, says, tmp_path):
    path = save(residual_net(placement), tmp_path / "net.onnx")
    assert says in rtx_check.check(path).errors[0]
    with pytest.raises(TargetError, match="refuses or misreads") as caught:
        TARGET.compile(path, tmp_path / "out", "int8")
    assert "edgeship audit" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_residual_placement_is_a_warning(tmp_path):
    path = save(residual_net(Placement(add_inputs="none")), tmp_path / "net.onnx")
    compiled = TARGET.compile(path, tmp_path / "out", "int8")
    assert any(warning.startswith("layer1.add: its shortcut") for warning in compiled.warnings)


def test_without_the_sdk_the_linter_alone_decides(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    compiled = TARGET.compile(save(residual_net(TENSORRT), tmp_path / "net.onnx"), tmp_path / "out", "int8")
    assert compiled.note.startswith("passed the linter only")
    assert "edgeship[tensorrt-rtx]" in compiled.warnings[-1]


def test_onnxruntimes_default_is_refused_for_its_int32_bias(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._left = [{"images": images()}]

        def get_next(self):
            return self._left.pop() if self._left else None

    model = save(residual_net(FLOAT), tmp_path / "float.onnx")
    quantize_static(model, tmp_path / "ort.onnx", Reader())
    verdict = rtx_check.check(tmp_path / "ort.onnx")
    assert not verdict.accepted
    assert "Int32" in " ".join(verdict.errors)


def test_without_the_sdk_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    with pytest.raises(TargetError, match="not installed") as caught:
        rtx_check.sdk()
    assert "edgeship[tensorrt-rtx]" in caught.value.hint


def test_opening_says_where_it_runs(tmp_path):
    with (
        pytest.raises(TargetError, match="no NVIDIA GPU") as caught,
        TARGET.open(tmp_path / "model.plan"),
    ):
        pass
    assert "device" in caught.value.hint


def listed(name, kind, given, constants, metadata=""):
    """A line of the builder's listing; constants are "shape type"."""
    held = ", ".join(
        f"{{ Name: c, Dimensions: [{shape}], Strides: [1], Datatype: {dtype}, Format: (Linear) }}"
        for shape, dtype in (each.split() for each in constants)
    )
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {{ Name: a, Dimensions: [1,3], Datatype: {given} }}], "
        f"Constants: [ {held}], Outputs: [ {{ Name: b, Dimensions: [9,9,9,9], Datatype: Float }}], "
        f"Metadata: {''.join(f'[ONNX Layer: {node}]' for node in metadata.split())}\n"
    )


LISTING = "Layers:\n" + "".join(
    (
        listed("__myl_Mul_myl0_0", "kgen", "Float", ["1 Float"], "conv1"),  # its input, quantized
        listed("conv1_U43_myl0_1", "correlation", "Int8", ["8 Float", "8,3,3,3 Int8"], "conv1"),
        listed("__myl_CorrAddRelu_myl0_2", "runtime_fusion", "Float", ["8,8,3,3 Float"], "conv2 add relu"),
        listed("__myl_ReshMulSumAdd_myl0_3", "kgen", "Int8", ["8,10 Half"], "node_of_logits"),
        listed("alone_myl0_4", "gemm", "Half", []),
    )
)


def test_the_listing_by_hand():
    nodes = {"conv1": "Conv", "conv2": "Conv", "logits": "Gemm", "alone": "MatMul", "conv": "Conv"}
    found = rtx_check.layers(LISTING, nodes)
    assert [(layer.name, layer.kind, layer.precision, layer.warning) for layer in found] == [
        ("conv1", "Convolution", "int8", ""),
        ("conv2", "Convolution", "fp32", ""),  # fused with the Add and the ReLU behind it
        ("logits", "FullyConnected", "fp16", ""),  # a node without a name, as generated code
        ("alone", "FullyConnected", "fp16", ""),
        ("conv", "Convolution", "unknown", "not in the builder's listing"),
    ]  # fmt: skip
    assert rtx_check.layers(LISTING, {}) == ()


def test_every_layer_with_weights_is_told_of_whatever_it_was_fused_into(tmp_path):
    for name in ("resnet18", "resnet20"):  # FP32 fuses the last convolutions with what follows, and fc
        export(resnet.build(resnet.architecture(name, classes=10), seed=0), tmp_path / "net.onnx", size=32)
        found = rtx_check.check(tmp_path / "net.onnx").layers
        wanted = [
            node.name
            for node in onnx.load(tmp_path / "net.onnx").graph.node
            if node.op_type in rtx_check.KINDS
        ]
        assert [layer.name for layer in found] == wanted
        assert {(layer.precision, layer.warning) for layer in found} == {("fp32", "")}


def test_a_layer_that_the_builder_does_not_list_is_a_warning(monkeypatch, tmp_path):
    names = rtx_check._names
    monkeypatch.setattr(rtx_check, "_names", lambda line, node: node != "conv1" and names(line, node))
    compiled = TARGET.compile(save(residual_net(TENSORRT), tmp_path / "net.onnx"), tmp_path / "out", "int8")
    assert [layer.name for layer in compiled.audit if layer.precision != "int8"] == ["conv1"]
    assert "conv1: not in the builder's listing" in compiled.warnings


@given(
    text=st.text(max_size=200)
    | st.text(max_size=80).map(lambda tail: f"Layers:\nName: a, LayerType: gemm, {tail}")
)
def test_a_listing_of_another_form_makes_up_no_precision(text):
    (layer,) = rtx_check.layers(text, {"a": "Gemm"})
    assert (layer.precision == "unknown") == (layer.warning == rtx_check.UNLISTED)
    assert layer.precision == "unknown" or "Datatype: " in text
