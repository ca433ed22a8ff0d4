"""Quantization as float arithmetic: rounding to the integers' grid and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quantize.network import Change
from toolkit.core.quant import QParams


def fake_quantize(values: Tensor, qparams: QParams) -> Tensor:
    """Values after QuantizeLinear and DequantizeLinear, in float."""
    shape = [1] * values.ndim
    if qparams.spec.axis is not None:
        shape[qparams.spec.axis] = -1
    scale = torch.tensor(qparams.scale, dtype=torch.float32).reshape(shape)
    zero_point = torch.tensor(qparams.zero_point, dtype=torch.float32).reshape(shape)
    steps = torch.round(values / scale) + zero_point
    return (steps.clamp(qparams.spec.quant_min, qparams.spec.quant_max) - zero_point) * scale


def quantizing(activations: Mapping[str, QParams]) -> Change:
    """A change for `Network` that quantizes the given activations."""
    return lambda name, value: fake_quantize(value, activations[name]) if name in activations else value
