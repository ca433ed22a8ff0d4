"""Elementwise ONNX operators in PyTorch; step functions use the straight-through estimator."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeship.quantization.node_call import Call, Operation
from edgeship.toolkit.graph.signs import clip_bounds


class _StraightThrough(torch.autograd.Function):
    """Return `values`; pass their gradients to `source` unchanged.

    Source:
        Bengio et al. 2013, arXiv:1308.3432.
    """

    @staticmethod
    def forward(_ctx: Any, _source: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _step_function(step: Callable[[Tensor], Tensor]) -> Operation:
    """Wrap a step function with the derivative of the identity."""

    def apply(call: Call) -> Tensor:
        x = call[0]
        if not x.is_floating_point():
            return step(x)
        return _StraightThrough.apply(x, step(x.detach()))  # type: ignore[no-any-return, no-untyped-call]

    return apply


def _sign(call: Call) -> Tensor:
    surrogate = call[0].clamp(-1, 1)  # hard tanh: derivative 1 near zero, else 0
    return _StraightThrough.apply(surrogate, call[0].detach().sign())  # type: ignore[no-any-return, no-untyped-call]


def _clip(call: Call) -> Tensor:
    low, high = clip_bounds(call.node)
    x = call[0] if low is None and high is None else torch.clamp(call[0], low, high)
    for index, bound in ((1, torch.maximum), (2, torch.minimum)):
        if (value := call.get(index)) is not None and not call.is_constant(index):
            x = bound(x, value)
    return x


def _prelu(call: Call) -> Tensor:
    return torch.where(call[0] < 0, call[0] * call[1], call[0])


def _divide(call: Call) -> Tensor:
    if call[0].is_floating_point():
        return call[0] / call[1]
    return torch.div(call[0], call[1], rounding_mode="trunc")


def _selu(call: Call) -> Tensor:
    alpha, gamma = call.number("alpha", 1.6732632423543772), call.number("gamma", 1.0507009873554805)
    return gamma * F.elu(call[0], alpha)


def _gelu(call: Call) -> Tensor:
    return F.gelu(call[0], approximate=call.text("approximate", "none"))


def _thresholded_relu(call: Call) -> Tensor:
    return torch.where(call[0] > call.number("alpha", 1.0), call[0], torch.zeros_like(call[0]))


def _unary(function: Callable[[Tensor], Tensor]) -> Operation:
    return lambda call: function(call[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return lambda call: function(call[0], call[1])


def _swish(call: Call) -> Tensor:
    return call[0] * torch.sigmoid(call.number("alpha", 1.0) * call[0])


_UNARY = {
    **{"Abs": torch.abs, "Neg": torch.neg, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt},
    **{"Reciprocal": torch.reciprocal, "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos},
    **{"Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh},
    **{"Cosh": torch.cosh, "Tanh": torch.tanh, "Asinh": torch.asinh, "Acosh": torch.acosh},
    **{"Atanh": torch.atanh, "Sigmoid": torch.sigmoid, "Relu": torch.relu, "Softplus": F.softplus},
    **{"Softsign": F.softsign, "Mish": F.mish, "HardSwish": F.hardswish, "IsNaN": torch.isnan},
    **{"Not": torch.logical_not},
}
_BINARY = {
    **{"Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt},
    **{"LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or},
    "Xor": torch.logical_xor,
}
OPERATIONS: dict[str, Operation] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    "Round": _step_function(torch.round),
    "Floor": _step_function(torch.floor),
    "Ceil": _step_function(torch.ceil),
    "Sign": _sign,
    "Clip": _clip,
    "HardSigmoid": lambda call: torch.clamp(
        call[0] * call.number("alpha", 0.2) + call.number("beta", 0.5), 0.0, 1.0
    ),
    "LeakyRelu": lambda call: F.leaky_relu(call[0], call.number("alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": lambda call: F.elu(call[0], call.number("alpha", 1.0)),
    "Celu": lambda call: F.celu(call[0], call.number("alpha", 1.0)),
    "Selu": _selu,
    "Gelu": _gelu,
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
    "Pow": lambda call: (call[0] ** call[1]).to(call[0].dtype),
    "Where": lambda call: torch.where(call[0], call[1], call[2]),
    "Softmax": lambda call: call[0].softmax(call.integer("axis", -1)),
    "LogSoftmax": lambda call: call[0].log_softmax(call.integer("axis", -1)),
    "Add": lambda call: call[0] + call[1],
    "Sub": lambda call: call[0] - call[1],
    "Mul": lambda call: call[0] * call[1],
    "Div": _divide,
    "Max": lambda call: reduce(torch.maximum, call.all()),
    "Min": lambda call: reduce(torch.minimum, call.all()),
    "Sum": lambda call: reduce(torch.add, call.all()),
    "Mean": lambda call: reduce(torch.add, call.all()) / len(call.all()),
}
