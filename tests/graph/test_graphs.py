"""Reading, writing and cost of ONNX classifiers."""

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from float_graphs import Graph, images, residual
from onnx import numpy_helper
from qdq_graphs import FLOAT, OPENVINO, TENSORRT, residual_net, save

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph import edit, io
from edgeship.toolkit.graph.cost import _macs, cost, cost_shares
from edgeship.toolkit.graph.reference import Reference


def test_what_a_classifier_looks_like_from_outside(tmp_path):
    classifier = io.read_classifier(residual().save(tmp_path / "m.onnx"))
    assert (classifier.input, classifier.output, classifier.batch, classifier.channels) == (
        "images",
        "logits",
        None,
        3,
    )
    assert (classifier.size, classifier.classes, classifier.quantized, classifier.preprocess) == (
        16,
        5,
        False,
        None,
    )
    assert io.read(residual(batch=4).save(tmp_path / "m.onnx")).batch == 4


def test_cost_by_hand(tmp_path):
    """8 of 3x3x3 on 8x8, grouped 8 of 3x3x2 on 4x4, fully connected 8 to 5."""
    g = Graph()
    path = g.head(g.conv(g.conv("images", 8), 8, stride=2, group=4, bias=False)).save(tmp_path / "m.onnx")
    assert cost(path).macs == 8 * 27 * 64 + 8 * 18 * 16 + 40
    assert cost(path).parameters == (8 * 27 + 8) + 8 * 18 + (40 + 5)


@pytest.mark.parametrize("batch", ["batch", 4])
def test_cost_of_tokens_by_hand(batch, tmp_path):
    """16 tokens: a layer from 8 to 12 on each, as 3-D and, of a fixed batch, as 2-D; and attention."""
    g = Graph(size=4, batch=batch)
    row = g.node("Reshape", [g.conv("images", 8, 1), g.constant("r", [0, 8, 16], np.int64)], (8, 16))
    x = g.node("Transpose", [row], (16, 8), perm=[0, 2, 1])
    layer, extra = 16 * 8 * 12, 0
    x = g.node("MatMul", [x, g.constant("w", np.ones((8, 12)))], (16, 12))
    attention = g.node("MatMul", [x, g.node("Transpose", [x], (12, 16), perm=[0, 2, 1])], (16, 16))
    x = g.node("MatMul", [attention, x], (16, 12))
    if batch == 4:
        flat = g.node("Reshape", [x, g.constant("f", [64, 12], np.int64)], (12,))
        flat = g.node("Gemm", [flat, g.constant("v", np.ones((12, 12)))], (12,))
        x = g.node("Reshape", [flat, g.constant("b", [4, 16, 12], np.int64)], (16, 12))
        extra = 16 * 12 * 12
    x = g.node("Reshape", [x, g.constant("i", [0, 16, 4, 3], np.int64)], (16, 4, 3))
    path = g.head(x).save(tmp_path / "m.onnx")
    assert cost(path).macs == 8 * 3 * 16 + layer + 2 * 16 * 16 * 12 + extra + 16 * 5


def test_the_cost_of_an_open_size_is_unknown(tmp_path):
    g = Graph(size=("h", "w"))
    g.nodes.append(onnx.helper.make_node("Conv", ["images", g.constant("c", np.ones((4, 3, 3, 3)))], ["x"]))
    g.shapes["x"] = (4, "h2", "w2")
    path = g.head("x").save(tmp_path / "m.onnx")
    assert cost(path).macs is None and list(cost_shares(path)) == ["Conv/x", "fc"]


@pytest.mark.parametrize(("op", "weight"), [("Conv", (4, 3, 3, 3)), ("MatMul", (8, 5)), ("Gemm", (8, 5))])
def test_the_cost_of_an_unknown_shape_is_unknown(op, weight):
    node = ir.node(op, [ir.Value(name="x"), ir.Value(name="w", const_value=ir.tensor(np.ones(weight)))])
    assert node.outputs[0].shape is None
    assert math.isnan(_macs(node, 1, math.nan)) and _macs(node, 1, open_side=1) == np.prod(weight)


@pytest.mark.parametrize("placement", [TENSORRT, OPENVINO])
@pytest.mark.parametrize("integers", [False, True])
def test_a_quantized_graph_costs_what_the_float_one_does(placement, integers, tmp_path):
    plain = cost(save(residual_net(FLOAT), tmp_path / "float.onnx"))
    model = residual_net(placement)
    if integers:
        store_integers(model)
    assert cost(save(model, tmp_path / "q.onnx")) == plain


def store_integers(model):
    """Weights as the integers that their QuantizeLinear gives."""
    values = {item.name: item for item in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in values]:
        item = values[node.input[0]]
        weight = numpy_helper.to_array(item)
        item.CopyFrom(numpy_helper.from_array(np.sign(weight).astype(np.int8), node.output[0]))
        model.graph.node.remove(node)


