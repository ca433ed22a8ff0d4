"""Pair sums against an emulation of the instruction, and weights that never saturate."""

import itertools
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from float_graphs import Graph, images
from hypothesis import given, settings
from hypothesis import strategies as st

import targets
from quantize import QuantizeOptions
from quantize.calibrated import prepare
from quantize.collect import collect
from quantize.placement import place
from quantize.qparams import quantize_array, weight_qparams
from quantize.saturation import relieve, saturating, saturating_channels
from toolkit.core.quant import QuantSpec
from toolkit.graph import io


def vpmaddubsw(unsigned, signed):
    """Sixteen-bit lanes of adjacent byte pairs: products added, then saturated."""
    products = unsigned.astype(np.int32) * signed.astype(np.int32)
    return np.clip(products[..., ::2] + products[..., 1::2], -(2**15), 2**15 - 1)


def can_saturate(weights):
    """By emulation: whether some input makes a lane differ from the exact sum.

    A sum of products is extreme at corners of the inputs, so these are all that need trying.
    """
    for corner in itertools.product([0, 255], repeat=len(weights)):
        lanes = vpmaddubsw(np.array(corner, np.uint8), np.array(weights, np.int8))
        exact = (np.array(corner) * weights).reshape(-1, 2).sum(1)
        if (lanes != exact).any():
            return True
    return False


@given(st.lists(st.integers(-127, 127), min_size=4, max_size=4))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_the_rule_is_what_the_instruction_does(weights):
    assert saturating_channels(np.array([weights]))[0] == can_saturate(np.array(weights))


@pytest.mark.parametrize(
    ("pair", "saturates"),
    [
        ((64, 64), False),
        ((64, 65), True),
        ((127, 1), False),
        ((127, 2), True),
        ((127, -127), False),
        ((-64, -64), False),
        ((-64, -65), True),
        ((127, 127), True),
        ((-127, -127), True),
    ],
)
def test_the_boundary(pair, saturates):
    assert saturating_channels(np.array([pair]))[0] == saturates == can_saturate(np.array(pair))


def test_channels_pair_within_a_position_and_an_odd_one_stays_alone():
    weight = np.zeros((3, 3, 1, 2), np.int64)
    weight[0, 0, 0, 0] = weight[0, 1, 0, 1] = 127  # other positions
    weight[1, 1, 0, 0] = weight[1, 2, 0, 0] = 127  # other pairs: (0, 1) and (2, nothing)
    weight[2, 0, 0, 0] = weight[2, 1, 0, 0] = 127
    assert saturating_channels(weight).tolist() == [False, False, True]


def network(seed=0):
    g = Graph(seed=seed)
    first = g.unary("Relu", g.conv("images", 8, weight=np.full((8, 3, 3, 3), 0.5)))
    second = g.unary("Relu", g.conv(first, 8))
    deep = g.unary("Relu", g.conv(second, 8, group=8))
    return ir.from_proto(g.head(g.conv(deep, 8)).model())


def parameters(model, scheme):
    placed = place(model, targets.get(scheme).scheme)
    arrays = {name: io.constant(model.graph.initializers[name]) for name in placed.weights}
    return placed, arrays, {n: weight_qparams(arrays[n], s) for n, s in placed.weights.items()}


def test_signed_convolutions_and_depthwise_ones_cannot_saturate_but_a_signed_fully_connected_can():
    """The first convolution reads signed pixels: oneDNN halves its weights, however large their pairs."""
    placed, _, weights = parameters(network(), "openvino")
    assert placed.activations["images"].dtype == "int8"
    found = saturating(network(), placed.activations, weights)
    assert "conv0.weight" not in found
    assert "conv4.weight" not in found
    assert {"conv2.weight", "conv6.weight"} <= set(found)
    signed = dict.fromkeys(placed.activations, QuantSpec("int8", symmetric=True))
    assert not {name for name in saturating(network(), signed, weights) if name != "fc.weight"}


@pytest.mark.parametrize("seed", range(5))
def test_relieved_weights_never_saturate_and_lose_a_bit_at_most(seed):
    model = network(seed)
    placed, arrays, weights = parameters(model, "openvino")
    before = saturating(model, placed.activations, weights)
    assert before
    relieved = relieve(model, placed.activations, weights)
    assert saturating(model, placed.activations, relieved) == {}
    for name, array in arrays.items():
        old, new = np.array(weights[name].scale), np.array(relieved[name].scale)
        assert (new >= old).all()
        assert (new <= old * 2.05).all()
        assert (new != old).sum() == before.get(name, 0), "others stay as they are"
        down = np.floor(np.abs(array) / new.reshape(-1, *[1] * (array.ndim - 1)))
        up = np.sign(array) * (down + (down > 0))
        if name in before:
            touched = new != old
            assert not saturating_channels(up[touched].astype(np.int64)).any(), "any rounding fits"


def test_relieved_integers_are_exact_in_the_emulation():
    """Whole rows through the instruction, with random inputs: saturated before, exact after."""
    model = network()
    placed, arrays, weights = parameters(model, "openvino")
    relieved = relieve(model, placed.activations, weights)
    random = np.random.default_rng(0)
    pixels = random.choice([0, 255], (2000, 8)).astype(np.uint8)

    def wrong(qparams):
        integers = quantize_array(arrays["conv2.weight"], qparams)
        count = 0
        for row in integers.transpose(0, 2, 3, 1).reshape(-1, 8):
            exact = (pixels.astype(int) * row).reshape(len(pixels), -1, 2).sum(2)
            count += int((vpmaddubsw(pixels, row.astype(np.int8)) != exact).sum())
        return count

    assert wrong(weights["conv2.weight"]) > 0
    assert wrong(relieved["conv2.weight"]) == 0


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_scheme_whose_sums_saturate_gets_relieved_weights(effort, tmp_path):
    pixels = images(8)
    io.save(network(), tmp_path / "m.onnx")
    model, statistics = io.read_classifier(tmp_path / "m.onnx").model, collect(tmp_path / "m.onnx", [pixels])
    for pair_sums in (False, True):
        scheme = replace(targets.get("openvino").scheme, pair_sums=pair_sums)
        found = prepare(model, statistics, scheme, QuantizeOptions(effort=effort))
        assert bool(saturating(found.model, found.placement.activations, found.weights)) != pair_sums
