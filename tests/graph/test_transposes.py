"""Graphs in channels-last layout become channels-first ones that compute the same."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.conversion import conversion_error

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
HEIGHT, WIDTH, CHANNELS = 6, 8, 4
RANDOM = np.random.default_rng(0)
VECTOR = RANDOM.normal(size=CHANNELS).astype("f4")


def graph(*steps, path, channels=3, dtype=TensorProto.FLOAT, shape=None):
    """Convolution in Transposes, then steps (operator, attributes, inputs: arrays or names), then a Gemm.

    "x" names the output of the step before, "conv" the convolution's, both (N, H, W, C).
    """
    initializers, nodes = [], []

    def add(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))

    def constant(array):
        initializers.append(numpy_helper.from_array(np.asarray(array), f"constant{len(initializers)}"))
        return initializers[-1].name

    weight = RANDOM.normal(0, 0.3, (CHANNELS, channels, 3, 3)).astype("f4")
    add("Transpose", ["images"], "first", perm=TO_FIRST)
    add("Conv", ["first", constant(weight)], "planes", pads=[1] * 4)
    add("Transpose", ["planes"], "conv", perm=TO_LAST)
    value = "conv"
    for place, (kind, attributes, *inputs) in enumerate(steps):
        names = [
            value
            if isinstance(each, str) and each == "x"
            else each
            if isinstance(each, str)
            else constant(each)
            for each in inputs
        ]
        value = f"step{place}"
        add(kind, names, value, **attributes)
    add("Flatten", [value], "flat", axis=1)
    shape = shape or ["batch", HEIGHT, WIDTH, channels]
    image = helper.make_tensor_value_info("images", dtype, shape)
    probe = helper.make_graph(
        nodes, "g", [image], [helper.make_tensor_value_info("flat", 1, None)], initializers
    )
    model = helper.make_model(probe, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    zeros = np.zeros((1, HEIGHT, WIDTH, channels), "f4")
    (flat,) = ReferenceEvaluator(model).run(None, {"images": zeros})
    head = numpy_helper.from_array(RANDOM.normal(size=(flat.shape[1], 5)).astype("f4"), "head")
    model.graph.initializer.append(head)
    model.graph.node.append(helper.make_node("Gemm", ["flat", "head"], ["logits"], "fc"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", 1, ["batch", 5]))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def squeezed():
    """Squeeze and excitation: a mean, two layers on (N, C), and a product with (N, 1, 1, C)."""
    square = RANDOM.normal(0, 0.5, (CHANNELS, CHANNELS)).astype("f4")
    return (
        ("ReduceMean", {"axes": [1, 2], "keepdims": 0}, "conv"),
        ("MatMul", {}, "x", square),
        ("Sigmoid", {}, "x"),
        ("Reshape", {}, "x", np.array([-1, 1, 1, CHANNELS])),
        ("Mul", {}, "conv", "x"),
    )


MEAN = ("ReduceMean", {"axes": [1, 2], "keepdims": 0}, "x")
STEPS = {
    "bias and relu": [("Add", {}, "x", VECTOR), ("Relu", {}, "x"), MEAN],
    "clip": [("Clip", {}, "x", np.float32(0), np.float32(6)), MEAN],
    "constant first": [("Sub", {}, np.float32(1) + VECTOR, "x"), MEAN],
    "map constant": [("Mul", {}, "x", RANDOM.normal(size=(HEIGHT, WIDTH, 1)).astype("f4")), MEAN],
    "prelu": [("PRelu", {}, "x", VECTOR), MEAN],
    "residual": [("Relu", {}, "x"), ("Add", {}, "x", "conv"), MEAN],
    "concat": [("Concat", {"axis": 3}, "x", "conv"), MEAN],
    "concat of rows": [("Concat", {"axis": -2}, "x", "conv"), MEAN],
    "softmax of channels": [("Softmax", {"axis": -1}, "x"), MEAN],
    "pad": [("Pad", {}, "x", np.array([0, 1, 2, 0, 0, 3, 0, 1])), MEAN],
    "slice": [("Slice", {}, "x", np.array([1]), np.array([5]), np.array([2])), MEAN],
    "slice without axes": [("Slice", {}, "x", np.array([0, 1]), np.array([9, 5])), MEAN],
    "channels reversed": [("Gather", {"axis": 3}, "x", np.array([3, 2, 1, 0])), MEAN],
    "mean kept": [
        ("ReduceMean", {"axes": [1, 2], "keepdims": 1}, "x"),
        ("Reshape", {}, "x", np.array([-1, CHANNELS])),
    ],
    "squeeze": [
        ("ReduceMax", {"axes": [1, 2], "keepdims": 1}, "x"),
        ("Squeeze", {}, "x", np.array([1, 2])),
    ],
    "mean of rows": [("ReduceMean", {"axes": [1], "keepdims": 0}, "x")],
    "mean of channels": [("ReduceMean", {"axes": [-1], "keepdims": 1}, "x")],
    "squeeze and excitation": [*squeezed(), MEAN],
    "whole maps": [("Relu", {}, "x")],
}
# flattened in the order of rows and channels; a vector (N, 1, 1, C) that scales planes
BLOCKED = {"mean of rows", "whole maps", "squeeze and excitation"}


@pytest.mark.parametrize("name", STEPS)
def test_the_graph_without_transposes_computes_the_same(name, tmp_path):
    path = graph(*STEPS[name], path=tmp_path / "net.onnx")
    read = io.read_classifier(path)
    assert (read.form.layout, read.channels, read.size) == ("NHWC", 3, (HEIGHT, WIDTH))
    assert conversion_error(read, (HEIGHT, WIDTH)) < 1e-6
    left = sum(node.op_type == "Transpose" for node in read.model.graph)
    assert left == (name in BLOCKED)


def test_a_layer_along_other_axes_keeps_its_transposes(tmp_path):
    dense = ("MatMul", {}, "x", RANDOM.normal(size=(CHANNELS, CHANNELS)).astype("f4"))
    path = graph(("Relu", {}, "x"), dense, MEAN, path=tmp_path / "net.onnx")
    read = io.read_classifier(path)
    assert [n.op_type for n in read.model.graph][:4] == ["Conv", "Relu", "Transpose", "MatMul"]
    assert conversion_error(read, (HEIGHT, WIDTH)) < 1e-6


def test_a_conversion_that_is_wrong_is_found(tmp_path):
    read = io.read_classifier(graph(*STEPS["bias and relu"], path=tmp_path / "net.onnx"))
    next(iter(read.model.graph.initializers.values())).const_value.numpy()[:] *= 1.01
    assert conversion_error(read, (HEIGHT, WIDTH)) > 1e-3


@pytest.mark.parametrize("shape", [["batch", "h", "w", 3], [2, HEIGHT, WIDTH, 3], ["batch", HEIGHT, "w", 3]])
def test_open_sides_and_fixed_batches_are_read(shape, tmp_path):
    read = io.read_classifier(graph(MEAN, path=tmp_path / "net.onnx", shape=shape))
    numbers = [size if isinstance(size, int) else None for size in shape]
    assert (read.batch, read.height, read.width, read.channels) == tuple(numbers)
    assert conversion_error(read, (HEIGHT, WIDTH)) < 1e-6


def test_pixels_that_are_not_cast_are_refused(tmp_path):
    image = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.UINT8, ["batch", 3])
    nodes = [
        helper.make_node("BitShift", ["images", "one"], ["shifted"], "shift", direction="RIGHT"),
        helper.make_node("Flatten", ["shifted"], ["logits"], "flat"),
    ]
    one = numpy_helper.from_array(np.array(1, np.uint8), "one")
    proto = helper.make_graph(nodes, "g", [image], [logits], [one])
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "n.onnx")
    with pytest.raises(ModelError, match=r"'shift' \(BitShift\)"):
        io.read_classifier(tmp_path / "n.onnx")
