"""Weights rounded one input at a time, the later ones making up for the errors of the earlier.

A layer's output is a sum over its inputs, and neighbouring inputs are alike: what one weight loses by
rounding, its neighbours can give back. For the integers this asks for the inputs' second moments alone.

Source:
    Frantar et al. 2022 (GPTQ), arXiv:2210.17323; Frantar and Alistarh 2022 (OBQ), arXiv:2208.11580.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.network import Network
from quantize.placement import weight_axis
from quantize.simulate import fake_quantize
from toolkit.core.quant import FloatArray, QParams

ROWS = 2**15  # positions that a layer's second moments are taken over
DAMPING = 0.01  # of the mean second moment: few images do not tell all of them
BLOCK = 128  # inputs between updates of all later weights


class LeastSquares:
    """Rounds the weights of one layer after another to fit the inputs that it gets.

    Args:
        network: The float graph.
        weights: Quantized initializers.

    Attributes:
        rounded: Initializer name -> its values on the grid, of the layers that were rounded.
    """

    def __init__(self, network: Network, weights: Mapping[str, QParams]) -> None:
        self._network, self._weights = network, weights
        self.rounded: dict[str, FloatArray] = {}

    def __call__(self, node: ir.Node, name: str, inputs: Callable[[], Iterable[Tensor]]) -> Tensor:
        """The weights `name` of a layer on their grid.

        Args:
            node: A convolution or matrix product; of a grouped convolution the nearest integers are taken.
            name: Its weights.
            inputs: Gives the layer's input (N, C, ...), in parts.
        """
        weight, qparams = self._network.constants[name], self._weights[name]
        if self._network.reads[name] > 1 or (node.attributes.get_int("group", 1) or 1) > 1:
            return fake_quantize(weight, qparams)
        axis = weight_axis(node)
        rows = weight.transpose(0, axis) if axis else weight  # (O, I, ...)
        scale = torch.tensor(qparams.scale, dtype=torch.float64)
        moments = _moments(node, tuple(rows.shape), inputs)
        steps = rounded(rows.reshape(len(rows), -1), moments, scale, qparams.spec.quant_max)
        found = (steps * scale[:, None]).float().reshape(rows.shape)
        found = found.transpose(0, axis) if axis else found
        self.rounded[name] = np.ascontiguousarray(found.numpy())
        return found.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else found


def rounded(weight: Tensor, moments: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Integers (O, K) for weights (O, K), so that the outputs change little.

    Args:
        weight: One row for every output.
        moments: Second moments of the inputs, (K, K).
        scale: Step of every row, (O,).
        limit: Largest magnitude of an integer.
    """
    count = weight.shape[1]
    left = weight.double() / scale[:, None]
    moments = moments.double().clone()
    mean = float(moments.diagonal().mean())
    if mean == 0.0:  # an input that is never there
        return left.round().clamp(-limit, limit)
    moments.diagonal().add_(DAMPING * mean)
    order = moments.diagonal().argsort(descending=True)  # what matters most has most that can make up for it
    moments, left = moments[order][:, order], left[:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True)
    steps = torch.empty_like(left)
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        part, corner = left[:, start:end], factor[start:end, start:end]
        errors = torch.empty_like(part)
        for i in range(end - start):
            steps[:, start + i] = part[:, i].round().clamp(-limit, limit)
            errors[:, i] = (part[:, i] - steps[:, start + i]) / corner[i, i]
            part[:, i:] -= errors[:, i : i + 1] * corner[i, i:]
        left[:, end:] -= errors @ factor[start:end, end:]
    result = torch.empty_like(steps)
    result[:, order] = steps
    return result


def _moments(node: ir.Node, shape: tuple[int, ...], inputs: Callable[[], Iterable[Tensor]]) -> Tensor:
    """Second moments (K, K) of what the K weights of an output are multiplied with."""
    size = int(np.prod(shape[1:]))
    total = torch.zeros(size, size, dtype=torch.float64)
    parts = sum(1 for _ in inputs())
    for values in inputs():
        columns = _columns(node, shape, values)
        columns = columns[:: max(len(columns) * parts // ROWS, 1)]
        total += (columns.T @ columns).double()
    return total


def _columns(node: ir.Node, shape: tuple[int, ...], values: Tensor) -> Tensor:
    """What the weights of an output are multiplied with, (positions, K)."""
    if values.ndim != 4:
        turned = node.op_type == "Gemm" and node.attributes.get_int("transA", False)
        return values.T if turned else values.reshape(-1, shape[1])

    def two(name: str) -> tuple[int, int]:
        attribute = node.attributes.get(name)
        first, second = (1, 1) if attribute is None else attribute.as_ints()
        return int(first), int(second)

    pads = node.attributes.get("pads")
    top, left, bottom, right = (0, 0, 0, 0) if pads is None else (int(i) for i in pads.as_ints())
    padded = F.pad(values, (left, right, top, bottom)).contiguous()
    kernel = (shape[2], shape[3])
    unfolded = F.unfold(padded, kernel, dilation=two("dilations"), stride=two("strides"))
    return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])
