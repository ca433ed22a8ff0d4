"""INT16 overflow of INT8 dot products on x86 CPUs without VNNI, and weight ranges that avoid it.

Without VNNI a dot product is a chain of `vpmaddubsw` (two products of an unsigned and a signed byte, added
and saturated to 16 bits) and the exact `vpmaddwd` and `vpaddd`. VNNI has one exact instruction. A pair is

    a0 w0 + a1 w1, with 0 <= a <= 255: it fits 16 bits for every input if and only if neither the positive
    nor the negative weights of (w0, w1) sum to more than 128 in magnitude (255 * 128 = 32640).

Signed activations have 128 added first, so they span 0..255 too. The runtime determines the pairs:

- "channels" (OpenVINO, by oneDNN): input channels 2j and 2j+1 at one position of the kernel; an odd last
  channel has no partner. Grouped convolutions are matrix products, with pairs as in "rows".
- "rows" (ONNX Runtime, by MLAS): elements 2j and 2j+1 of an im2col row in the order (kernel height, kernel
width,
  input channel). With an even number of channels the pairs are the same.

Both compute depthwise convolutions (one channel a group) in 16 bits, exactly. This was measured for every
pair of weights on a CPU without VNNI; tests/targets/test_pair_sums.py repeats the measurement on such CPUs.

Source:
    oneDNN, "Nuances of int8 computations" (doc/advanced/int8_computations.md, 1.1 and 2). Its
    statement that weights of signed convolutions are halved does not hold for OpenVINO on AVX2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from edgeship.quantization.placement import is_weighted
from edgeship.quantization.qparams import quantize_array
from edgeship.toolkit.core.quant import FloatArray, IntArray, PairOrder, QParams
from edgeship.toolkit.graph import edit
from edgeship.toolkit.graph.query import weight_axis

LARGEST_PAIR = 128  # largest sum of the weights of one sign in a pair: 32767 // 255


def saturating_channels(
    weight: IntArray | npt.NDArray[np.int32], order: PairOrder = "channels"
) -> npt.NDArray[np.bool_]:
    """Return a mask of the output channels whose pair sums saturate for some input.

    Args:
        weight: Integers (O, I, ...) with I input channels of one group; (O, I) of a fully connected layer.
        order: Pairing of the weights.

    Returns:
        (O,).
    """
    return _largest_pair(weight, order) > LARGEST_PAIR


def saturating(model: ir.Model, weights: Mapping[str, QParams], order: PairOrder) -> dict[str, int]:
    """Count the output channels that can saturate, by weight; weights without any are omitted.

    Args:
        model: The float graph.
        weights: Quantized initializers.
        order: Pairing of the weights.
    """
    counts = {}
    for name, array, axis, paired in _paired_weights(model, weights, order):
        integers = np.moveaxis(quantize_array(array, weights[name]), axis, 0)
        count = int(saturating_channels(integers, paired).sum())
        if count:
            counts[name] = count
    return counts


def reduce_range(model: ir.Model, weights: Mapping[str, QParams], order: PairOrder) -> dict[str, QParams]:
    """Enlarge the scales of channels that could saturate, so that no input saturates them.

    The largest pair of a channel determines its scale; the range shrinks by one bit at most. The bound holds
    for rounding of weights up or down.

    Args:
        model: The float graph.
        weights: Quantized initializers.
        order: Pairing of the weights.
    """
    reduced = dict(weights)
    for name, array, axis, paired in _paired_weights(model, weights, order):
        qparams = reduced[name]
        rows, scale = np.moveaxis(array, axis, 0), np.asarray(qparams.scale)
        tight = saturating_channels(np.moveaxis(quantize_array(array, qparams), axis, 0), paired)
        least = _largest_pair(rows[tight], paired) / (LARGEST_PAIR - 2)  # both may round up
        scale[tight] = np.maximum(scale[tight], least)
        reduced[name] = replace(qparams, scale=tuple(scale.tolist()))
    return reduced


def clip_pairs(steps: Tensor, order: PairOrder) -> Tensor:
    """Clip integers so that no pair saturates: reduce the larger weight of a pair by the excess.

    Args:
        steps: (O, I, ...), with I input channels of one group; (O, I) of a fully connected layer.
        order: Pairing of the weights.

    Returns:
        The same shape, int8.
    """
    rows = steps.movedim(1, -1).flatten(1) if order == "rows" else steps
    rows = rows.to(torch.int16, copy=True)
    count = rows.shape[1] // 2
    first, second = rows[:, : 2 * count : 2], rows[:, 1::2]
    sums = first + second
    excess = (sums.abs() - LARGEST_PAIR).clamp_(min=0) * sums.sign()
    larger = first.abs() >= second.abs()
    first -= excess * larger
    second -= excess * ~larger
    if order == "rows":
        rows = rows.reshape(len(steps), *steps.shape[2:], steps.shape[1]).movedim(-1, 1)
    return rows.to(torch.int8)


def _largest_pair(
    weight: npt.NDArray[np.floating[Any] | np.integer[Any]], order: PairOrder
) -> npt.NDArray[np.float32]:
    """Return the largest sum of the weights of one sign in a pair, per output channel."""
    values = np.asarray(weight, np.float32)
    if order == "rows":
        values = np.moveaxis(values, 1, -1).reshape(len(values), int(np.prod(values.shape[1:])))
    rest, count = tuple(range(1, values.ndim)), values.shape[1] // 2
    single = np.abs(values).max(rest, initial=0)
    sums = values[:, : 2 * count : 2] + values[:, 1::2]  # with two signs, less than the larger weight
    largest: npt.NDArray[np.float32] = np.maximum(single, np.abs(sums).max(rest, initial=0))
    return largest


def _paired_weights(
    model: ir.Model, weights: Mapping[str, QParams], order: PairOrder
) -> Iterator[tuple[str, FloatArray, int, PairOrder]]:
    """Yield weights with pair sums: (name, array, output-channel axis, pairing)."""
    for node in model.graph:
        weight = node.inputs[1] if is_weighted(node) else None
        if weight is None or str(weight.name) not in weights:
            continue
        array, groups = edit.constant(weight).astype(np.float32), node.attributes.get_int("group", 1)
        if groups > 1 and array.shape[:2] == (groups, 1):
            continue
        yield str(weight.name), array, weight_axis(node), "rows" if groups > 1 else order
