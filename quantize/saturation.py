"""Where INT8 sums can saturate on x86 CPUs without VNNI, and weights that never do.

There a dot product is a chain of `vpmaddubsw` (two products of an unsigned and a signed byte, added and
saturated to 16 bits), `vpmaddwd` and `vpaddd`, which are exact. With VNNI one instruction does all of
it and nothing saturates. oneDNN, which OpenVINO runs on, pairs input channels 2j and 2j+1 of one group at
one position of the kernel (it broadcasts four channels at a time; a missing one is zero), so a pair is

    a0 w0 + a1 w1, with 0 <= a <= 255: it fits 16 bits for every input if and only if neither the positive
    nor the negative ones of (w0, w1) add up to more than 128 in magnitude (255 * 128 = 32640).

Signed activations have 128 added first, so they span 0..255 too. But for these a convolution halves its
weights itself and cannot saturate, a fully connected layer does not and can. One channel a
group (depthwise) is multiplied in 16 bits and is exact.

Source:
    oneDNN, "Nuances of int8 computations" (doc/advanced/int8_computations.md, 1.1 and 2), and
    src/cpu/x64/jit_uni_x8s8s32x_conv_kernel.cpp: compute_ker, compute_ker_dw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from quantize.placement import MOVED, is_weighted, weight_axis
from quantize.qparams import quantize_array
from toolkit.core.quant import FloatArray, IntArray, QParams, QuantSpec
from toolkit.graph import io

LARGEST_PAIR = 128  # magnitude that the weights of one sign in a pair may add up to: 32767 // 255
MOVING = MOVED | {"MaxPool"}


def saturating_channels(weight: IntArray | npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Output channels of which some input saturates a pair sum.

    Args:
        weight: Integers (O, I, ...) with I input channels of one group; (O, I) of a fully connected layer.

    Returns:
        (O,).
    """
    return _largest_pair(weight) > LARGEST_PAIR


def saturating(
    model: ir.Model, activations: Mapping[str, QuantSpec], weights: Mapping[str, QParams]
) -> dict[str, int]:
    """Weights of a quantized graph -> how many output channels can saturate; those without any are left out.

    Args:
        model: The float graph.
        activations: Quantized tensors.
        weights: Quantized initializers.
    """
    found = {}
    for name, (array, axis) in _exposed(model, activations, weights).items():
        integers = np.moveaxis(quantize_array(array, weights[name]), axis, 0)
        count = int(saturating_channels(integers).sum())
        if count:
            found[name] = count
    return found


def relieve(
    model: ir.Model, activations: Mapping[str, QuantSpec], weights: Mapping[str, QParams]
) -> dict[str, QParams]:
    """Larger scales for the channels that could saturate, so that no input saturates any.

    A channel loses what its largest pair needs, one bit at most; the others stay as they are. It holds for
    any rounding of a weight to a neighbour, up or down.

    Args:
        model: The float graph.
        activations: Quantized tensors.
        weights: Quantized initializers.
    """
    relieved = dict(weights)
    for name, (array, axis) in _exposed(model, activations, weights).items():
        qparams = weights[name]
        rows = np.moveaxis(array, axis, 0)
        scale = np.asarray(qparams.scale)
        for channel in np.flatnonzero(
            saturating_channels(np.moveaxis(quantize_array(array, qparams), axis, 0))
        ):
            scale[channel] = _least_scale(rows[channel : channel + 1], float(scale[channel]))
        relieved[name] = replace(qparams, scale=tuple(scale.tolist()))
    return relieved


def _least_scale(row: FloatArray, scale: float) -> float:
    """A scale, little above the least, by which no pair of (1, I, ...) exceeds its bound."""
    grown = max(scale, float(_largest_pair(row)[0]) / LARGEST_PAIR)
    while _largest_pair(np.sign(row) * np.ceil(np.abs(row) / np.float32(grown)))[0] > LARGEST_PAIR:
        grown *= 1 + 1 / 256
    return grown


def _largest_pair(weight: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Largest magnitude that the weights of one sign in a pair add up to, for every output channel."""
    values = np.asarray(weight, np.float64)
    if values.shape[1] % 2:
        values = np.concatenate([values, np.zeros_like(values[:, :1])], axis=1)
    first, second = values[:, ::2], values[:, 1::2]
    positive = np.maximum(first, 0) + np.maximum(second, 0)
    negative = np.maximum(-first, 0) + np.maximum(-second, 0)
    largest: npt.NDArray[np.float64] = np.maximum(positive, negative).reshape(len(values), -1).max(1)
    return largest


def _exposed(
    model: ir.Model, activations: Mapping[str, QuantSpec], weights: Mapping[str, QParams]
) -> dict[str, tuple[FloatArray, int]]:
    """Weights whose layer pairs unsigned bytes as they are -> (array, axis of the output channels)."""
    found: dict[str, tuple[FloatArray, int]] = {}
    for node in model.graph:
        weight = node.inputs[1] if is_weighted(node) else None
        if weight is None or str(weight.name) not in weights:
            continue
        spec = _read_as(node.inputs[0], activations)
        halved = node.op_type == "Conv" and (spec is None or spec.dtype == "int8")
        if spec is not None and not halved:
            found[str(weight.name)] = io.constant(weight).astype(np.float32), weight_axis(node)
    return found


def _read_as(value: ir.Value | None, activations: Mapping[str, QuantSpec]) -> QuantSpec | None:
    """The type in which a layer reads its input, quantized there or before what only moves values around."""
    while value is not None:
        if str(value.name) in activations:
            return activations[str(value.name)]
        producer = value.producer()
        if producer is None or producer.op_type not in MOVING:
            return None
        value = producer.inputs[0]
    return None
