"""What the operations of ONNX compute, in PyTorch, for any number of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.placement import clip_bounds

Operation = Callable[["Call"], Tensor]


class Call:
    """Inputs and attributes of a node."""

    def __init__(self, node: ir.Node, inputs: list[Tensor | None]) -> None:
        self.node = node
        self._inputs = inputs

    def __getitem__(self, index: int) -> Tensor:
        found = self.get(index)
        assert found is not None, f"{self.node.name}: input {index} is absent"
        return found

    def get(self, index: int) -> Tensor | None:
        """An input, or None where it is absent."""
        return self._inputs[index] if index < len(self._inputs) else None

    def all(self) -> list[Tensor]:
        """The inputs that are there."""
        return [value for value in self._inputs if value is not None]

    def ints(self, name: str, default: list[int]) -> list[int]:
        """An attribute of integers."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else [int(v) for v in attribute.as_ints()]

    def integer(self, name: str, default: int) -> int:
        """An attribute of one integer."""
        return int(self.node.attributes.get_int(name, default) or 0)

    def number(self, name: str, default: float) -> float:
        """An attribute of one float."""
        found = self.node.attributes.get_float(name, default)
        return default if found is None else float(found)

    def constant(self, index: int) -> list[int]:
        """The integers of an input: of shapes, axes and pads."""
        return [int(v) for v in self[index].flatten().tolist()]


def _padded(call: Call, spatial: int, fill: float) -> tuple[Tensor, list[int]]:
    """The first input, padded where the padding is uneven, and the even padding that is left."""
    pads = call.ints("pads", [0] * 2 * spatial)
    before, after = pads[:spatial], pads[spatial:]
    if before == after:
        return call[0], before
    order = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return F.pad(call[0], order, value=fill), [0] * spatial


def _conv(call: Call) -> Tensor:
    x, pads = _padded(call, 2, 0.0)
    strides, dilations = call.ints("strides", [1, 1]), call.ints("dilations", [1, 1])
    if call[1].shape[2:] == (1, 1):
        dilations = [2, 2]  # changes nothing, but has PyTorch take oneDNN on a single thread, twice as fast
    return F.conv2d(x, call[1], call.get(2), strides, pads, dilations, call.integer("group", 1))


def _gemm(call: Call) -> Tensor:
    a = call[0].T if call.integer("transA", 0) else call[0]
    weight = call[1] if call.integer("transB", 0) else call[1].T
    product = F.linear(a, weight) * call.number("alpha", 1.0)
    bias = call.get(2)
    return product if bias is None else product + call.number("beta", 1.0) * bias


def _max_pool(call: Call) -> Tensor:
    x, pads = _padded(call, 2, float("-inf"))
    kernel = call.ints("kernel_shape", [1, 1])
    ceil = bool(call.integer("ceil_mode", 0))
    return F.max_pool2d(x, kernel, call.ints("strides", [1, 1]), pads, call.ints("dilations", [1, 1]), ceil)


def _average_pool(call: Call) -> Tensor:
    x, pads = _padded(call, 2, 0.0)
    include = bool(call.integer("count_include_pad", 0))
    ceil = bool(call.integer("ceil_mode", 0))
    kernel, strides = call.ints("kernel_shape", [1, 1]), call.ints("strides", [1, 1])
    found = F.avg_pool2d(x, kernel, strides, pads, ceil, include)
    if include or x is call[0]:
        return found
    inside, _ = _padded(Call(call.node, [torch.ones_like(call[0][:1, :1])]), 2, 0.0)
    return found / F.avg_pool2d(inside, kernel, strides, pads, ceil, include)


def _batch_norm(call: Call) -> Tensor:
    return F.batch_norm(call[0], call[3], call[4], call[1], call[2], False, 0.0, call.number("epsilon", 1e-5))


def _axes(call: Call) -> list[int]:
    """What is reduced; none given means all, which would mix the images."""
    axes = call.constant(1) if call.get(1) is not None else call.ints("axes", [])
    if not axes or 0 in (axis % call[0].ndim for axis in axes):
        raise IndexError("it mixes images")
    return axes


def _clip(call: Call) -> Tensor:
    low, high = clip_bounds(call.node)
    return call[0] if low is None and high is None else torch.clamp(call[0], low, high)


