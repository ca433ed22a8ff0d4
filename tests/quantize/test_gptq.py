"""Rounding by second moments: hand-worked, against brute force, and for every form of a layer."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F

from quantize.gptq import _columns, rounded


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
    found = _columns(node, tuple(weight.shape), values) @ weight.reshape(4, -1).T
    np.testing.assert_allclose(found, exact.permute(0, 2, 3, 1).reshape(-1, 4), atol=1e-4)
