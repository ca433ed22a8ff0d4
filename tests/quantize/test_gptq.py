"""Rounding by second moments: hand-worked, against brute force, and for every form of a layer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from float_graphs import Graph, images

from edgeship.quantization import gptq
from edgeship.quantization.fake_quant import fake_quantize, quantized
from edgeship.quantization.gptq import gptq_round as rounded_blocks
from edgeship.quantization.gptq import gptq_weights
from edgeship.quantization.overflow import clip_pairs
from edgeship.quantization.qparams import weight_qparams
from edgeship.quantization.second_moments import collect_moments
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.quant import QuantSpec

COARSE = QuantSpec("int8", symmetric=True, axis=0, bits=5)


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


def test_blocks_agree_with_rounding_one_input_after_another():
    """GPTQ's paper, eq. 2 and 3, with the inverse itself; more inputs than are updated at once."""
    generator = torch.Generator().manual_seed(5)
    blocks, outputs, inputs = 2, 3, 41
    rows = torch.randn(blocks, 200, inputs, generator=generator, dtype=torch.float64).cumsum(2)
    moments = rows.transpose(1, 2) @ rows
    weight = 20 * torch.randn(blocks, outputs, inputs, generator=generator, dtype=torch.float64)
    expected = torch.empty_like(weight)
    for block in range(blocks):
        damped = moments[block] + gptq.DAMPING * moments.diagonal(dim1=1, dim2=2).mean() * torch.eye(inputs)
        left, inverse = weight[block].clone(), torch.linalg.inv(damped)
        for i in moments[block].diagonal().argsort(descending=True).tolist():
            expected[block, :, i] = left[:, i].round().clamp(-127, 127)
            error = (left[:, i] - expected[block, :, i]) / inverse[i, i]
            left -= error[:, None] * inverse[i]
            inverse = inverse - inverse[:, i : i + 1] * inverse[i] / inverse[i, i]
    result = rounded_blocks(weight, moments, torch.ones(outputs, dtype=torch.float64), 127)
    assert torch.equal(result.double(), expected)


@pytest.mark.parametrize(("together", "most"), [(None, 0.35), (18, 0.6), (1, 0.9)])
def test_a_convolution_loses_less_the_more_of_its_inputs_are_fitted_together(together, most):
    """Smooth images: neighbours are alike. What the output loses, over what the nearest integers do."""
    generator = torch.Generator().manual_seed(3)
    own, common = (torch.randn(6, channels, 16, 16, generator=generator) for channels in (8, 1))
    values = F.avg_pool2d(own + common, 5, 1, 2)
    graph = Graph(size=16, channels=8)
    graph.head(graph.conv("images", 4))
    network = TorchExecutor(ir.from_proto(graph.model()))
    name = str(network.nodes[0].inputs[1].name)
    weight = network.constants[name]
    qparams = weight_qparams(weight.numpy(), COARSE)

    def lost(result):
        errors = F.conv2d(values, result - weight, padding=1)
        return float((errors - errors.mean((0, 2, 3), keepdim=True)).square().sum())

    result = gptq_weights(network, values.numpy(), {name: qparams}, together).weights[name]
    assert lost(result) < most * lost(fake_quantize(weight, qparams))
    torch.testing.assert_close(fake_quantize(result, qparams), result)


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_what_cannot_be_fitted_goes_to_the_nearest_integers(kind):
    """Grouped and shared weights; the classifier, whose outputs lie along either axis, is fitted."""
    graph = Graph(size=8, channels=4)
    first = graph.conv("images", 4, group=2)
    second = graph.conv(first, 4, 1)
    graph.head(graph.conv(second, 4, 1, shared="conv1.weight"), 6, kind)
    network = TorchExecutor(ir.from_proto(graph.model()))
    images = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(4)).cumsum(2).numpy()
    weights = {
        name: weight_qparams(network.constants[name].numpy(), replace(COARSE, axis=axis))
        for name, axis in (("conv0.weight", 0), ("conv1.weight", 0), ("fc.weight", int(kind == "MatMul")))
    }
    result = gptq_weights(network, images, weights).weights
    nearest = {name: fake_quantize(network.constants[name], q) for name, q in weights.items()}
    assert {name for name in weights if torch.equal(result[name], nearest[name])} == {
        "conv0.weight",
        "conv1.weight",
    }
    read = {}
    network(torch.from_numpy(images), lambda name, value: read.setdefault(name, value))
    features = read[str(network.nodes[-1].inputs[0].name)]

    def lost(values):
        error = values["fc.weight"] - network.constants["fc.weight"]
        lost = features @ (error if kind == "MatMul" else error.T)
        return float((lost if kind == "MatMul" else lost - lost.mean(0)).square().sum())

    assert lost(result) < 0.8 * lost(nearest)


