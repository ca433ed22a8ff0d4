"""ONNX Resize (nearest, linear) and GridSample in PyTorch; a matrix for each axis interpolates.

Source:
    ONNX operators, Resize (opset 19): coordinate_transformation_mode, nearest_mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeship.quantization.node_call import Call, Operation, UnsupportedAttributeError

Doubles = np.ndarray[Any, np.dtype[np.float64]]
_GRID_MODES = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "cubic": "bicubic",
    "bicubic": "bicubic",
    "nearest": "nearest",
}


def _resize(call: Call) -> Tensor:
    x, where = call[0], call.text("coordinate_transformation_mode", "half_pixel")
    if where not in _COORDINATES or call.text("mode", "nearest") not in {"nearest", "linear"}:
        raise UnsupportedAttributeError("cubic interpolation, or another coordinate_transformation_mode")
    if call.integer("antialias", 0) or call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedAttributeError("antialias or keep_aspect_ratio_policy")
    axes = [axis % x.ndim for axis in call.ints("axes", list(range(x.ndim)))]
    sides = [x.shape[axis] for axis in axes]
    if call.get(3) is not None and call[3].numel():
        sizes = call.constant(3)
        scales = [size / side for size, side in zip(sizes, sides, strict=True)]
    else:
        scales = [float(scale) for scale in call[2].flatten().tolist()]
        sizes = [math.floor(side * scale) for side, scale in zip(sides, scales, strict=True)]
    for axis, side, size, scale in zip(axes, sides, sizes, scales, strict=True):
        if size == side:
            continue
        if axis == 0 and not call.literal:
            raise UnsupportedAttributeError("resizes the batch axis")
        at = _COORDINATES[where](np.arange(size, dtype=np.float64), side, size, scale)
        x = _along(call, x, axis, at)
    return x


# fractional input positions of outputs `at`: input side, output size, scale
_COORDINATES: dict[str, Callable[[Doubles, int, int, float], Doubles]] = {
    "asymmetric": lambda at, _side, _size, scale: at / scale,
    "align_corners": lambda at, side, size, _scale: at * (side - 1) / max(size - 1, 1),
    "half_pixel": lambda at, _side, _size, scale: (at + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda at, _side, size, scale: (at + 0.5) / scale - 0.5 if size > 1 else at,
}


def _along(call: Call, x: Tensor, axis: int, at: Doubles) -> Tensor:
    """Resize a tensor along one axis by interpolation at input positions `at`."""
    side = x.shape[axis]
    if call.text("mode", "nearest") == "nearest":
        return x.index_select(axis, torch.from_numpy(_nearest(call, at).clip(0, side - 1)))
    at = at.clip(0, side - 1)
    first = np.floor(at).astype(np.int64)
    matrix = np.zeros((len(at), side))
    rows = np.arange(len(at))
    matrix[rows, first] = 1 - (at - first)
    matrix[rows, (first + 1).clip(0, side - 1)] += at - first
    product = x.movedim(axis, -1) @ torch.from_numpy(matrix).to(x.dtype).T
    return product.movedim(-1, axis)


def _nearest(call: Call, at: Doubles) -> np.ndarray[Any, np.dtype[np.int64]]:
    at = at.astype(np.float32).astype(np.float64)  # float32 as in ONNX Runtime, so that ties agree
    rounded = {
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
    }
    return rounded[call.text("nearest_mode", "round_prefer_floor")].astype(np.int64)


def _grid_sample(call: Call) -> Tensor:
    mode = _GRID_MODES[call.text("mode", "linear")]
    padding = call.text("padding_mode", "zeros")
    aligned = bool(call.integer("align_corners", 0))
    return F.grid_sample(call[0], call[1], mode, padding, aligned)


def _affine_grid(call: Call) -> Tensor:
    return F.affine_grid(call[0], call.constant(1), bool(call.integer("align_corners", 0)))


OPERATIONS: dict[str, Operation] = {
    "Resize": _resize,
    "GridSample": _grid_sample,
    "AffineGrid": _affine_grid,
}
