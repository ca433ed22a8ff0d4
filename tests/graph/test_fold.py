"""BatchNormalization behind a weighted layer: folded, and the network computes what it did."""

import numpy as np
import onnx
import onnxruntime
import pytest
from float_graphs import Graph, images
from onnx import helper, numpy_helper

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph import edit, io
from edgeship.toolkit.graph.reference import Reference


def kinds(path):
    return [node.op_type for node in io.read_classifier(path).model.graph]


def compare(path, inputs):
    """Largest difference of the logits after folding from ONNX Runtime's of the file as it is."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": inputs})
    graph = io.read_classifier(path)
    (got,) = Reference(graph.model, [graph.output]).run(inputs)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def norm(g, x):
    """A BatchNormalization whose numbers are not round."""
    name, channels = g.batch_norm(x), g.shapes[x][0]
    for position, tensor in enumerate(g.initializers):
        if tensor.name.startswith(f"{name}."):
            low, high = (0.3, 3.0) if tensor.name.endswith(("var", "weight")) else (-1.0, 1.0)
            drawn = g.random.uniform(low, high, channels).astype(np.float32)
            g.initializers[position] = numpy_helper.from_array(drawn, tensor.name)
    return name


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("group", [1, 2], ids=["plain", "grouped"])
def test_behind_a_convolution(bias, group, tmp_path):
    g = Graph()
    x = g.unary("Relu", norm(g, g.conv("images", 4)))
    path = g.head(g.unary("Relu", norm(g, g.conv(x, 6, group=group, bias=bias)))).save(tmp_path / "m.onnx")
    assert "BatchNormalization" in [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in kinds(path)
    assert compare(path, images()) < 1e-6
    named = io.read_classifier(path)
    assert {"conv0.weight", "conv0.bias"} <= set(named.model.graph.initializers)
    assert named.parameters == sum(
        edit.constant(value).size for value in named.model.graph.initializers.values()
    )


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [0, 1, 5])
def test_behind_a_fully_connected_layer(transposed, bias, tmp_path):
    """The BatchNormalization is the network's output, and gives it its name."""
    g = Graph()
    flat = g.node("Flatten", [g.node("GlobalAveragePool", ["images"], (3, 1, 1))], (3,), axis=1)
    weight = g.constant("fc.weight", g.random.normal(size=(5, 3) if transposed else (3, 5)))
    used = [flat, weight] + ([g.constant("fc.bias", g.random.normal(size=bias))] if bias else [])
    x = norm(g, g.node("Gemm", used, (5,), transB=transposed))
    g.nodes[-1].output[0] = "logits"
    g.shapes["logits"] = g.shapes[x]
    path = g.save(tmp_path / "m.onnx")
    assert kinds(path)[-1] == "Gemm"
    assert io.read_classifier(path).output == "logits"
    assert compare(path, images()) < 1e-6


def test_weights_that_another_layer_uses_are_not_touched(tmp_path):
    g = Graph(channels=4)
    first = norm(g, g.conv("images", 4))
    shared = next(tensor.name for tensor in g.initializers if tensor.name.endswith("weight"))
    path = g.head(g.conv(first, 4, shared=shared)).save(tmp_path / "m.onnx")
    assert "BatchNormalization" not in kinds(path)
    assert compare(path, images(channels=4)) < 1e-6


def test_a_layer_that_something_else_reads_too_keeps_its_batchnorm(tmp_path):
    g = Graph()
    x = g.conv("images", 4)
    path = g.head(g.add(norm(g, x), x)).save(tmp_path / "m.onnx")
    assert "BatchNormalization" in kinds(path)
    assert compare(path, images()) < 1e-6


def test_factors_of_a_gemm_and_an_add_between_keep_the_batchnorm(tmp_path):
    g = Graph()
    x = norm(g, g.add(g.conv("images", 4), g.conv("images", 4)))
    path = g.head(x).save(tmp_path / "m.onnx")
    assert "BatchNormalization" in kinds(path)
    g = Graph()
    flat = g.node("Flatten", ["images"], (3 * 64,), axis=1)
    scaled = g.node("Gemm", [flat, g.constant("w", g.random.normal(size=(192, 5)))], (5,), alpha=0.5)
    norm(g, scaled)
    g.nodes[-1].output[0] = "logits"
    g.shapes["logits"] = (5,)
    path = g.save(tmp_path / "m.onnx")
    assert "BatchNormalization" in kinds(path)
    assert compare(path, images()) < 1e-6


