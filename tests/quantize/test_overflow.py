"""Pair sums against an emulation of the instruction, and weights that never saturate."""

import itertools
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from float_graphs import Graph, images
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship import targets
from edgeship.quantization import QuantizeOptions
from edgeship.quantization.calibrate import collect
from edgeship.quantization.overflow import clip_pairs, reduce_range, saturating, saturating_channels
from edgeship.quantization.placement import place
from edgeship.quantization.ptq import prepare
from edgeship.quantization.qparams import quantize_array, weight_qparams
from edgeship.toolkit.graph import edit, io


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


def test_a_row_runs_over_the_channels_of_a_position_first():
    """Three channels: elements (0, 1), (2, 3), ... are channels (0, 1), (2, 0 of the next position), ..."""
    weight = np.zeros((4, 3, 1, 2), np.int64)
    for output, first, second in (
        (0, (0, 0, 0), (1, 0, 0)),  # elements 0 and 1
        (1, (2, 0, 0), (0, 0, 1)),  # 2 and 3
        (2, (0, 0, 1), (1, 0, 1)),  # 3 and 4
        (3, (1, 0, 1), (2, 0, 1)),  # 4 and 5
    ):
        weight[(output, *first)] = weight[(output, *second)] = 127
    assert saturating_channels(weight, "rows").tolist() == [True, True, False, True]
    assert saturating_channels(weight, "channels").tolist() == [True, False, True, False]


@pytest.mark.parametrize("order", ["channels", "rows"])
@given(st.integers(0, 2**32 - 1), st.sampled_from([(3, 5, 3, 3), (4, 4, 1, 1), (2, 7), (1, 1, 3, 3)]))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_clipped_integers_fit_and_only_the_larger_of_a_pair_is_changed(order, seed, shape):
    steps = np.random.default_rng(seed).integers(-127, 128, shape)
    result = clip_pairs(torch.from_numpy(steps).to(torch.int8), order).numpy().astype(int)
    assert result.shape == shape and not saturating_channels(result, order).any()
    taken = np.abs(steps) - np.abs(result)
    assert (taken >= 0).all() and (np.sign(result) * np.sign(steps) >= 0).all()
    changed = (taken > 0).reshape(len(steps), -1).any(1)
    assert (changed == saturating_channels(steps, order)).all(), "what fits stays"


def test_a_pair_gives_up_no_more_than_it_must():
    steps = torch.tensor([[100, 60, 127, 1], [-90, -70, 127, -127]], dtype=torch.int8)
    assert clip_pairs(steps, "rows").tolist() == [[68, 60, 127, 1], [-58, -70, 127, -127]]


def network(seed=0):
    g = Graph(seed=seed)
    first = g.unary("Relu", g.conv("images", 8, weight=np.full((8, 3, 3, 3), 0.5)))
    second = g.unary("Relu", g.conv(first, 8))
    deep = g.unary("Relu", g.conv(second, 8, group=8))
    return ir.from_proto(g.head(g.conv(deep, 8)).model())


def parameters(model, scheme):
    placed = place(model, targets.get(scheme).scheme())
    arrays = {name: edit.constant(model.graph.initializers[name]) for name in placed.weights}
    return placed, arrays, {n: weight_qparams(arrays[n], s) for n, s in placed.weights.items()}


def test_every_layer_can_saturate_but_a_depthwise_one():
    """The first convolution reads signed pixels: 128 is added to them, and they span all of a byte."""
    placed, _, weights = parameters(network(), "openvino")
    assert placed.activations["images"].dtype == "int8"
    result = saturating(network(), weights, "channels")
    assert result.keys() >= {"conv0.weight", "conv2.weight", "conv6.weight"}
    assert "conv4.weight" not in result


def test_grouped_convolutions_pair_along_their_rows():
    """A depthwise one with two outputs a channel has no two channels, and pairs taps of its kernel."""
    weight = np.zeros((16, 1, 3, 3))
    weight[:, 0, 0, :2] = 1.0  # elements 0 and 1
    g = Graph(8)
    model = ir.from_proto(g.head(g.conv(g.conv("images", 8), 16, weight=weight, group=8)).model())
    _, _, weights = parameters(model, "openvino")
    assert saturating(model, weights, "channels")["conv1.weight"] == 16
    shifted = np.roll(weight, 1, axis=3)  # elements 1 and 2 are of two pairs
    model.graph.initializers["conv1.weight"].const_value = ir.tensor(shifted.astype(np.float32))
    assert "conv1.weight" not in saturating(model, weights, "channels")


@pytest.mark.parametrize("order", ["channels", "rows"])
@pytest.mark.parametrize("seed", range(5))
def test_relieved_weights_never_saturate_and_lose_a_bit_at_most(seed, order):
    model = network(seed)
    _, arrays, weights = parameters(model, "openvino")
    before = saturating(model, weights, order)
    assert before
    relieved = reduce_range(model, weights, order)
    assert saturating(model, relieved, order) == {}
    for name, array in arrays.items():
        old, new = np.array(weights[name].scale), np.array(relieved[name].scale)
        assert (new >= old).all()
        assert (new <= old * 2.05).all()
        assert (new != old).sum() == before.get(name, 0), "others stay as they are"
        steps = np.abs(array) / new.reshape(-1, *[1] * (array.ndim - 1)).astype(np.float32)
        up = np.sign(array) * np.ceil(steps)
        if name in before:
            touched = new != old
            assert not saturating_channels(up[touched].astype(np.int64), order).any(), "any rounding fits"


def test_relieved_integers_are_exact_in_the_emulation():
    """Whole rows through the instruction, with random inputs: saturated before, exact after."""
    model = network()
    _, arrays, weights = parameters(model, "openvino")
    relieved = reduce_range(model, weights, "channels")
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
        scheme = replace(targets.get("openvino").scheme(), pair_sums=pair_sums)
        result = prepare(model, statistics, scheme, QuantizeOptions(effort=effort))
        assert bool(saturating(result.model, result.weights, "channels")) != pair_sums
