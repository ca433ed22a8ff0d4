"""Rounding by second moments: hand-worked, against brute force, and for every form of a layer."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from float_graphs import Graph

from quantize.gptq import LeastSquares, _columns, _moments
from quantize.gptq import rounded as rounded_blocks
from quantize.network import Network
from quantize.qparams import weight_qparams
from quantize.simulate import fake_quantize
from toolkit.core.quant import QuantSpec


def rounded(weight, moments, scale, limit):
    """One block of inputs."""
    return rounded_blocks(weight[None], moments[None], scale, limit)[0]


def _error(steps, weight, moments, scale):
    lost = steps * scale[:, None] - weight
    return float((lost @ moments * lost).sum())


def test_two_inputs_that_are_always_alike_share_their_error():
    """Both weights are 0.4 steps, 0.8 in all: the nearest integers give 0, these give 1."""
    weight, moments = torch.tensor([[0.4, 0.4]]), torch.ones(2, 2)
    steps = rounded(weight, moments, torch.ones(1), 127)
    assert steps.sum() == 1


def test_inputs_that_have_nothing_in_common_are_rounded_to_the_nearest():
    weight = torch.linspace(-3.4, 3.3, 24).reshape(2, 12)
    steps = rounded(weight, torch.diag(torch.arange(1.0, 13)), torch.tensor([1.0, 0.5]), 127)
    assert torch.equal(steps, (weight.double() / torch.tensor([[1.0], [0.5]])).round())


def test_no_input_and_large_weights_stay_within_bounds():
    weight = torch.tensor([[200.0, -300.0, 1.6]])
    assert torch.equal(
        rounded(weight, torch.zeros(3, 3), torch.ones(1), 127), torch.tensor([[127.0, -127, 2]])
    )
    correlated = torch.full((3, 3), 0.9) + 0.1 * torch.eye(3)
    assert rounded(weight, correlated, torch.ones(1), 127).abs().max() <= 127


def test_it_is_near_the_best_of_all_roundings_and_far_better_than_the_nearest():
    """Brute force over 2^6 roundings up or down, 40 times."""
    generator = torch.Generator().manual_seed(0)
    ours = nearest = best = 0.0
    for _ in range(40):
        inputs = torch.randn(30, 6, generator=generator) + 2 * torch.randn(30, 1, generator=generator)
        moments, scale = (inputs.T @ inputs).double(), torch.ones(1, dtype=torch.float64)
        weight = 5 * torch.randn(1, 6, generator=generator, dtype=torch.float64)
        ours += _error(rounded(weight, moments, scale, 127), weight, moments, scale)
        nearest += _error(weight.round(), weight, moments, scale)
        choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64)
        best += min(
            _error((weight.floor() + up)[None].reshape(1, 6), weight, moments, scale) for up in choices
        )
    assert best <= ours < 2.5 * best
    assert ours < 0.35 * nearest


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "dilation"),
    [
        ((3, 3), 1, (1, 1, 1, 1), 1),
        ((3, 3), 2, (0, 0, 1, 1), 1),
        ((1, 1), 2, (0,) * 4, 1),
        ((3, 2), 1, (2, 1, 0, 1), 2),
    ],
)
def test_columns_times_weights_are_the_convolution(kernel, stride, pads, dilation):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 3, 9, 8, generator=generator)
    weight = torch.randn(4, 3, *kernel, generator=generator)
    attributes = {"pads": list(pads), "strides": [stride] * 2, "dilations": [dilation] * 2}
    node = ir.node("Conv", [ir.Value(name="x"), ir.Value(name="w")], attributes=attributes)
    top, left, bottom, right = pads
    exact = F.conv2d(F.pad(values, (left, right, top, bottom)), weight, stride=stride, dilation=dilation)
    found = _columns(node, tuple(weight.shape), values, 1000) @ weight.reshape(4, -1).T
    np.testing.assert_allclose(found, exact.permute(0, 2, 3, 1).reshape(-1, 4), atol=1e-4)


def test_few_positions_are_spread_over_the_map():
    values = torch.arange(64.0).reshape(1, 1, 8, 8)
    node = ir.node("Conv", [ir.Value(name="x"), ir.Value(name="w")])
    assert _columns(node, (1, 1, 1, 1), values, 4).ravel().tolist() == [0, 4, 32, 36]


def test_moments_are_those_of_every_block_about_their_means():
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(4, 5, 6, 6, generator=generator) + 3 for _ in range(2)]
    node = ir.node("Conv", [ir.Value(name="x"), ir.Value(name="w")])
    found = _moments(node, (8, 5, 1, 1), [lambda part=part: part for part in parts], 2, 10**6)
    rows = torch.cat(parts).permute(0, 2, 3, 1).reshape(-1, 5).double()
    exact = (rows - rows.mean(0)).T @ (rows - rows.mean(0))
    assert found.shape == (3, 2, 2)
    for block, first in enumerate((0, 2)):
        np.testing.assert_allclose(found[block], exact[first : first + 2, first : first + 2], rtol=1e-4)
    np.testing.assert_allclose(found[2], torch.diag(torch.tensor([float(exact[4, 4]), 0])), rtol=1e-4)


def test_a_matrix_product_has_no_bias_that_makes_up_for_the_mean():
    values = torch.ones(7, 2)
    product, layer = (ir.node(kind, [ir.Value(name="x"), ir.Value(name="w")]) for kind in ("MatMul", "Gemm"))
    assert torch.equal(
        _moments(product, (3, 2), [lambda: values], 2, 100)[0], torch.full((2, 2), 7.0).double()
    )
    assert _moments(layer, (3, 2), [lambda: values], 2, 100).abs().max() == 0


@pytest.mark.parametrize(("together", "most"), [(None, 0.35), (18, 0.6), (1, 0.9)])
def test_a_convolution_loses_less_the_more_of_its_inputs_are_fitted_together(together, most):
    """Smooth images: neighbours are alike. What the output loses, over what the nearest integers do."""
    generator = torch.Generator().manual_seed(3)
    own, common = (torch.randn(6, channels, 16, 16, generator=generator) for channels in (8, 1))
    values = F.avg_pool2d(own + common, 5, 1, 2)
    graph = Graph(size=16, channels=8)
    graph.head(graph.conv("images", 4))
    network = Network(ir.from_proto(graph.model()))
    node, name = network.nodes[0], str(network.nodes[0].inputs[1].name)
    weight = network.constants[name]
    qparams = weight_qparams(weight.numpy(), QuantSpec("int8", symmetric=True, axis=0, bits=5))

    def lost(found):
        errors = F.conv2d(values, found - weight)
        return float((errors - errors.mean((0, 2, 3), keepdim=True)).square().sum())

    fit = LeastSquares(network, {name: qparams}, together)
    found = fit(node, name, [lambda: values])
    assert lost(found) < most * lost(fake_quantize(weight, qparams))
    torch.testing.assert_close(fake_quantize(found, qparams), found)
    np.testing.assert_array_equal(fit.rounded[name], found)