def test_a_variance_below_zero_is_refused_by_name(tmp_path):
    g = Graph()
    model = g.head(norm(g, g.conv("images", 4))).model()
    variance = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("var"))
    variance.CopyFrom(numpy_helper.from_array(np.full(4, -1.0, np.float32), variance.name))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="'batchnormalization1' has a variance of -1") as caught:
        io.read_classifier(tmp_path / "m.onnx")
    assert caught.value.hint


def test_initializers_that_are_inputs_too_are_folded(tmp_path):
    model = Graph()
    proto = model.head(norm(model, model.conv("images", 4))).model()
    for tensor in proto.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        proto.graph.input.append(value)
    onnx.save(proto, tmp_path / "m.onnx")
    graph = io.read_classifier(tmp_path / "m.onnx")
    assert "BatchNormalization" not in [node.op_type for node in graph.model.graph]
    assert graph.input == "images"


@pytest.mark.parametrize("how", ["gather", "slice"])
def test_a_network_that_turns_its_channels_reads_them_in_the_order_they_come_in(how, tmp_path):
    """Without it OpenVINO turned the weights, and INT8 logits were at 19 dB in place of 37 on AVX2."""
    g = Graph()
    if how == "gather":
        x = g.node("Gather", ["images", g.constant("bgr", [2, 1, 0], np.int64)], (3, 8, 8), axis=1)
    else:
        ends = [("from", [-1]), ("to", [-99]), ("axis", [1]), ("step", [-1])]
        x = g.node("Slice", ["images", *(g.constant(*each, np.int64) for each in ends)], (3, 8, 8))
    layers = [g.conv(x, 4), g.conv(x, 4)]
    path = g.head(g.add(*layers)).save(tmp_path / "m.onnx")
    assert kinds(path)[:2] == ["Conv", "Conv"]
    assert compare(path, images()) < 1e-6


@pytest.mark.parametrize(("order", "group"), [([0, 1], 1), ([2, 0, 1], 3), ([0, 0, 1], 1)])
def test_channels_that_are_left_out_or_grouped_are_taken_where_they_were(order, group, tmp_path):
    g = Graph()
    x = g.node("Gather", ["images", g.constant("some", order, np.int64)], (len(order), 8, 8), axis=1)
    path = g.head(g.conv(x, 6, group=group)).save(tmp_path / "m.onnx")
    assert kinds(path)[0] == "Gather"
    assert compare(path, images()) < 1e-6


def test_a_padding_before_convolutions_and_pools_is_theirs(tmp_path):
    """As TensorFlow's networks are exported: uneven, with zeros, behind a ReLU also before a max pool."""
    g = Graph()
    pads = g.constant("pads", [0, 0, 1, 0, 0, 0, 1, 2], np.int64)
    x = g.node("Pad", ["images", pads], (3, 10, 10))
    x = g.unary("Relu", g.conv(x, 4))
    pool = g.constant("around", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    x = g.node("Pad", [x, pool], (4, 12, 12))
    x = g.node("MaxPool", [x], (4, 5, 5), kernel_shape=[3, 3], strides=[2, 2])
    path = g.head(x).save(tmp_path / "m.onnx")
    assert kinds(path)[:3] == ["Conv", "Relu", "MaxPool"]
    assert compare(path, images()) < 1e-6


@pytest.mark.parametrize("what", ["ones", "below zero", "an output too", "channels"])
def test_a_padding_that_no_layer_can_do_stays(what, tmp_path):
    g = Graph()
    numbers = [0, 1, 1, 1, 0, 0, 1, 1] if what == "channels" else [0, 0, 1, 1, 0, 0, 1, 1]
    fill = [g.constant("fill", 1.0)] if what == "ones" else []
    shape = (3 + numbers[1], 10, 10)
    x = g.node("Pad", ["images", g.constant("pads", numbers, np.int64), *fill], shape)
    if what == "below zero":  # a zero may be the largest
        x = g.node("MaxPool", [x], (3, 4, 4), kernel_shape=[3, 3], strides=[2, 2])
    elif what == "an output too":
        x = g.add(g.conv(x, 3), x)
    path = g.head(g.conv(x, 4)).save(tmp_path / "m.onnx")
    assert kinds(path)[0] == "Pad"
    assert compare(path, images()) < 1e-6
