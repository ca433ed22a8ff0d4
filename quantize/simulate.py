"""Quantization as float arithmetic: rounding to the integers' grid and back."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.core.quant import QParams


def fake_quantize(values: Tensor, qparams: QParams) -> Tensor:
    """Values after QuantizeLinear and DequantizeLinear, in float."""
    shape = [1] * values.ndim
    if qparams.spec.axis is not None:
        shape[qparams.spec.axis] = -1
    scale = torch.tensor(qparams.scale, dtype=torch.float32).reshape(shape)
    zero_point = torch.tensor(qparams.zero_point, dtype=torch.float32).reshape(shape)
    steps = (values / scale).round_().add_(zero_point)
    return steps.clamp_(qparams.spec.quant_min, qparams.spec.quant_max).sub_(zero_point).mul_(scale)
