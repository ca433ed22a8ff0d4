"""Constants, computed shapes and automatic padding come out as numbers, and the graph computes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from float_graphs import Graph, images

from edgeship import targets
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.targets.onnxruntime import simulate
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.simplify import fold_reshape_targets

KINDS = ["SAME_UPPER", "SAME_LOWER", "VALID"]


def run(path, pixels):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"images": pixels}
    )[0]


def padded(kind, side):
    """Convolutions and pools of uneven padding."""
    g = Graph(side)
    x = "images"
    for number, (stride, kernel) in enumerate([(2, 3), (1, 4), (2, 2)]):
        weight = np.random.default_rng(number).normal(size=(4, g.shapes[x][0], kernel, kernel))
        side = -(-side // stride) if kind != "VALID" else (side - kernel) // stride + 1
        options = {"strides": [stride] * 2, "auto_pad": kind}
        x = g.node("Conv", [x, g.constant(f"w{number}", weight)], (4, side, side), **options)
    x = g.node("AveragePool", [x], (4, side, side), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    side = side if kind != "VALID" else side - 1
    x = g.node("AveragePool", [x], (4, side, side), kernel_shape=[2, 2], auto_pad=kind)
    side = side if kind != "VALID" else side - 1
    x = g.node("MaxPool", [x], (4, side, side), kernel_shape=[2, 2], auto_pad=kind)
    return g.head(x)


def exported():
    """As PyTorch's exporter writes: bounds, shapes and a shortcut's filling are nodes that compute."""
    g = Graph(16)

    def constant(name, values, dtype=np.int64):
        value = onnx.numpy_helper.from_array(np.asarray(values, dtype), name)
        g.nodes.append(onnx.helper.make_node("Constant", [], [name], value=value))
        return name

    x = g.conv("images", 4)
    x = g.node("Clip", [x, constant("low", 0, np.float32), constant("high", 6, np.float32)], (4, 16, 16))
    y = g.conv(g.unary("Relu", g.conv(x, 8, stride=2)), 8)
    bounds = [("begin", [0, 0]), ("end", [99, 99]), ("axes", [2, 3]), ("step", [2, 2])]
    x = g.node("Slice", [x, *(constant(*each) for each in bounds)], (4, 8, 8))
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.INT64, [1], [0])
    zeros = g.node("ConstantOfShape", [constant("two", [2])], (2,), value=zero)
    padded = g.node("Concat", [zeros, constant("more", [2]), zeros], (5,), axis=0)
    channels = g.node("Slice", [padded, constant("first", [1]), constant("last", [5])], (4,))
    pads = g.node("Concat", [channels, channels], (8,), axis=0)
    x = g.unary("Relu", g.add(y, g.node("Pad", [x, pads], (8, 8, 8))))
    x = g.node("GlobalAveragePool", [x], (8, 1, 1))
    x = g.node("Reshape", [x, constant("flat", [-1, 8])], (8,))
    weight = g.constant("fc.weight", g.random.normal(0, 0.5, (8, 5)))
    g.nodes.append(onnx.helper.make_node("MatMul", [x, weight], ["logits"], name="fc"))
    g.shapes["logits"] = (5,)
    return g


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [24, 27])
def test_automatic_padding_is_written_out(kind, side, tmp_path):
    g = padded(kind, side)
    g.shapes["images"] = (3, side, side)
    path, pixels = g.save(tmp_path / "m.onnx"), images(2, side)
    classifier = io.read_classifier(path)
    assert not any("auto_pad" in node.attributes for node in classifier.model.graph)
    expected = run(path, pixels)
    io.save(classifier.model, tmp_path / "written.onnx")
    np.testing.assert_allclose(run(tmp_path / "written.onnx", pixels), expected, rtol=1e-6)
    with torch.inference_mode():
        got = TorchExecutor(classifier.model)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_what_depends_on_no_image_becomes_an_initializer(tmp_path):
    path, pixels = exported().save(tmp_path / "m.onnx"), images(3, 16)
    classifier = io.read_classifier(path)
    kinds = {node.op_type for node in classifier.model.graph}
    assert kinds == {"Conv", "Clip", "Relu", "Slice", "Pad", "Add", "GlobalAveragePool", "Reshape", "MatMul"}
    io.save(classifier.model, tmp_path / "folded.onnx")
    np.testing.assert_array_equal(run(tmp_path / "folded.onnx", pixels), run(path, pixels))


def test_a_shape_is_a_constant_even_if_its_batch_is_dynamic(tmp_path):
    for batch in (2, "batch"):
        g = Graph(8, batch=batch)
        shape = g.node("Shape", ["images"], (4,))
        x = g.node("Reshape", [g.conv("images", 3), shape], (3, 8, 8))
        path = g.head(x).save(tmp_path / f"{batch}.onnx")
        assert "Shape" not in {n.op_type for n in io.read_classifier(path).model.graph}


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "onnxruntime"])
def test_an_exported_graph_is_quantized_with_full_effort(target, tmp_path):
    path, pixels = exported().save(tmp_path / "m.onnx"), images(8, 16)
    summary = quantize(
        path, collect(path, [pixels]), targets.get(target).scheme(), QuantizeOptions(), tmp_path / "q.onnx"
    )
    assert not any("fast" in warning for warning in summary["warnings"]), summary["warnings"]
    exact = run(path, pixels)
    with simulate(tmp_path / "q.onnx") as session:
        coarse = session.infer(pixels)
    assert np.abs(exact - coarse).max() <= 0.05 * np.abs(exact).max()


def test_a_weight_that_is_dequantized_stays_a_node(tmp_path):
    g = Graph(8)
    g.constant("scale", 0.01)
    values = g.constant("values", np.ones((4, 3, 1, 1)), np.int8)
    weight = g.node("DequantizeLinear", [values, "scale"], (3, 1, 1))
    path = g.head(g.node("Conv", ["images", weight], (4, 8, 8))).save(tmp_path / "m.onnx")
    assert "DequantizeLinear" in {node.op_type for node in io.read(path).model.graph}


def viewed(how):
    """Export of `x.view(x.size(0), -1)` and similar calls, with a dynamic batch."""
    g = Graph(8, batch="batch")
    x = g.node("GlobalAveragePool", [g.unary("Relu", g.conv("images", 4))], (4, 1, 1))
    zero, rest = g.constant("zero", 0, np.int64), g.constant("rest", [-1], np.int64)
    axes = g.constant("axes", [0], np.int64)
    shape = g.node("Shape", [x], (4,))
    batch = g.node("Unsqueeze", [g.node("Gather", [shape, zero], ()), axes], (1,))
    if how == "channels":  # x.view(x.size(0), x.size(1))
        rest = g.node("Gather", [shape, g.constant("one", [1], np.int64)], (1,))
    order = [rest, batch] if how == "turned" else [batch, rest]
    x = g.node("Reshape", [x, g.node("Concat", order, (2,), axis=0)], (4,))
    weight = g.constant("fc.weight", g.random.normal(0, 0.5, (4, 5)))
    g.nodes.append(onnx.helper.make_node("MatMul", [x, weight], ["logits"], name="fc"))
    g.shapes["logits"] = (5,)
    return g


@pytest.mark.parametrize("how", ["rest", "channels"])
def test_a_view_that_keeps_a_dynamic_batch_is_quantized_with_full_effort(how, tmp_path):
    path, pixels = viewed(how).save(tmp_path / "m.onnx"), images(6, 8)
    classifier = io.read_classifier(path)
    assert {node.op_type for node in classifier.model.graph} == {
        *("Conv", "Relu", "GlobalAveragePool", "Reshape", "MatMul")
    }
    io.save(classifier.model, tmp_path / "written.onnx")
    for count in (1, 6):
        np.testing.assert_array_equal(
            run(tmp_path / "written.onnx", pixels[:count]), run(path, pixels[:count])
        )
    out = tmp_path / "q.onnx"
    summary = quantize(
        path, collect(path, [pixels]), targets.get("openvino").scheme(), QuantizeOptions(), out
    )
    assert not any("fast" in warning for warning in summary["warnings"]), summary["warnings"]


def test_a_batch_that_moves_stays_computed(tmp_path):
    model = io.read(viewed("turned").save(tmp_path / "m.onnx")).model
    assert "Concat" in {node.op_type for node in model.graph}


def test_a_reshape_from_before_opset_5_has_no_shape_to_write():
    node = onnx.helper.make_node("Reshape", ["x"], ["y"], shape=[0, -1])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
        for name, dims in (("x", ["n", 4, 1, 1]), ("y", ["n", 4]))
    ]
    graph = onnx.helper.make_graph([node], "old", values[:1], values[1:])
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 4)]))
    fold_reshape_targets(model)
    assert [len(each.inputs) for each in model.graph] == [1]
