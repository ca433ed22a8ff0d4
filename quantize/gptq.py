"""Weights rounded one input at a time, the later ones making up for the errors of the earlier.

A layer's output is a sum over its inputs, and neighbouring inputs are alike: what one weight loses by
rounding, its neighbours can give back. For the integers this asks for the inputs' second moments alone.
All inputs of a layer together take seconds to minutes; a kernel's taps and a few channels at a time take
next to none, and keep most of the gain.

Source:
    Frantar et al. 2022 (GPTQ), arXiv:2210.17323; Frantar and Alistarh 2022 (OBQ), arXiv:2208.11580; blocks
    of inputs, and moments about the mean, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.network import Network, side_by_side
from quantize.placement import weight_axis
from quantize.simulate import dequantized, fake_quantize
from toolkit.core.quant import FloatArray, QParams

ROWS = 2**15  # positions that a layer's second moments are taken over, where all inputs are fitted together
NEAR = 144  # inputs that next to no time is enough for: a 3x3 kernel's of 16 channels
NEAR_ROWS = 2**10  # positions for these
JOINED_ROWS = 2**11  # positions taken up together: one large product is faster than some small ones
DAMPING = 0.01  # of the mean second moment: few images do not tell all of them
GROUPS = 2  # of parts whose moments are taken side by side
BLOCKS_EACH = 8  # blocks of inputs a thread fits at once
OUTPUTS_EACH = 256  # outputs a thread fits at once, where there is one block
BLOCK = 16  # inputs between updates of all later weights


class LeastSquares:
    """Rounds the weights of one layer after another to fit the inputs that it gets.

    Args:
        network: The float graph.
        weights: Quantized initializers.
        together: About so many inputs of an output are fitted together: the taps of a kernel first, then of
            neighbouring channels. Time grows with its square; None: all.
    """

    def __init__(self, network: Network, weights: Mapping[str, QParams], together: int | None = None) -> None:
        self._network, self._weights, self._together = network, weights, together
        self._steps: dict[str, Tensor] = {}  # int8: a quarter of the memory

    def __call__(self, node: ir.Node, name: str, inputs: Sequence[Callable[[], Tensor]]) -> Tensor:
        """The weights `name` of a layer on their grid.

        Args:
            node: A convolution or matrix product; of a grouped convolution the nearest integers are taken.
            name: Its weights.
            inputs: Give the layer's input (N, C, ...), in parts.
        """
        weight, qparams = self._network.constants[name], self._weights[name]
        if self._network.reads[name] > 1 or (node.attributes.get_int("group", 1) or 1) > 1:
            return fake_quantize(weight, qparams)
        axis = weight_axis(node)
        rows = weight.transpose(0, axis) if axis else weight  # (O, I, ...)
        shape = tuple(rows.shape)
        taps = int(np.prod(shape[2:]))
        size = shape[1] if self._together is None else min(max(self._together // taps, 1), shape[1])
        moments = _moments(node, shape, inputs, size, ROWS if self._together is None else NEAR_ROWS)
        scale = torch.tensor(qparams.scale)
        blocks = _blocks(rows.reshape(len(rows), -1), size * taps)
        steps = rounded(blocks, moments, scale, qparams.spec.quant_max)
        steps = steps.transpose(0, 1).reshape(len(rows), -1)[:, : shape[1] * taps].reshape(shape)
        steps = steps.transpose(0, axis) if axis else steps
        self._steps[name] = steps.to(torch.int8)
        found = dequantized(steps, qparams)
        return found.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else found

    @property
    def rounded(self) -> dict[str, FloatArray]:
        """Initializer name -> its values on the grid, of the layers that were rounded."""
        return {
            name: dequantized(steps, self._weights[name]).contiguous().numpy()
            for name, steps in self._steps.items()
        }


def rounded(weight: Tensor, moments: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Integers (B, O, K) for weights (B, O, K), so that the outputs change little.

    Args:
        weight: B blocks of inputs that are fitted apart; one row for every output.
        moments: Second moments of the inputs of every block, (B, K, K).
        scale: Step of every row, (O,).
        limit: Largest magnitude of an integer.
    """
    moments = moments.to(weight.dtype, copy=True)
    diagonal = moments.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean()
    if mean <= 0.0:  # inputs that never change, but for rounding errors
        return (weight / scale[:, None].to(weight.dtype)).round().clamp(-limit, limit)
    diagonal.add_(DAMPING * mean)
    if len(weight) == 1:
        order, shares = _shares(moments)
        some = zip(torch.split(weight, OUTPUTS_EACH, 1), torch.split(scale, OUTPUTS_EACH), strict=True)
        return torch.cat(
            list(side_by_side(lambda some: _fitted(some[0], order, shares, some[1], limit), some)), 1
        )
    blocks = zip(torch.split(weight, BLOCKS_EACH), torch.split(moments, BLOCKS_EACH), strict=True)
    return torch.cat(
        list(side_by_side(lambda some: _fitted(some[0], *_shares(some[1]), scale, limit), blocks))
    )


