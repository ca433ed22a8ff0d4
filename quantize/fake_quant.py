"""Quantization as float arithmetic: rounding to the integers' grid and back."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeship.toolkit.core.quant import QParams


def fake_quantize(values: Tensor, qparams: QParams) -> Tensor:
    """Values after QuantizeLinear and DequantizeLinear, in float."""
    scale, zero_point = _shaped(qparams, values.ndim)
    steps = _steps(values, qparams)
    return (steps if zero_point is None else steps.sub_(zero_point)).mul_(scale)


def quantized(values: Tensor, qparams: QParams) -> Tensor:
    """Values after QuantizeLinear: a quarter of the memory."""
    return _steps(values, qparams).to(getattr(torch, qparams.spec.dtype))


def dequantized(integers: Tensor, qparams: QParams) -> Tensor:
    """Integers after DequantizeLinear, in float."""
    scale, zero_point = _shaped(qparams, integers.ndim)
    values = integers.float()
    return (values if zero_point is None else values.sub_(zero_point)).mul_(scale)


def _steps(values: Tensor, qparams: QParams) -> Tensor:
    scale, zero_point = _shaped(qparams, values.ndim)
    steps = (values / scale).round_()
    steps = steps if zero_point is None else steps.add_(zero_point)
    spec = qparams.spec
    return steps.clamp_(spec.saturation if spec.axis is None else spec.quant_min, spec.quant_max)


def _shaped(qparams: QParams, axes: int) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point (None: 0), shaped to be combined with a tensor of so many axes."""
    shape = [1] * axes
    if qparams.spec.axis is not None:
        shape[qparams.spec.axis] = -1
    scale = torch.tensor(qparams.scale, dtype=torch.float32).reshape(shape)
    if not any(qparams.zero_point):
        return scale, None
    return scale, torch.tensor(qparams.zero_point, dtype=torch.float32).reshape(shape)