def test_layers_that_do_not_find_room_together_are_fitted_one_after_another(monkeypatch):
    graph = Graph(size=8)
    graph.head(graph.conv(graph.unary("Relu", graph.conv("images", 8)), 8))
    network = TorchExecutor(ir.from_proto(graph.model()))
    weights = {
        f"{name}.weight": weight_qparams(network.constants[f"{name}.weight"].numpy(), COARSE)
        for name in ("conv0", "conv2", "fc")
    }
    at_once = gptq_weights(network, images(16), weights)
    passes = []
    monkeypatch.setattr(gptq, "AT_ONCE", 1)
    monkeypatch.setattr(
        gptq, "collect_moments", lambda *a, **k: passes.append(len(a[2])) or collect_moments(*a, **k)
    )
    alone = gptq_weights(network, images(16), weights)
    assert passes == [1, 1, 1]
    for name in weights:
        assert torch.equal(at_once.weights[name], alone.weights[name])
    for name, mean in at_once.means.items():
        assert torch.equal(mean, alone.means[name])


@pytest.mark.parametrize(
    ("channels", "taps", "together"),
    [(512, 9, 512), (4608, 1, 4608), (1024, 9, 256), (25088, 1, 837), (10**6, 1, 21)],
)
def test_second_moments_of_a_layer_are_bounded_however_many_inputs_it_has(channels, taps, together):
    """25,088 inputs of a fully connected layer after 7 x 7 maps would need 2.5 GB a copy, all together."""
    assert gptq._most_channels(channels, taps) == together
    blocks = -(-channels // together)
    assert blocks * (together * taps) ** 2 <= gptq.LARGEST * 1.01


def test_a_wide_layer_is_fitted_in_blocks_that_keep_most_of_the_gain(monkeypatch):
    graph = Graph(size=16, channels=16)
    graph.head(graph.conv("images", 8))
    network = TorchExecutor(ir.from_proto(graph.model()))
    generator = torch.Generator().manual_seed(3)
    own, common = (torch.randn(24, channels, 16, 16, generator=generator) for channels in (16, 1))
    values = F.avg_pool2d(own + common, 5, 1, 2)
    weight = network.constants["conv0.weight"]
    qparams = weight_qparams(weight.numpy(), COARSE)

    def lost(result):
        errors = F.conv2d(values, result - weight, padding=1)
        return float((errors - errors.mean((0, 2, 3), keepdim=True)).square().sum())

    nearest = lost(fake_quantize(weight, qparams))
    whole = lost(gptq_weights(network, values.numpy(), {"conv0.weight": qparams}).weights["conv0.weight"])
    monkeypatch.setattr(gptq, "LARGEST", 144 * 72)  # half of its inputs at a time
    seen = []
    monkeypatch.setattr(
        gptq, "collect_moments", lambda *a, **k: seen.append(a[2][0].blocks) or collect_moments(*a, **k)
    )
    halves = lost(gptq_weights(network, values.numpy(), {"conv0.weight": qparams}).weights["conv0.weight"])
    assert seen == [2]
    assert whole < halves < whole + 0.25 * (nearest - whole)


def test_rounded_weights_of_a_cpu_that_adds_pairs_do_not_saturate():
    graph = Graph(size=8, channels=8)
    graph.head(graph.conv("images", 4, weight=np.full((4, 8, 3, 3), 0.5, np.float32)))
    network = TorchExecutor(ir.from_proto(graph.model()))
    name = str(network.nodes[0].inputs[1].name)
    qparams = weight_qparams(network.constants[name].numpy(), QuantSpec("int8", symmetric=True, axis=0))
    images = torch.randn(8, 8, 8, 8, generator=torch.Generator().manual_seed(4)).numpy()

    def steps(pairs):
        values = gptq_weights(network, images, {name: qparams}, pairs=pairs).weights[name]
        return quantized(values, qparams)

    assert torch.equal(clip_pairs(steps("channels"), "channels"), steps("channels"))
    assert not torch.equal(clip_pairs(steps(None), "channels"), steps(None))


@pytest.mark.parametrize(
    ("channels", "kernel", "block", "most"),
    [(64, 3, 144, 16), (8, 3, 144, 8), (64, 1, 144, 64), (64, 3, 4, 1)],
)
def test_a_block_has_about_so_many_inputs(channels, kernel, block, most):
    graph = Graph(size=8, channels=channels)
    graph.head(graph.conv("images", 4, kernel))
    network = TorchExecutor(ir.from_proto(graph.model()))
    name = str(network.nodes[0].inputs[1].name)
    qparams = weight_qparams(network.constants[name].numpy(), COARSE)
    (layer,) = gptq._layers(network, {name: qparams}, block, None)
    assert layer.blocked.channels == most