def _shares(moments: Tensor) -> tuple[Tensor, Tensor]:
    """In what order inputs are rounded, (B, K); what each of the later ones takes of an error, (B, K, K)."""
    # what matters most has most that can make up for it
    order = moments.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    moments = moments.gather(1, order[:, :, None].expand_as(moments))
    moments = moments.gather(2, order[:, None].expand_as(moments))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True)
    return order, factor / factor.diagonal(dim1=1, dim2=2)[:, :, None]


def _fitted(weight: Tensor, order: Tensor, shares: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Integers for weights (B, O, K), one input after another."""
    left = (weight / scale[:, None].to(weight.dtype)).transpose(1, 2).contiguous()  # (B, K, O)
    left = left.gather(1, order[:, :, None].expand_as(left))
    steps = torch.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        end = min(start + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, start:end])
        for i in range(start, end):
            steps[:, i] = left[:, i].round().clamp_(-limit, limit)
            errors[:, i - start] = left[:, i] - steps[:, i]
            left[:, i + 1 : end] -= shares[:, i, i + 1 : end, None] * errors[:, i - start, None]
        left[:, end:] -= shares[:, start:end, end:].transpose(1, 2) @ errors
    result = torch.empty_like(steps)
    return result.scatter_(1, order[:, :, None].expand_as(steps), steps).transpose(1, 2)


def _moments(
    node: ir.Node, shape: tuple[int, ...], inputs: Sequence[Callable[[], Tensor]], size: int, rows: int
) -> Tensor:
    """Second moments (B, K, K) of what the weights of an output are multiplied with, `size` channels a block.

    About their means, where a bias makes up for these.
    """
    width = size * int(np.prod(shape[2:]))
    each = max(rows // len(inputs), 1)

    def summed(some: Sequence[Callable[[], Tensor]]) -> tuple[Tensor, Tensor, int]:
        """Squares about the mean, the mean, and how many."""
        squares, sums, center, seen = torch.zeros(()), torch.zeros(()), torch.zeros(()), 0
        for columns in _joined((_columns(node, shape, read(), each) for read in some), JOINED_ROWS):
            parts = _blocks(columns, width)
            center = center if seen else parts.mean(1, keepdim=True)  # near the mean: sums stay small
            parts = parts - center
            squares = squares + (parts.transpose(1, 2) @ parts).double()
            sums = sums + parts.sum(1).double()
            seen += parts.shape[1]
        return squares.sub_(_outer(sums), alpha=1 / seen), sums / seen + center[:, 0], seen

    count = min(GROUPS, len(inputs)) if size < shape[1] else 1  # memory: moments of all inputs are large
    groups = [inputs[start::count] for start in range(count)]
    squares, means, counts = zip(*side_by_side(summed, groups), strict=True)
    total = sum(counts)
    mean = sum(m * n for m, n in zip(means, counts, strict=True)) / total
    if node.op_type == "MatMul":
        mean = torch.zeros_like(mean)
    found: Tensor = squares[0]
    for more in squares[1:]:
        found.add_(more)
    for m, n in zip(means, counts, strict=True):
        found.add_(_outer(m - mean), alpha=n)
    return found


def _outer(rows: Tensor) -> Tensor:
    """Products of all pairs, (B, K, K) of (B, K)."""
    return rows[:, :, None] * rows[:, None]


def _blocks(columns: Tensor, width: int) -> Tensor:
    """Columns (R, C) in blocks of that many, (B, R, width); the last one filled up with zeros."""
    filled = F.pad(columns, (0, -columns.shape[1] % width))
    return filled.reshape(len(columns), -1, width).transpose(0, 1)


def _columns(node: ir.Node, shape: tuple[int, ...], values: Tensor, most: int) -> Tensor:
    """What the weights of an output are multiplied with, (positions, K), at about `most` positions."""
    if values.ndim != 4:
        turned = node.op_type == "Gemm" and node.attributes.get_int("transA", False)
        rows = values.T if turned else values.reshape(-1, shape[1])
        return rows[:: max(len(rows) // most, 1)]

    def two(name: str) -> tuple[int, int]:
        attribute = node.attributes.get(name)
        first, second = (1, 1) if attribute is None else attribute.as_ints()
        return int(first), int(second)

    pads = node.attributes.get("pads")
    top, left, bottom, right = (0, 0, 0, 0) if pads is None else (int(i) for i in pads.as_ints())
    padded = F.pad(values, (left, right, top, bottom))
    down, across = two("strides")
    below, beside = two("dilations")
    apart = max(math.isqrt(len(values) * values.shape[2] * values.shape[3] // (down * across * most)), 1)
    ends = padded.shape[2] - below * (shape[2] - 1), padded.shape[3] - beside * (shape[3] - 1)
    taps = [
        padded[:, :, y : y + ends[0] : down * apart, x : x + ends[1] : across * apart]
        for y in range(0, below * shape[2], below)
        for x in range(0, beside * shape[3], beside)
    ]
    return torch.stack(taps, 2).permute(0, 3, 4, 1, 2).reshape(-1, shape[1] * len(taps))


def _joined(parts: Iterable[Tensor], least: int) -> Iterator[Tensor]:
    """Columns (R, K) with so many rows at least, but for the last ones."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= least:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)
