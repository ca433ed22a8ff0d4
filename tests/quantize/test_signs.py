"""Tensors that cannot be negative, and how signed ones are stored where a runtime needs it."""

from dataclasses import replace

import graph_forms
import numpy as np
import onnx_ir as ir
import pytest
from graph_forms import Form
from onnx import helper, numpy_helper

from edgeship import targets
from edgeship.quantization import qdq
from edgeship.quantization.integer_bias import LARGEST_BIAS, widen_scales
from edgeship.quantization.placement import place
from edgeship.quantization.qparams import choose_qparams, weight_qparams
from edgeship.toolkit.core.quant import Range
from edgeship.toolkit.graph import edit
from edgeship.toolkit.graph.signs import never_negative

OPENVINO = targets.get("openvino").scheme()


def last_is_never_negative(write):
    """Return True if `never_negative` holds for the tensor that `write` computes of the images."""
    g = Form()
    name = write(g)
    output = helper.make_tensor_value_info(name, 1, None)
    graph = helper.make_graph(g.nodes, "net", [g.infos["images"]], [output], g.initializers)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    return never_negative(model.graph.outputs[0])


MOVES = [name for name in graph_forms.MOVES if name != "pad-value"]
POOLS = list(graph_forms.POOLS)


@pytest.mark.parametrize("move", [*MOVES, *POOLS])
@pytest.mark.parametrize(("sign", "expected"), [("relu", True), ("none", False)])
def test_what_moves_or_pools_values_keeps_the_sign(move, sign, expected):
    change = {**graph_forms.MOVES, **graph_forms.POOLS}[move]
    assert last_is_never_negative(lambda g: change(g, g.start(sign))) is expected


@pytest.mark.parametrize("kind", ["relu", "relu6", "sigmoid", "softplus", "square", "sqrt", "abs"])
def test_activations_that_are_never_negative(kind):
    assert last_is_never_negative(lambda g: g.start(kind))


@pytest.mark.parametrize(
    "kind",
    ["none", "leaky", "prelu", "elu", "hard-swish", "silu", "gelu", "tanh", "clip", "neg-relu", "mish"],
)
def test_activations_that_can_be_negative(kind):
    assert not last_is_never_negative(lambda g: g.start(kind))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda g: g.op("Pad", g.start(), g.integers(0, 0, 1, 1, 0, 0, 1, 1), g.constant(-1.0)), False),
        (lambda g: g.op("Pad", g.start(), g.integers(0, 0, 1, 1, 0, 0, 1, 1), g.constant(1.0)), True),
        (
            lambda g: g.op(
                "Pad", g.start(), g.integers(0, 0, 1, 1, 0, 0, 1, 1), g.constant(-1.0), mode="reflect"
            ),
            True,
        ),
        (lambda g: g.op("Resize", g.start(), "", g.constant([1, 1, 2, 2]), mode="cubic"), False),
        (lambda g: g.op("Add", g.start(), g.constant(-0.5)), False),
        (lambda g: g.op("Add", g.start(), g.constant(0.5)), True),
        (lambda g: g.op("Mul", g.start(), g.start("sigmoid")), True),
        (lambda g: g.op("Mul", g.start(), g.start("none")), False),
        (lambda g: g.op("Max", g.start(), g.start("none")), True),
        (lambda g: g.op("Min", g.start(), g.start("none")), False),
        (lambda g: g.op("Concat", g.start(), g.start("none"), axis=1), False),
        (lambda g: g.op("Concat", g.start(), g.start("sigmoid"), axis=1), True),
        (lambda g: g.op("Clip", g.start(), "", g.constant(-1.0)), False),
        (lambda g: g.ops("Split", g.start(), g.integers(8, 8), outputs=2, axis=1)[1], True),
        (lambda g: g.op("Sub", g.start(), g.start()), False),
    ],
)
def test_signs_of_joins_and_constants(write, expected):
    assert last_is_never_negative(write) is expected


def test_a_long_chain_of_joins_takes_no_time():
    def chain(g):
        x = g.start()
        for _ in range(60):  # 2**60 ways without memory
            x = g.op("Add", x, x)
        return x

    assert last_is_never_negative(chain)


def form(name):
    return ir.from_proto(graph_forms.build(name))


def test_signed_integers_of_a_concat_are_stored_with_an_offset():
    model = form("inception-max-none")
    placed = place(model, OPENVINO).activations
    offsets = {name: spec.offset for name, spec in placed.items()}
    joined = next(node for node in model.graph if node.op_type == "Concat")
    first = next(node for node in model.graph if node.op_type == "Conv")  # pooled, and then joined
    names = {str(node.outputs[0].name) for node in (joined, first)}
    assert {name: offsets[name] for name in names} == dict.fromkeys(names, 128)
    assert offsets["images"] == 0
    assert {placed[name].dtype for name in names} == {"int8"}
    assert not any(
        spec.offset for spec in place(model, targets.get("tensorrt").scheme()).activations.values()
    )


def test_an_offset_changes_no_value():
    """Stored as uint8 with a zero point of 128: the same steps, to the last bit."""
    values = {}
    for offset in (0, 128):
        spec = replace(OPENVINO.activation, offset=offset)
        qparams = choose_qparams(Range((-3.0,), (2.0,)), spec)
        proto = ir.to_proto(qdq.insert(form("head-average-relu"), {"images": qparams}, {}, {}))
        arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        scale, zero = arrays["images/scale"], arrays["images/zero_point"]
        assert (zero.dtype, int(zero)) == (("uint8", 128) if offset else ("int8", 0))
        info, x = np.iinfo(zero.dtype), np.linspace(-4, 4, 999, dtype=np.float32)
        values[offset] = ((np.rint(x / scale) + zero).clip(info.min, info.max) - zero) * scale
    np.testing.assert_array_equal(values[0], values[128])


@pytest.mark.parametrize("name", ["extreme-zero-filters-huge-bias", "extreme-tiny-filters-huge-bias"])
def test_scales_leave_room_for_integer_biases(name):
    model = form(name)
    scheme = targets.get("onnxruntime").scheme()
    placement = place(model, scheme)
    activations = {n: choose_qparams(Range((-1.0,), (1.0,)), s) for n, s in placement.activations.items()}
    nearest = {
        n: weight_qparams(edit.constant(model.graph.initializers[n]), s) for n, s in placement.weights.items()
    }
    widened = widen_scales(model, activations, nearest)
    layer = [node for node in model.graph if node.op_type == "Conv"][1]
    weight, bias = str(layer.inputs[1].name), np.abs(edit.constant(layer.inputs[2]))
    step = activations[str(layer.inputs[0].name)].scale[0]
    before, after = (np.asarray(each[weight].scale) for each in (nearest, widened))
    assert (bias / (step * before)).max() > 2**31
    assert (bias / (step * after)).max() <= LARGEST_BIAS * (1 + 1e-6)
    np.testing.assert_array_equal(after[1::2], before[1::2])  # filters of ordinary size stay as they are
    assert {n: q for n, q in widened.items() if n != weight} == {
        n: q for n, q in nearest.items() if n != weight
    }
