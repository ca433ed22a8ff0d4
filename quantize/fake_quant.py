"""Fake quantization: quantize and dequantize in float arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeship.toolkit.core.quant import QParams


def fake_quantize(values: Tensor, qparams: QParams) -> Tensor:
    """Apply QuantizeLinear and DequantizeLinear."""
    scale, zero_point = _broadcastable(qparams, values.ndim)
    steps = _steps(values, qparams)
    return (steps if zero_point is None else steps.sub_(zero_point)).mul_(scale)


def quantized(values: Tensor, qparams: QParams) -> Tensor:
    """Apply QuantizeLinear; return integers."""
    return _steps(values, qparams).to(getattr(torch, qparams.spec.dtype))


def dequantized(integers: Tensor, qparams: QParams) -> Tensor:
    """Apply DequantizeLinear to integers."""
    scale, zero_point = _broadcastable(qparams, integers.ndim)
    values = integers.float()
    return (values if zero_point is None else values.sub_(zero_point)).mul_(scale)


def _steps(values: Tensor, qparams: QParams) -> Tensor:
    scale, zero_point = _broadcastable(qparams, values.ndim)
    steps = (values / scale).round_()
    steps = steps if zero_point is None else steps.add_(zero_point)
    spec = qparams.spec
    return steps.clamp_(spec.saturation if spec.axis is None else spec.quant_min, spec.quant_max)


def _broadcastable(qparams: QParams, axes: int) -> tuple[Tensor, Tensor | None]:
    """Reshape scale and zero point (None: 0) to broadcast with a tensor of `axes` axes."""
    shape = [1] * axes
    if qparams.spec.axis is not None:
        shape[qparams.spec.axis] = -1
    scale = torch.tensor(qparams.scale, dtype=torch.float32).reshape(shape)
    if not any(qparams.zero_point):
        return scale, None
    return scale, torch.tensor(qparams.zero_point, dtype=torch.float32).reshape(shape)
