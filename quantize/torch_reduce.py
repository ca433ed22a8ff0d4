"""ONNX reductions and normalizations in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeship.quantization.node_call import Call, Operation, UnsupportedAttributeError


def reduced_axes(call: Call) -> list[int]:
    """Return the axes of a reduction.

    Raises:
        UnsupportedAttributeError: The reduction mixes images.
    """
    axes = call.axes()
    if not axes and not call.integer("noop_with_empty_axes", 0):
        axes = list(range(call[0].ndim))
    if 0 in axes and not call.literal:
        raise UnsupportedAttributeError("it mixes images")
    return axes


def _reduction(over: Callable[[Tensor, list[int], bool], Tensor]) -> Operation:
    def apply(call: Call) -> Tensor:
        axes = reduced_axes(call)
        if not axes:  # no axes: reduce each element alone
            return over(call[0][..., None], [call[0].ndim], False)
        return over(call[0], axes, bool(call.integer("keepdims", 1)))

    return apply


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep) if x.is_floating_point() else x.sum(axes, keep) // _count(x, axes)


def _count(x: Tensor, axes: list[int]) -> int:
    return math.prod(x.shape[axis] for axis in axes)


def _batch_norm(call: Call) -> Tensor:
    if call.integer("training_mode", 0):
        raise UnsupportedAttributeError("training_mode = 1")
    return F.batch_norm(call[0], call[3], call[4], call[1], call[2], False, 0.0, call.number("epsilon", 1e-5))


def _by_channel(values: Tensor, ndim: int) -> Tensor:
    return values.reshape(-1, *[1] * (ndim - 2))


def _instance_norm(call: Call) -> Tensor:
    return F.instance_norm(call[0], weight=call[1], bias=call[2], eps=call.number("epsilon", 1e-5))


def _group_norm(call: Call) -> Tensor:
    x, groups = call[0], call.integer("num_groups", 1)
    repeats = x.shape[1] // len(call[1])  # opset 18: one scale per group; 21: per channel
    gain, shift = (_by_channel(call[index].repeat_interleave(repeats), x.ndim) for index in (1, 2))
    return F.group_norm(x, groups, eps=call.number("epsilon", 1e-5)) * gain + shift


def _layer_norm(call: Call) -> Tensor:
    axis = call.integer("axis", -1)
    shape = call[0].shape[axis:]
    if len(call.node.outputs) > 1:
        raise UnsupportedAttributeError("mean and deviation as outputs")
    if call[1].shape != shape:  # F.layer_norm does not broadcast
        bias = call.get(2)
        plain = F.layer_norm(call[0], shape, eps=call.number("epsilon", 1e-5)) * call[1]
        return plain if bias is None else plain + bias
    return F.layer_norm(call[0], shape, call[1], call.get(2), call.number("epsilon", 1e-5))


def _rms_norm(call: Call) -> Tensor:
    axis = call.integer("axis", -1) % call[0].ndim
    mean = call[0].square().mean(list(range(axis, call[0].ndim)), keepdim=True)
    return call[0] / (mean + call.number("epsilon", 1e-5)).sqrt() * call[1]


def _local_response_norm(call: Call) -> Tensor:
    size, x = call.integer("size", 1), call[0]
    before = (size - 1) // 2
    squares = F.pad(x.square(), [0, 0] * (x.ndim - 2) + [before, size - 1 - before])
    total = torch.stack([squares[:, i : i + x.shape[1]] for i in range(size)]).sum(0)
    alpha, beta, bias = call.number("alpha", 1e-4), call.number("beta", 0.75), call.number("bias", 1.0)
    return x / (bias + alpha / size * total) ** beta


OPERATIONS: dict[str, Operation] = {
    "ReduceMean": _reduction(_mean),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "LRN": _local_response_norm,
}
