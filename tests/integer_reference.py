"""Q/DQ graphs in integers: what an INT8 runtime should give, computed independently, in NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass
class Integers:
    """A tensor as integers: (values - zero_point) * scale, both broadcast along the channels."""

    values: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray

    @property
    def real(self) -> np.ndarray:
        return (self.values - self.zero_point) * self.scale


def run(
    model: onnx.ModelProto, images: np.ndarray, forced: Mapping[str, np.ndarray] | None = None
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Compute a Q/DQ graph.

    Args:
        model: The graph.
        images: (N, C, H, W).
        forced: Output of a QuantizeLinear -> integers that later nodes shall read in place of ours.

    Returns:
        Logits in float64, and for every QuantizeLinear of an activation the real number before
        rounding (in steps, not clipped) and our integers.
    """
    values: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    constants = set(values)
    values[model.graph.input[0].name] = images.astype(np.float64)
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for node in model.graph.node:
        inputs = [values[name] if name else None for name in node.input]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        name = node.output[0]
        if node.op_type == "QuantizeLinear":
            steps, integers = _quantize(*inputs, axis=attributes.get("axis", 1))
            if node.input[0] not in constants:
                seen[name] = steps, integers
                integers = np.asarray((forced or {}).get(name, integers), np.int64)
            values[name] = integers
        elif node.op_type == "DequantizeLinear":
            shape = _shape(inputs[0].ndim, inputs[1], attributes.get("axis", 1))
            scale, zero = inputs[1].astype(np.float64).reshape(shape), inputs[2].astype(np.int64)
            values[name] = Integers(inputs[0].astype(np.int64), scale, zero.reshape(shape))
        else:
            values[name] = OPERATIONS[node.op_type](inputs, attributes)
    return _real(values[model.graph.output[0].name]), seen


def _quantize(x: Any, scale: np.ndarray, zero: np.ndarray, *, axis: int = 1) -> tuple[np.ndarray, np.ndarray]:
    shape = _shape(x.ndim if not isinstance(x, Integers) else x.values.ndim, scale, axis)
    info = np.iinfo(zero.dtype)
    steps = _real(x) / scale.astype(np.float64).reshape(shape) + zero.astype(np.float64).reshape(shape)
    return steps, np.clip(np.rint(steps), info.min, info.max).astype(np.int64)


def _shape(ndim: int, scale: np.ndarray, axis: int) -> list[int]:
    return [1] * ndim if scale.ndim == 0 else [-1 if i == axis else 1 for i in range(ndim)]


def _real(x: Any) -> np.ndarray:
    return x.real if isinstance(x, Integers) else np.asarray(x, np.float64)


def _multiply(x: Any, w: Any, product: Any, channels: list[int]) -> np.ndarray:
    """A product of integers, scaled afterwards; the scale of the weights lies along their channels."""
    if isinstance(x, Integers) and isinstance(w, Integers):
        total = product(x.values - x.zero_point, w.values - w.zero_point)
        return total * x.scale.reshape(-1)[0] * w.scale.reshape(channels)
    return product(_real(x), _real(w))


def _conv(inputs: list[Any], a: dict[str, Any]) -> np.ndarray:
    strides, pads, group = a.get("strides", [1, 1]), a.get("pads", [0] * 4), a.get("group", 1)

    def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        padded = np.pad(x, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
        windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))
        windows = windows[:, :, :: strides[0], :: strides[1]]
        parts = zip(np.split(windows, group, axis=1), np.split(w, group), strict=True)
        return np.concatenate([np.einsum("nchwij,ocij->nohw", v, u) for v, u in parts], axis=1)

    result = _multiply(inputs[0], inputs[1], product, [1, -1, 1, 1])
    return result if len(inputs) < 3 else result + _real(inputs[2]).reshape(1, -1, 1, 1)


def _gemm(inputs: list[Any], a: dict[str, Any]) -> np.ndarray:
    def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x @ (w.T if a.get("transB", 0) else w)

    result = _multiply(inputs[0], inputs[1], product, [1, -1])
    return result if len(inputs) < 3 else result + _real(inputs[2])


def _pool(inputs: list[Any], a: dict[str, Any], reduce: Any) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(_real(inputs[0]), a["kernel_shape"], axis=(2, 3))
    return reduce(windows[:, :, :: a["strides"][0], :: a["strides"][1]], axis=(4, 5))


def _batch_norm(inputs: list[Any], a: dict[str, Any]) -> np.ndarray:
    weight, bias, mean, variance = (v.astype(np.float64).reshape(-1, 1, 1) for v in inputs[1:])
    return (_real(inputs[0]) - mean) / np.sqrt(variance + np.float32(a["epsilon"])) * weight + bias


OPERATIONS: dict[str, Any] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "Relu": lambda i, a: np.maximum(_real(i[0]), 0),
    "Sigmoid": lambda i, a: 1 / (1 + np.exp(-_real(i[0]))),
    "HardSwish": lambda i, a: _real(i[0]) * np.clip(_real(i[0]) / 6 + 0.5, 0, 1),
    "Add": lambda i, a: _real(i[0]) + _real(i[1]),
    "Concat": lambda i, a: np.concatenate([_real(v) for v in i], axis=a["axis"]),
    "MaxPool": lambda i, a: _pool(i, a, np.max),
    "AveragePool": lambda i, a: _pool(i, a, np.mean),
    "GlobalAveragePool": lambda i, a: _real(i[0]).mean((2, 3), keepdims=True),
    "Flatten": lambda i, a: _flat(i[0]),
    "Identity": lambda i, a: i[0],
    "BatchNormalization": _batch_norm,
}


def _flat(x: Any) -> Any:
    if isinstance(x, Integers):  # per tensor: moving values keeps them integers
        flat = x.values.reshape(len(x.values), -1)
        return Integers(flat, x.scale.reshape(1, 1), x.zero_point.reshape(1, 1))
    return x.reshape(len(x), -1)
