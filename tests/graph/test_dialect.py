"""Old and hand-made files are read as today's, compute the same, and are quantized with full effort."""

import numpy as np
import onnx
import onnxruntime
import pytest
from float_graphs import Graph, images, residual
from onnx import TensorProto, helper

from edgeship import targets
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph import edit, io

SIDE = 16


def run(path, pixels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels})[0]


def of_opset(number, graph=None, **changes):
    proto = (graph or residual()).model(opset=number)
    for name, value in changes.items():
        setattr(proto, name, value)
    return proto


def of_opset_9():
    """As exporters of 2018 wrote: bounds of a Clip as attributes, initializers among the inputs."""
    g = Graph(SIDE)
    x = g.unary("Clip", g.conv("images", 8, stride=2), min=0.0, max=6.0)
    x = g.node("GlobalAveragePool", [g.unary("Relu", g.conv(x, 8))], (8, 1, 1))
    x = g.node("Squeeze", [x], (8,), axes=[2, 3])
    weight = g.constant("fc.weight", g.random.normal(0, 0.5, (8, 5)))
    bias = g.constant("fc.bias", g.random.normal(0, 0.5, 5))
    g.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["logits"], name="fc"))
    g.shapes["logits"] = (5,)
    proto = of_opset(9, g, ir_version=3)
    for tensor in proto.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        proto.graph.input.append(value)
    return proto


def unnamed():
    proto = residual().model()
    for node in proto.graph.node:
        node.name = ""
    return proto


def named_alike():
    proto = residual().model()
    for node in proto.graph.node:
        node.name = node.op_type
    return proto


def out_of_order():
    proto = residual().model()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def with_a_function():
    proto = residual().model()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", proto.opset_import[0].version)]
    proto.functions.append(helper.make_function("mine", "Block", ["a"], ["b"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    last = [node for node in proto.graph.node if node.op_type == "Relu"][-1]
    last.op_type, last.domain = "Block", "mine"
    return proto


def with_a_settled_branch(computed=False):
    """An If between two forms, as PyTorch exports `squeeze()`; one branch is always taken."""
    g = residual()
    place = next(index for index, node in enumerate(g.nodes) if node.op_type == "Flatten")
    flatten = g.nodes.pop(place)
    x, classes = flatten.input[0], g.nodes.pop()

    def branch(kind, result, **attributes):
        value = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        node = helper.make_node(kind, [x], [result], **attributes)
        return helper.make_graph([node], kind, [], [value])

    condition = g.constant("taken", True, np.bool_) if not computed else ""
    if computed:  # the batch is dynamic, this side is not
        side = g.node("Gather", [g.node("Shape", [x], (4,)), g.constant("two", 2, np.int64)], ())
        condition = g.node("Equal", [side, g.constant("one", 1, np.int64)], ())
    chosen = {"then_branch": branch("Flatten", "flat", axis=1), "else_branch": branch("Identity", "as_it_is")}
    g.nodes.append(helper.make_node("If", [condition], [flatten.output[0]], name="choice", **chosen))
    g.nodes.append(classes)
    return g.model()


def with_sums(terms=2):
    """A residual network that adds with Sum, as Caffe's did."""
    g = residual()
    place = next(index for index, node in enumerate(g.nodes) if node.op_type == "Add")
    add = g.nodes[place]
    inputs = [*add.input, add.input[0]][:terms]
    g.nodes[place] = helper.make_node("Sum", inputs, add.output, name=add.name)
    return g.model()


FILES = {
    "opset 7": lambda: of_opset(7, ir_version=3),
    "opset 9": of_opset_9,
    "opset 11": lambda: of_opset(11),
    "unnamed": unnamed,
    "named alike": named_alike,
    "out of order": out_of_order,
    "function": with_a_function,
    "settled branch": with_a_settled_branch,
    "branch by a shape": lambda: with_a_settled_branch(computed=True),
    "sum of two": with_sums,
    "sum of three": lambda: with_sums(3),
}
NOT_VALID = {  # what ONNX Runtime refuses, and the valid form of the same
    "opset 7": lambda: of_opset(11),
    "named alike": lambda: residual().model(),
    "out of order": lambda: residual().model(),
}


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
@pytest.mark.parametrize("kind", FILES)
def test_it_computes_the_same_and_is_quantized_with_full_effort(kind, target, tmp_path):
    onnx.save(FILES[kind](), tmp_path / "m.onnx")
    onnx.save(NOT_VALID.get(kind, FILES[kind])(), tmp_path / "valid.onnx")
    pixels = images(8, SIDE)
    expected = run(tmp_path / "valid.onnx", pixels)
    classifier = io.read_classifier(tmp_path / "m.onnx")
    io.save(classifier.model, tmp_path / "read.onnx")
    onnx.checker.check_model(tmp_path / "read.onnx", full_check=True)
    np.testing.assert_allclose(
        run(tmp_path / "read.onnx", pixels), expected, atol=1e-5 * np.abs(expected).max()
    )

    statistics, scheme = collect(tmp_path / "m.onnx", [pixels]), targets.get(target).scheme()
    summary = quantize(tmp_path / "m.onnx", statistics, scheme, QuantizeOptions(), tmp_path / "q.onnx")
    assert not any("fast" in warning for warning in summary["warnings"]), summary["warnings"]
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)
    got = run(tmp_path / "q.onnx", pixels)
    assert np.abs(got - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("terms", [2, 3])
def test_sums_become_adds_that_keep_the_name_of_their_result(terms, tmp_path):
    proto = with_sums(terms)
    (name,) = (node.output[0] for node in proto.graph.node if node.op_type == "Sum")
    onnx.save(proto, tmp_path / "m.onnx")
    adds = [node for node in io.read(tmp_path / "m.onnx").model.graph if node.op_type == "Add"]
    assert len(adds) == terms  # one of them was one before
    assert adds[terms - 2].outputs[0].name == name


def test_a_branch_that_depends_on_the_images_stays(tmp_path):
    g = Graph(8)
    x = g.conv("images", 4)
    mean = g.node("ReduceMean", [x], (), keepdims=0)
    g.node("Greater", [mean, g.constant("zero", 0.0)], ())

    def branch(kind, result):
        value = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(kind, [x], [result])], kind, [], [value])

    chosen = {"then_branch": branch("Relu", "then"), "else_branch": branch("Identity", "otherwise")}
    path = g.head(g.node("If", [g.nodes[-1].output[0]], (4, 8, 8), **chosen)).save(tmp_path / "m.onnx")
    pixels = images(3, 8)
    io.save(io.read_classifier(path).model, tmp_path / "read.onnx")
    onnx.checker.check_model(tmp_path / "read.onnx", full_check=True)
    np.testing.assert_allclose(run(tmp_path / "read.onnx", pixels), run(path, pixels), atol=1e-5)


def test_an_operator_that_opset_13_has_not_is_refused_with_a_hint(tmp_path):
    proto = of_opset(9)
    proto.graph.node[1].op_type = "Affine"  # of Caffe2's exporter
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"opset 9 .* 13: .*Affine") as caught:
        io.read_classifier(tmp_path / "m.onnx")
    assert "opset 13" in caught.value.hint


