"""ONNX Resize and GridSample in PyTorch; Resize multiplies each axis by a matrix of interpolation weights.

Source:
    ONNX operators, Resize (opset 19): coordinate_transformation_mode, nearest_mode, antialias,
    keep_aspect_ratio_policy. Cubic weights: Keys 1981, IEEE Trans. ASSP 29(6).
"""

from __future__ import annotations

import math
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
    x = call[0]
    axes = [axis % x.ndim for axis in call.ints("axes", list(range(x.ndim)))]
    roi = None if call.get(1) is None else call[1].flatten().tolist()
    sides = [x.shape[axis] for axis in axes]
    if call.get(3) is not None and call[3].numel():
        sizes, scales = _by_sizes(call, sides)
    else:
        scales = [float(scale) for scale in call[2].flatten().tolist()]
        sizes = [math.floor(side * scale) for side, scale in zip(sides, scales, strict=True)]
    mode = call.text("coordinate_transformation_mode", "half_pixel")
    outside = torch.zeros((), dtype=torch.bool)
    for place, axis in enumerate(axes):
        if sizes[place] == sides[place] and mode != "tf_crop_and_resize":
            continue
        if axis == 0 and not call.literal:
            raise UnsupportedAttributeError("resizes the batch axis")
        window = (0.0, 1.0)
        if roi and mode == "tf_crop_and_resize":
            window = roi[place], roi[place + len(axes)]
        at = coordinates(mode, sides[place], sizes[place], scales[place], window)
        if mode == "tf_crop_and_resize":
            beyond = torch.from_numpy((at < 0) | (at > sides[place] - 1))
            outside = outside | beyond.reshape([-1 if each == axis else 1 for each in range(x.ndim)])
        x = _along(call, x, axis, at, scales[place])
    if mode == "tf_crop_and_resize" and bool(outside.any()):
        x = torch.where(outside, torch.tensor(call.number("extrapolation_value", 0.0), dtype=x.dtype), x)
    return x


def _by_sizes(call: Call, sides: list[int]) -> tuple[list[int], list[float]]:
    """Return output sizes and scales for a Resize with sizes."""
    sizes = call.constant(3)
    scales = [size / side for size, side in zip(sizes, sides, strict=True)]
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [math.floor(scale * side + 0.5) for side in sides], [scale] * len(sides)


def coordinates(mode: str, side: int, size: int, scale: float, window: tuple[float, float]) -> Doubles:
    """Return the fractional input positions of `size` outputs along an axis of `side` inputs."""
    at = np.arange(size, dtype=np.float64)
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        return at * (side - 1) / (size - 1) if size > 1 else np.zeros(1)
    if mode == "pytorch_half_pixel" and size == 1:
        return np.zeros(1)
    if mode == "half_pixel_symmetric":
        middle = side / 2
        return middle * (1 - size / (scale * side)) + (at + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        start, end = window
        if size == 1:
            return np.array([0.5 * (start + end) * (side - 1)])
        return start * (side - 1) + at * (end - start) * (side - 1) / (size - 1)
    if mode not in {"half_pixel", "pytorch_half_pixel"}:
        raise UnsupportedAttributeError(f"coordinate_transformation_mode = {mode}")
    return (at + 0.5) / scale - 0.5


def _along(call: Call, x: Tensor, axis: int, at: Doubles, scale: float) -> Tensor:
    """Resize a tensor along one axis by interpolation at input positions `at`."""
    mode, side = call.text("mode", "nearest"), x.shape[axis]
    if mode == "nearest":
        return x.index_select(axis, torch.from_numpy(_nearest(call, at).clip(0, side - 1)))
    stretch = min(scale, 1.0) if call.integer("antialias", 0) else 1.0
    a = call.number("cubic_coeff_a", -0.75)
    reach = (1.0 if mode == "linear" else 2.0) / stretch
    if mode == "linear" and stretch == 1.0:
        at = at.clip(0, side - 1)
    first = np.floor(at - reach).astype(np.int64) + 1
    taps = first[:, None] + np.arange(math.ceil(2 * reach) + 1)  # (size, taps)
    far = np.abs(taps - at[:, None]) * stretch
    weights = np.maximum(1 - far, 0) if mode == "linear" else _cubic(far, a)
    if call.integer("exclude_outside", 0):
        weights = weights * ((taps >= 0) & (taps < side))
    weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((len(at), side))
    rows = np.broadcast_to(np.arange(len(at))[:, None], taps.shape)
    np.add.at(matrix, (rows, taps.clip(0, side - 1)), weights)
    product = x.movedim(axis, -1) @ torch.from_numpy(matrix).to(x.dtype).T
    return product.movedim(-1, axis)


def _nearest(call: Call, at: Doubles) -> np.ndarray[Any, np.dtype[np.int64]]:
    nearest_mode = call.text("nearest_mode", "round_prefer_floor")
    at = at.astype(np.float32).astype(np.float64)  # float32 as in ONNX Runtime, so that ties agree
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }[nearest_mode]()
    return rounded.astype(np.int64)


def _cubic(far: Doubles, a: float) -> Doubles:
    """Evaluate Keys' cubic kernel at distances >= 0."""
    near = ((a + 2) * far - (a + 3)) * far**2 + 1
    wide = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return np.where(far <= 1, near, np.where(far < 2, wide, 0.0))


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