def test_parameters_of_an_operator_on_integers(tmp_path):
    weight, zero = np.ones((4, 3, 3, 3), np.int8), np.int8(0)
    names = ("x_scale", "x_zero", "weight", "w_scale", "w_zero", "y_scale", "y_zero", "bias")
    arrays = (np.float32(1), zero, weight, np.float32(1), zero, np.float32(1), zero, np.ones(4, np.int32))
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["images", "x_scale", "x_zero"], ["x"]),
        onnx.helper.make_node("QLinearConv", ["x", *names], ["y"]),
        onnx.helper.make_node("DequantizeLinear", ["y", "y_scale", "y_zero"], ["float"]),
        onnx.helper.make_node("GlobalAveragePool", ["float"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    sides = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("images", [1, 3, 8, 8]), ("logits", [1, 4]))
    ]
    initializers = [numpy_helper.from_array(np.asarray(a), n) for n, a in zip(names, arrays, strict=True)]
    graph = onnx.helper.make_graph(nodes, "net", sides[:1], sides[1:], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert io.read(save(model, tmp_path / "q.onnx")).parameters == 4 * 27 + 4


@pytest.mark.parametrize(
    ("shape", "outputs", "cure"),
    [
        (["batch", "channels", 8, 8], 1, "number of channels"),
        (["batch", 192], 1, "batch, channels, height, width"),
        (["batch", 3, 8, 8], 2, "--output logits0"),
    ],
)
def test_what_is_wrong_with_the_outside_of_a_graph_is_named(shape, outputs, cure, tmp_path):
    image = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)
    nodes = [onnx.helper.make_node("Identity", ["weights"], [f"logits{n}"]) for n in range(outputs)]
    logits = [
        onnx.helper.make_tensor_value_info(n.output[0], onnx.TensorProto.FLOAT, ["batch", 5]) for n in nodes
    ]
    weights = numpy_helper.from_array(np.ones((1, 5), np.float32), "weights")
    graph = onnx.helper.make_graph(nodes, "net", [image], logits, [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match="expected") as caught:
        io.read(save(model, tmp_path / "m.onnx"))
    assert cure in caught.value.hint


def test_preprocessing_is_read_from_metadata_and_foreign_metadata_is_not(tmp_path):
    model = residual().model()
    entry = model.metadata_props.add()
    entry.key = "preprocess"
    entry.value = json.dumps({"resize": 20, "crop": 16, "mean": [0, 0, 0], "std": [1, 1, 1]})
    onnx.save(model, tmp_path / "m.onnx")
    expected = Preprocess(resize=20, crop=16, mean=(0, 0, 0), std=(1, 1, 1))
    assert io.read(tmp_path / "m.onnx").preprocess == expected
    for foreign in ("bgr", "[1]", '{"mean": 3}', '{"size": 1, "mean": [], "std": []}'):
        entry.value = foreign
        onnx.save(model, tmp_path / "m.onnx")
        assert io.read(tmp_path / "m.onnx").preprocess is None


def test_a_copy_is_edited_apart_and_a_saved_graph_comes_back(tmp_path):
    model = io.read(residual().save(tmp_path / "m.onnx")).model
    copied = io.copy(model)
    weight = edit.constant(model.graph.initializers["conv0.weight"]).copy()
    edit.set_constant(copied.graph.initializers["conv0.weight"], weight * 2)
    np.testing.assert_array_equal(edit.constant(model.graph.initializers["conv0.weight"]), weight)
    io.save(copied, tmp_path / "copy.onnx")
    again = io.read(tmp_path / "copy.onnx").model
    np.testing.assert_array_equal(edit.constant(again.graph.initializers["conv0.weight"]), weight * 2)
    assert [n.name for n in again.graph] == [n.name for n in model.graph]


def test_reference_gives_the_tensors_that_are_asked_in_order(tmp_path):
    model = io.read(residual().save(tmp_path / "m.onnx")).model
    value = next(v for node in model.graph for v in node.outputs if v.name == "conv0")
    model.graph.outputs.append(value)
    conv, logits = Reference(model, ["conv0", "logits"]).run(images(2, 16))
    assert conv.shape == (2, 8, 16, 16)
    assert logits.shape == (2, 5)


def test_a_graph_that_the_reference_refuses():
    g = Graph()
    model = ir.from_proto(g.head(g.conv("images", 4)).model())
    next(iter(model.graph)).op_type = "NoSuchOperation"
    with pytest.raises(ModelError, match="rejects"):
        Reference(model, ["logits"])


def infinite(model):
    tensor = model.graph.initializer[0]
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[0] = np.inf
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def integer_input(model):
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8


def two_outputs(model):
    model.graph.output.append(onnx.helper.make_tensor_value_info("conv0", 1, ["batch", 8, 16, 16]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (infinite, r"weight 'conv0\.weight' .* NaN or infinite"),
        (two_outputs, "2 outputs: logits, conv0"),
        (integer_input, "uint8 and read by node .conv0."),
    ],
)
def test_graphs_that_cannot_be_quantized_are_refused_by_name(change, message, tmp_path):
    model = residual().model()
    change(model)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=message) as caught:
        io.read_classifier(tmp_path / "m.onnx")
    assert caught.value.hint


def test_a_quantized_graph_is_refused_and_the_node_named(tmp_path):
    with pytest.raises(ModelError, match=r"quantized already: node '.+' is a QuantizeLinear"):
        io.read_classifier(save(residual_net(), tmp_path / "m.onnx"))


@pytest.mark.parametrize("content", [b"", b"not onnx", None])
def test_damaged_and_absent_files(content, tmp_path):
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError):
        io.read(tmp_path / "m.onnx")


def test_a_cut_off_file(tmp_path):
    path = residual().save(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"m\.onnx"):
        io.read(path)
