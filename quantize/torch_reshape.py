"""Layout and selection ONNX operators in PyTorch: reshape, pad, slice, gather, cast."""

from __future__ import annotations

from functools import reduce

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeship.quantization.node_call import Call, Operation, UnsupportedAttributeError

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
NUMPY_PAD_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _reshape(call: Call) -> Tensor:
    shape = call.constant(1)
    if not call.integer("allowzero", 0):
        shape = [call[0].shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    if call.literal or not call.is_constant(1) or (len(shape) > 1 and shape[0] == -1):
        return call[0].reshape(shape)
    if len(shape) > 1 and shape[0] not in {1, len(call[0])}:
        raise UnsupportedAttributeError(f"the shape {shape} moves the batch into other axes")
    return call[0].reshape(len(call[0]), *(shape[1:] if len(shape) > 1 else shape))  # keep the actual batch


def _flatten(call: Call) -> Tensor:
    axis = call.integer("axis", 1)
    axis += call[0].ndim if axis < 0 else 0
    return call[0].flatten(1) if axis == 1 else call[0].reshape(int(np.prod(call[0].shape[:axis])), -1)


def _squeeze(call: Call) -> Tensor:
    axes = call.constant(1) if call.get(1) is not None else call.ints("axes", [])
    if not axes:  # all axes of size 1 except the batch
        first = 0 if call.literal else 1
        axes = [axis for axis, size in enumerate(call[0].shape) if axis >= first and size == 1]
    return call[0].squeeze(axes)


def _unsqueeze(call: Call) -> Tensor:
    axes = call.constant(1) if call.get(1) is not None else call.ints("axes", [])
    rank = call[0].ndim + len(axes)
    return reduce(torch.unsqueeze, sorted(axis % rank for axis in axes), call[0])


def _expand(call: Call) -> Tensor:
    shape = np.broadcast_shapes(tuple(call[0].shape), tuple(call.constant(1)))
    return call[0].expand(shape)


def _split(call: Call) -> tuple[Tensor, ...]:
    axis = call.integer("axis", 0)
    size = call[0].shape[axis]
    if call.get(1) is not None:
        sizes = call.constant(1)
    elif "split" in call.node.attributes:
        sizes = call.ints("split", [])
    else:
        count = call.integer("num_outputs", len(call.node.outputs))
        each = -(-size // count)
        sizes = [each] * (count - 1) + [size - each * (count - 1)]
    return torch.split(call[0], sizes, axis)


def _shape(call: Call) -> Tensor:
    end = call.node.attributes.get_int("end", None)
    return torch.tensor(list(call[0].shape)[call.integer("start", 0) : end], dtype=torch.int64)


def _constant_of_shape(call: Call) -> Tensor:
    value = call.node.attributes.get("value")
    if value is None:
        return torch.zeros(call.constant(0))
    one = torch.from_numpy(np.array(value.as_tensor().numpy()).reshape(()))
    return one.expand(call.constant(0)).clone()


def _range(call: Call) -> Tensor:
    start, limit, delta = (call[index].item() for index in range(3))
    count = max(int(np.ceil((limit - start) / delta)), 0)
    return (start + torch.arange(count, dtype=torch.float64) * delta).to(call[0].dtype)


def _pad(call: Call) -> Tensor:
    pads = call.constant(1) if call.get(1) is not None else call.ints("pads", [])
    x, axes = call[0], None if call.get(3) is None else [axis % call[0].ndim for axis in call.constant(3)]
    if axes is not None:
        every = [0] * (2 * x.ndim)
        for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
            every[axis], every[axis + x.ndim] = before, after
        pads = every
    half = len(pads) // 2
    fill = call.get(2)
    order = [p for pair in zip(reversed(pads[:half]), reversed(pads[half:]), strict=True) for p in pair]
    mode = call.text("mode", "constant")
    if mode == "constant":
        value = call.number("value", 0.0) if fill is None else float(fill.item())
        return F.pad(x, order, "constant", value)
    if x.ndim == 4 and not any(order[4:]) and min(order) >= 0:
        return F.pad(x, order[:4], PAD_MODES[mode])
    for axis, (before, after) in enumerate(zip(pads[:half], pads[half:], strict=True)):
        if before or after:
            places = np.arange(x.shape[axis])[max(-before, 0) : x.shape[axis] - max(-after, 0)]
            places = np.pad(places, (max(before, 0), max(after, 0)), NUMPY_PAD_MODES[mode])  # type: ignore[call-overload]
            x = x.index_select(axis, torch.from_numpy(places))
    return x


def _slice(call: Call) -> Tensor:
    starts, ends = call.constant(1), call.constant(2)
    axes = call.constant(3) if call.get(3) is not None else list(range(len(starts)))
    steps = call.constant(4) if call.get(4) is not None else [1] * len(starts)
    part = call[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(*slice(start, end, step).indices(part.shape[axis]))
        part = part.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return part


def _nonnegative(index: Tensor, size: int) -> Tensor:
    """Convert negative indices to indices from the front."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


def _gather(call: Call) -> Tensor:
    axis = call.integer("axis", 0) % call[0].ndim
    shape, index = call[0].shape, _nonnegative(call[1], call[0].shape[axis])
    chosen = call[0].index_select(axis, index.reshape(-1))
    return chosen if index.ndim == 1 else chosen.reshape(*shape[:axis], *index.shape, *shape[axis + 1 :])


def _depth_to_space(call: Call) -> Tensor:
    (n, c, h, w), b = call[0].shape, call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "DCR":
        blocks = call[0].reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = call[0].reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(call: Call) -> Tensor:
    (n, c, h, w), b = call[0].shape, call.integer("blocksize", 1)
    blocks = call[0].reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * b * b, h // b, w // b)


def _cast(call: Call) -> Tensor:
    kind = ir.DataType(call.integer("to", ir.DataType.FLOAT))
    if kind in {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}:
        return (
            call[0].float() if not call[0].is_floating_point() else call[0]
        )  # the executor has one float type
    names = {"INT64", "INT32", "INT16", "INT8", "UINT8", "BOOL"}
    if kind.name not in names:
        raise UnsupportedAttributeError(f"a Cast to {kind.name}")
    return call[0].to(getattr(torch, kind.name.lower()))


OPERATIONS: dict[str, Operation] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": lambda call: call[0].permute(call.ints("perm", list(range(call[0].ndim))[::-1])),
    "Concat": lambda call: torch.cat(call.all(), call.integer("axis", 1)),
    "Identity": lambda call: call[0],
    "Dropout": lambda call: call[0],
    "Pad": _pad,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": lambda call: call[0].tile(call.constant(1)),
    "Split": _split,
    "Shape": _shape,
    "Size": lambda call: torch.tensor(call[0].numel()),
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Cast": _cast,
    "CastLike": lambda call: call[0].to(call[1].dtype),
}
