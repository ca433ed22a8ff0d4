"""Fake quantization by the scheme of a target: steps, hooks, gradients, and nothing left behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prune.nets import lively, pictures, settled

from edgeship import targets
from edgeship.toolkit.core.quant import QuantSpec
from edgeship.toolkit.prune import fake_quant
from edgeship.toolkit.prune.fake_quant import int8

HELD = pictures(20, seed=4)
OPENVINO = targets.get("openvino").scheme()
TENSORRT = targets.get("tensorrt").scheme()
NAMES = ("resnet18", "resnet50", "resnet20", "preact_resnet18", "plain_resnet18")


def error(model, scheme):
    x = torch.from_numpy(HELD[0])
    with torch.inference_mode():
        plain = model(x)
        with int8(model, scheme):
            rounded = model(x)
        assert torch.equal(model(x), plain)
    return float((rounded - plain).square().sum() / plain.square().sum())


def test_int8_rounds_inside_the_block_only():
    model = lively("resnet18")
    x = torch.from_numpy(HELD[0])
    with torch.inference_mode():
        plain = model(x)
        with int8(model):
            rounded = model(x)
        after = model(x)
    assert torch.equal(plain, after)
    error = float((rounded - plain).square().sum() / plain.square().sum())
    assert 1e-6 < error < 1e-2
    assert set(model.state_dict()) == set(lively("resnet18").state_dict())
    model.train()
    with int8(model):
        model(x).sum().backward()
    assert float(model.layer1[0].conv1.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", [OPENVINO, TENSORRT], ids=lambda scheme: scheme.name)
def test_every_member_is_rounded_and_restored(name, scheme):
    model = settled(lively(name, width=8))
    assert 1e-7 < error(model, scheme) < 1.0  # untrained: deep ones amplify errors
    assert not model.fc.__dict__.get("forward")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_more_rounded_tensors_cost_more():
    model = settled(lively("resnet18"))
    floats = error(model, replace(OPENVINO, float_adds=True))
    assert floats < error(model, replace(OPENVINO, add_inputs="skip")) < error(model, OPENVINO)
    coarse = replace(OPENVINO, weight=QuantSpec("int8", symmetric=True, axis=0, bits=5))
    assert error(model, coarse) > 4 * error(model, OPENVINO)


def test_steps_are_those_of_the_scheme():
    x = torch.linspace(0, 1, 2001)
    signed = replace(OPENVINO, unsigned_activation=None)
    for scheme, levels in ((OPENVINO, 255), (signed, 127)):
        steps = torch.unique(fake_quant._activation(x, scheme))
        assert len(steps) == levels + 1
    uneven = replace(signed, activation=QuantSpec("uint8", symmetric=False))
    shifted = fake_quant._activation(torch.linspace(-1, 3, 4001), uneven)
    assert len(torch.unique(shifted)) == pytest.approx(256, abs=1)
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    rounded = fake_quant._weight(weight, OPENVINO)
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    np.testing.assert_allclose(rounded / scale, torch.round(weight / scale), atol=1e-4)
    whole = fake_quant._weight(weight, replace(OPENVINO, weight=QuantSpec("int8", symmetric=True)))
    assert float((whole - weight).abs().max()) > float((rounded - weight).abs().max())


def test_gradients_pass_through_the_rounding():
    model = lively("resnet18").train()
    with int8(model, OPENVINO):
        model(torch.from_numpy(HELD[0])).sum().backward()
    assert float(model.layer1[0].conv1.weight.grad.abs().sum()) > 0
    assert float(model.fc.weight.grad.abs().sum()) > 0
