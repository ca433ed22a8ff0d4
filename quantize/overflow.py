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
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from edgeship.quantization.placement import is_weighted, weight_axis
from edgeship.quantization.qparams import quantize_array
from edgeship.toolkit.core.quant import FloatArray, IntArray, PairOrder, QParams
from edgeship.toolkit.graph import io

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


def reduce_range(model: ir.Model, weights: Mapping[str, QParams], order: PairOrder) -> dict[str, QParams]:
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
        rows, scale = np.moveaxis(array, axis, 0), np.asarray(qparams.scale)
        tight = saturating_channels(np.moveaxis(quantize_array(array, qparams), axis, 0), paired)
        least = _largest_pair(rows[tight], paired) / (LARGEST_PAIR - 2)  # both may be rounded up
        scale[tight] = np.maximum(scale[tight], least)
        relieved[name] = replace(qparams, scale=tuple(scale.tolist()))
    return relieved


def clipped(steps: Tensor, order: PairOrder) -> Tensor:
    """Integers of which no pair saturates: of one that would, the larger weight is made smaller.

    Args:
        steps: (O, I, ...), with I input channels of one group; (O, I) of a fully connected layer.
        order: Which weights make a pair.

    Returns:
        The same shape, int8.
    """
    rows = steps.movedim(1, -1).flatten(1) if order == "rows" else steps
    rows = rows.to(torch.int16, copy=True)
    count = rows.shape[1] // 2
    first, second = rows[:, : 2 * count : 2], rows[:, 1::2]
    together = first + second
    excess = (together.abs() - LARGEST_PAIR).clamp_(min=0) * together.sign()
    larger = first.abs() >= second.abs()
    first -= excess * larger
    second -= excess * ~larger
    if order == "rows":
        rows = rows.reshape(len(steps), *steps.shape[2:], steps.shape[1]).movedim(-1, 1)
    return rows.to(torch.int8)


def _largest_pair(
    weight: npt.NDArray[np.floating[Any] | np.integer[Any]], order: PairOrder
) -> npt.NDArray[np.float32]:
    """Largest magnitude that the weights of one sign in a pair add up to, for every output channel."""
    values = np.asarray(weight, np.float32)
    if order == "rows":
        values = np.moveaxis(values, 1, -1).reshape(len(values), int(np.prod(values.shape[1:])))
    rest, count = tuple(range(1, values.ndim)), values.shape[1] // 2
    alone = np.abs(values).max(rest, initial=0)
    together = values[:, : 2 * count : 2] + values[:, 1::2]  # of two signs it is less than the larger alone
    largest: npt.NDArray[np.float32] = np.maximum(alone, np.abs(together).max(rest, initial=0))
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
