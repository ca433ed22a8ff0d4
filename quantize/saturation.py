"""Where INT8 sums can saturate on x86 CPUs without VNNI, and weights that never do.

There a dot product is a chain of `vpmaddubsw` (two products of an unsigned and a signed byte, added and
saturated to 16 bits), `vpmaddwd` and `vpaddd`, which are exact. With VNNI one instruction does all of
it and nothing saturates. A pair is

    a0 w0 + a1 w1, with 0 <= a <= 255: it fits 16 bits for every input if and only if neither the positive
    nor the negative ones of (w0, w1) add up to more than 128 in magnitude (255 * 128 = 32640).

Signed activations have 128 added first, so they span 0..255 too. Which weights make a pair depends on the
runtime:

- "channels" (OpenVINO, by oneDNN): input channels 2j and 2j+1 at one position of the kernel; an odd last one
  stays alone. Grouped convolutions are matrix products, with pairs as in "rows".
- "rows" (ONNX Runtime, by MLAS): elements 2j and 2j+1 of the row that a matrix product reads, whose order is
  (kernel height, kernel width, input channel). With an even number of channels that is the same.

One channel a group (depthwise) is multiplied in 16 bits by both, and is exact. All of this was seen on a CPU
without VNNI, every pair of weights one after the other; tests/targets/test_pair_sums.py does that again
wherever it runs on such a CPU.

Source:
    oneDNN, "Nuances of int8 computations" (doc/advanced/int8_computations.md, 1.1 and 2). What it says of
    signed convolutions, that their weights are halved, does not hold for OpenVINO's on AVX2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from quantize.placement import is_weighted, weight_axis
from quantize.qparams import quantize_array
from toolkit.core.quant import FloatArray, IntArray, PairOrder, QParams
from toolkit.graph import io

LARGEST_PAIR = 128  # magnitude that the weights of one sign in a pair may add up to: 32767 // 255


def saturating_channels(
    weight: IntArray | npt.NDArray[np.int32], order: PairOrder = "channels"
) -> npt.NDArray[np.bool_]:
    """Output channels of which some input saturates a pair sum.

    Args:
        weight: Integers (O, I, ...) with I input channels of one group; (O, I) of a fully connected layer.
        order: Which weights make a pair.

    Returns:
        (O,).
    """
    return _largest_pair(weight, order) > LARGEST_PAIR


def saturating(model: ir.Model, weights: Mapping[str, QParams], order: PairOrder) -> dict[str, int]:
    """Weights of a quantized graph -> how many output channels can saturate; those without any are left out.

    Args:
        model: The float graph.
        weights: Quantized initializers.
        order: Which weights make a pair.
    """
    found = {}
    for name, array, axis, paired in _exposed(model, weights, order):
        integers = np.moveaxis(quantize_array(array, weights[name]), axis, 0)
        count = int(saturating_channels(integers, paired).sum())
        if count:
            found[name] = count
    return found


def relieve(model: ir.Model, weights: Mapping[str, QParams], order: PairOrder) -> dict[str, QParams]:
    """Larger scales for the channels that could saturate, so that no input saturates any.

    A channel loses what its largest pair needs, one bit at most; the others stay as they are. It holds for
    any rounding of a weight to a neighbour, up or down.

    Args:
        model: The float graph.
        weights: Quantized initializers.
        order: Which weights make a pair.
    """
    relieved = dict(weights)
    for name, array, axis, paired in _exposed(model, weights, order):
        qparams = relieved[name]
        rows = np.moveaxis(array, axis, 0)
        scale = np.asarray(qparams.scale)
        integers = np.moveaxis(quantize_array(array, qparams), axis, 0)
        for channel in np.flatnonzero(saturating_channels(integers, paired)):
            scale[channel] = _least_scale(rows[channel : channel + 1], float(scale[channel]), paired)
        relieved[name] = replace(qparams, scale=tuple(scale.tolist()))
    return relieved


def _least_scale(row: FloatArray, scale: float, order: PairOrder) -> float:
    """A scale, little above the least, by which no pair of (1, I, ...) exceeds its bound."""
    grown = max(scale, float(_largest_pair(row, order)[0]) / LARGEST_PAIR)
    while _largest_pair(np.sign(row) * np.ceil(np.abs(row) / np.float32(grown)), order)[0] > LARGEST_PAIR:
        grown *= 1 + 1 / 256
    return grown


def _largest_pair(weight: npt.NDArray[np.generic], order: PairOrder) -> npt.NDArray[np.float64]:
    """Largest magnitude that the weights of one sign in a pair add up to, for every output channel."""
    values = np.asarray(weight, np.float64)
    if order == "rows":
        values = np.moveaxis(values, 1, -1).reshape(len(values), -1)
    if values.shape[1] % 2:
        values = np.concatenate([values, np.zeros_like(values[:, :1])], axis=1)
    first, second = values[:, ::2], values[:, 1::2]
    positive = np.maximum(first, 0) + np.maximum(second, 0)
    negative = np.maximum(-first, 0) + np.maximum(-second, 0)
    largest: npt.NDArray[np.float64] = np.maximum(positive, negative).reshape(len(values), -1).max(1)
    return largest


def _exposed(
    model: ir.Model, weights: Mapping[str, QParams], order: PairOrder
) -> Iterator[tuple[str, FloatArray, int, PairOrder]]:
    """Weights whose layer pairs bytes: (name, array, axis of the output channels, how they are paired)."""
    for node in model.graph:
        weight = node.inputs[1] if is_weighted(node) else None
        if weight is None or str(weight.name) not in weights:
            continue
        array, groups = io.constant(weight).astype(np.float32), node.attributes.get_int("group", 1) or 1
        if groups > 1 and array.shape[:2] == (groups, 1):
            continue
        yield str(weight.name), array, weight_axis(node), "rows" if groups > 1 else order
