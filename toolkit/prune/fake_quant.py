"""Fake quantization of a network in training, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeship.toolkit.core.quant import QuantScheme, QuantSpec
from edgeship.toolkit.models.resnet import ResNet

SMALLEST = 1e-12  # range of a tensor of zeros


@contextmanager
def int8(model: ResNet, scheme: QuantScheme | None = None) -> Iterator[None]:
    """Fake-quantize weights and activations to INT8 inside the block.

    Weights are symmetric, per output channel; activations are per tensor, over the range of the batch.
    Gradients pass straight through the rounding.

    Args:
        model: The network; its parameters do not change.
        scheme: Scheme of the target: types, inputs of residual additions, and the last layer. None:
            only the convolutions, with unsigned activations where none is negative.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, sec. 3; straight-through, Bengio et al. 2013, arXiv:1308.3432.
    """
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    with ExitStack() as stack:
        for conv in convs:
            conv.forward = partial(_quantized_conv, conv, scheme)  # type: ignore[method-assign]
            stack.callback(conv.__dict__.pop, "forward")  # restores the class's method
        if scheme is not None:
            for handle in _residual_hooks(model, scheme):
                stack.callback(handle.remove)
            model.fc.forward = partial(_quantized_linear, model.fc, scheme)  # type: ignore[method-assign]
            stack.callback(model.fc.__dict__.pop, "forward")
        yield


def _residual_hooks(model: ResNet, scheme: QuantScheme) -> Iterator[Any]:
    """Quantize the inputs of residual additions that the scheme quantizes."""
    if scheme.float_adds:
        return

    def of_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(_activation(x, scheme) for x in inputs)

    def of_output(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return _activation(output, scheme)

    for _, _, _, block in model.blocks():
        if not block.plain:
            yield block.register_forward_pre_hook(of_input)  # the identity shortcut adds the block's input
        if block.downsample is not None:
            yield block.downsample.register_forward_hook(of_output)
        if scheme.add_inputs != "skip" and not block.plain:
            last = block.conv(block.depth) if block.preactivation else block.bn(block.depth)
            yield last.register_forward_hook(of_output)


def _quantized_conv(conv: nn.Conv2d, scheme: QuantScheme | None, x: Tensor) -> Tensor:
    stride, pad = conv.stride, conv.kernel_size[0] // 2
    return F.conv2d(_activation(x, scheme), _weight(conv.weight, scheme), conv.bias, stride, pad)


def _quantized_linear(linear: nn.Linear, scheme: QuantScheme, x: Tensor) -> Tensor:
    return F.linear(_activation(x, scheme), _weight(linear.weight, scheme), linear.bias)


def _weight(weight: Tensor, scheme: QuantScheme | None) -> Tensor:
    size = weight.detach().abs()
    if scheme is None or scheme.weight.axis is not None:
        largest = size.amax(tuple(range(1, weight.ndim)), keepdim=True)
    else:
        largest = size.max()
    levels = 127 if scheme is None else scheme.weight.quant_max
    return _rounded(weight, largest.clamp_min(SMALLEST) / levels)


def _activation(x: Tensor, scheme: QuantScheme | None) -> Tensor:
    low, high = (float(bound) for bound in torch.aminmax(x.detach()))
    if scheme is None:
        levels = 255 if low >= 0 else 127
        return _rounded(x, torch.tensor(max(-low, high, SMALLEST) / levels))
    spec: QuantSpec = scheme.activation
    if low >= 0 and scheme.unsigned_activation is not None:
        spec = scheme.unsigned_activation
    if spec.symmetric:
        return _rounded(x, torch.tensor(max(-low, high, SMALLEST) / spec.quant_max))
    low, high = min(low, 0.0), max(high, 0.0)
    return _rounded(x, torch.tensor(max(high - low, SMALLEST) / (spec.quant_max - spec.quant_min)))


def _rounded(x: Tensor, scale: Tensor) -> Tensor:
    """Round x to multiples of the scale; the gradient is that of x."""
    return x + (torch.round(x.detach() / scale) * scale - x.detach())
