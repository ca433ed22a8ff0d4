"""Pairs of weights that share a sum of 16 bits: measured in the runtimes, two large weights at a time.

On a CPU with exact sums no two of them do; there the tests ask that nothing saturates at all.
"""

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship import targets
from edgeship.quantization.overflow import saturating_channels
from edgeship.targets._device import this_cpu
from edgeship.targets.onnxruntime import simulate

SIDE = 5
RUNTIMES = ("openvino", "onnxruntime")
SHAPES = {  # of the weights, and groups
    "1x1": ((1, 5, 1, 1), 1),
    "3x3": ((1, 4, 3, 3), 1),
    "first": ((1, 3, 3, 3), 1),
    "grey": ((1, 1, 4, 4), 1),
    "grouped": ((1, 3, 3, 3), 2),
    "two a channel": ((2, 1, 3, 3), 8),
    "depthwise": ((1, 1, 3, 3), 8),
    "fully connected": ((1, 9), 1),
}


def layer(path, weight, groups, dtype, scale):
    """One INT8 layer between Q/DQ pairs; inputs of scale 1, outputs of `scale`."""
    nodes, initializers = [], []

    def constant(name, value):
        initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def pair(tensor, step, kind):
        by = [constant(f"{tensor}_scale", np.float32(step)), constant(f"{tensor}_zero", kind(0))]
        nodes.append(helper.make_node("QuantizeLinear", [tensor, *by], [f"{tensor}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", *by], [f"{tensor}_dq"]))
        return f"{tensor}_dq"

    outputs, spatial = len(weight), weight.ndim == 4
    by = [
        constant("weight", weight.astype(np.int8)),
        constant("weight_scale", np.ones(outputs, np.float32)),
        constant("weight_zero", np.zeros(outputs, np.int8)),
    ]
    nodes.append(helper.make_node("DequantizeLinear", by, ["weight_dq"], axis=0))
    inputs = [pair("x", 1.0, dtype), "weight_dq", constant("bias", np.zeros(outputs, np.float32))]
    if spatial:
        pads = [weight.shape[2] // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, ["y"], pads=pads, group=groups, name="layer"))
    else:
        nodes.append(helper.make_node("Gemm", inputs, ["y"], transB=1, name="layer"))
    last = pair("y", scale, np.int8)
    shape = (1, weight.shape[1] * groups, *((SIDE, SIDE) if spatial else ()))
    after = (1, outputs, *shape[2:])
    nodes.append(helper.make_node("Relu", [last], ["z"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, after)],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, shape


def answers(runtime, path, images, folder):
    """Return the runtime's result and the exact one."""
    target = targets.get(runtime)
    compiled = target.compile(path, folder / runtime, "int8")
    with target.open(folder / runtime / compiled.file, threads=1) as engine, simulate(path) as simulation:
        return engine.infer(images), simulation.infer(images)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("kind", SHAPES)
def test_the_rule_names_the_pairs_that_saturate(runtime, kind, dtype, tmp_path):
    (each, *rest), groups = SHAPES[kind]
    pairs = list(itertools.combinations(range(int(np.prod(rest))), 2))
    depthwise = groups > 1 and rest[0] == each == 1
    outputs = groups if depthwise else len(pairs) + -len(pairs) % (16 * groups)
    largest = np.iinfo(dtype).max
    saturated, expected = [], []
    for start in range(0, len(pairs), outputs):
        some = pairs[start : start + outputs]
        weight = np.zeros((outputs, int(np.prod(rest))), np.int64)
        for row, pair in zip(weight, some, strict=False):
            row[list(pair)] = 127
        weight = weight.reshape(outputs, *rest)
        path, shape = layer(tmp_path / "layer.onnx", weight, groups, dtype, 2 * largest)
        found, exact = answers(runtime, path, np.full(shape, largest, np.float32), tmp_path)
        middle = (0, slice(None), *(side // 2 for side in shape[2:]))
        wrong = np.abs(found - exact)[middle] > 4 * largest  # two steps
        saturated += [pair for pair, bad in zip(some, wrong, strict=False) if bad]
        order = "rows" if groups > 1 else targets.get(runtime).scheme().pairs
        can = saturating_channels(weight, order)
        expected += [pair for pair, bad in zip(some, can, strict=False) if bad]
    exact_sums = this_cpu().int8_sums != "pairs"
    assert saturated == ([] if depthwise or exact_sums else expected)
    assert depthwise or expected or (kind, order) == ("grey", "channels"), "it has pairs to find"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((64, 3, 7, 7), 1), ((32, 45, 3, 3), 1), ((32, 64, 3, 3), 1), ((30, 5, 3, 3), 6), ((10, 513), 1)],
)
def test_weights_that_cannot_saturate_are_summed_exactly(runtime, shape, groups, dtype, tmp_path):
    """Random ones at the bound, inputs at the ends of their range: the rule misses no pair."""
    random = np.random.default_rng(0)
    order = "rows" if groups > 1 else targets.get(runtime).scheme().pairs
    weight = random.choice([-127, -90, -64, 64, 90, 127], shape)
    rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1) if order == "rows" else weight
    first, second = rows[:, 0:-1:2], rows[:, 1::2]  # views: an odd last one stays alone
    room = 128 - np.abs(first)
    second[...] = np.where(np.sign(first) == np.sign(second), np.sign(second) * room, second)
    if order == "rows" and len(shape) == 4:
        weight = np.moveaxis(rows.reshape(len(weight), *shape[2:], shape[1]), -1, 1)
    assert not saturating_channels(weight, order).any()
    span = np.iinfo(dtype)
    scale = float(127 * span.max * np.sqrt(np.prod(shape[1:])) / 64)
    path, inputs = layer(tmp_path / "layer.onnx", weight, groups, dtype, scale)
    images = random.choice([span.min, span.max], inputs).astype(np.float32)
    found, exact = answers(runtime, path, images, tmp_path)
    assert np.abs(found - exact).max() <= 1.01 * scale, "one step, where rounding is a tie"
    assert (exact > 0).mean() > 0.2