def test_what_is_read_only_keeps_its_opset(tmp_path):
    onnx.save(of_opset(11), tmp_path / "m.onnx")
    assert io.read(tmp_path / "m.onnx").model.graph.opset_imports[""] == 11
    assert io.read_classifier(tmp_path / "m.onnx").model.graph.opset_imports[""] == 13


def test_padding_of_some_axes_is_written_for_all(tmp_path):
    g = Graph(8)
    pads, axes = g.constant("pads", [1, 2, 0, 1], np.int64), g.constant("axes", [3, -2], np.int64)
    path = tmp_path / "m.onnx"
    onnx.save(of_opset(18, g.head(g.node("Pad", ["images", pads, "", axes], (3, 11, 9)))), path)
    (pad,) = [node for node in io.read(path).model.graph if node.op_type == "Pad"]
    assert edit.constant(pad.inputs[1]).tolist() == [0, 0, 2, 1, 0, 0, 1, 0]
    assert len(pad.inputs) < 4


@pytest.mark.parametrize(("value", "allowed"), [(-np.inf, True), (np.nan, False)])
def test_a_pool_may_be_padded_with_infinity_but_not_with_nan(value, allowed, tmp_path):
    g = Graph(8)
    pads, fill = g.constant("pads", [0, 0, 0, 0, 0, 0, 1, 1], np.int64), g.constant("fill", value)
    x = g.node("Pad", [g.conv("images", 4), pads, fill], (4, 9, 9))
    x = g.node("MaxPool", [x], (4, 4, 4), kernel_shape=[3, 3], strides=[2, 2])
    path = g.head(g.unary("Relu", g.conv(x, 4))).save(tmp_path / "m.onnx")
    if not allowed:
        with pytest.raises(ModelError, match="'fill' of m"):
            io.read_classifier(path)
        return
    pixels = images(8, 8)
    scheme = targets.get("openvino").scheme()
    quantize(path, collect(path, [pixels]), scheme, QuantizeOptions(), tmp_path / "q.onnx")
    got, expected = run(tmp_path / "q.onnx", pixels), run(path, pixels)
    assert np.abs(got - expected).max() <= 0.05 * np.abs(expected).max()