def _reshape(call: Call) -> Tensor:
    shape = call.constant(1)
    if not call.integer("allowzero", 0):
        shape = [call[0].shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return call[0].reshape(len(call[0]), *(shape[1:] if len(shape) > 1 else shape))  # the batch is ours


def _squeeze(call: Call) -> Tensor:
    axes = call.constant(1) if call.get(1) is not None else call.ints("axes", [])
    if not axes:  # all that are 1, but the batch, which may be 1 by chance
        axes = [axis for axis, size in enumerate(call[0].shape) if axis and size == 1]
    return call[0].squeeze(axes)


def _unsqueeze(call: Call) -> Tensor:
    axes, rank = call.constant(1), call[0].ndim + len(call.constant(1))
    return reduce(torch.unsqueeze, sorted(axis % rank for axis in axes), call[0])


def _pad(call: Call) -> Tensor:
    pads = call.constant(1) if call.get(1) is not None else call.ints("pads", [])
    half = len(pads) // 2
    fill = call.get(2)
    order = [p for pair in zip(reversed(pads[:half]), reversed(pads[half:]), strict=True) for p in pair]
    mode = PAD_MODES[call.node.attributes.get_string("mode", "constant") or "constant"]
    if mode == "constant":
        return F.pad(call[0], order, mode, 0.0 if fill is None else float(fill.item()))
    return F.pad(call[0], order[:4], mode)  # height and width; there is none of batch and channels


def _slice(call: Call) -> Tensor:
    starts, ends = call.constant(1), call.constant(2)
    axes = call.constant(3) if call.get(3) is not None else list(range(len(starts)))
    steps = call.constant(4) if call.get(4) is not None else [1] * len(starts)
    found = call[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(*slice(start, end, step).indices(found.shape[axis]))
        found = found.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return found


def _prelu(call: Call) -> Tensor:
    return torch.where(call[0] < 0, call[0] * call[1], call[0])


def _layer_norm(call: Call) -> Tensor:
    axis = call.integer("axis", -1)
    shape = call[0].shape[axis:]
    return F.layer_norm(call[0], shape, call[1], call.get(2), call.number("epsilon", 1e-5))


PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
OPERATIONS: dict[str, Operation] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": lambda call: call[0] @ call[1],
    "Relu": lambda call: torch.relu(call[0]),
    "Clip": _clip,
    "Sigmoid": lambda call: torch.sigmoid(call[0]),
    "HardSigmoid": lambda call: torch.clamp(
        call[0] * call.number("alpha", 0.2) + call.number("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": lambda call: F.hardswish(call[0]),
    "LeakyRelu": lambda call: F.leaky_relu(call[0], call.number("alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": lambda call: F.elu(call[0], call.number("alpha", 1.0)),
    "Softplus": lambda call: F.softplus(call[0]),
    "Tanh": lambda call: torch.tanh(call[0]),
    "Erf": lambda call: torch.erf(call[0]),
    "Gelu": lambda call: F.gelu(
        call[0], approximate=call.node.attributes.get_string("approximate", "none") or "none"
    ),
    "Sqrt": lambda call: torch.sqrt(call[0]),
    "Pow": lambda call: call[0] ** call[1],
    "Softmax": lambda call: call[0].softmax(call.integer("axis", -1)),
    "LogSoftmax": lambda call: call[0].log_softmax(call.integer("axis", -1)),
    "LayerNormalization": _layer_norm,
    "Add": lambda call: call[0] + call[1],
    "Sub": lambda call: call[0] - call[1],
    "Mul": lambda call: call[0] * call[1],
    "Div": lambda call: call[0] / call[1],
    "Max": lambda call: reduce(torch.maximum, call.all()),
    "Min": lambda call: reduce(torch.minimum, call.all()),
    "Concat": lambda call: torch.cat(call.all(), call.integer("axis", 1)),
    "BatchNormalization": _batch_norm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda call: call[0].mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda call: call[0].amax((2, 3), keepdim=True),
    "ReduceMean": lambda call: call[0].mean(_axes(call), keepdim=bool(call.integer("keepdims", 1))),
    "ReduceSum": lambda call: call[0].sum(_axes(call), keepdim=bool(call.integer("keepdims", 1))),
    "Transpose": lambda call: call[0].permute(call.ints("perm", list(range(call[0].ndim))[::-1])),
    "Gather": lambda call: call[0].index_select(call.integer("axis", 0), call[1].reshape(-1)),
    "Flatten": lambda call: call[0].flatten(call.integer("axis", 1)),
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Identity": lambda call: call[0],
    "Dropout": lambda call: call[0],
    "Pad": _pad,
    "Slice": _slice,
}
