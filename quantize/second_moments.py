"""Second moments of layer inputs and channel means of outputs, for GPTQ and bias correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeship.quantization.placement import is_weighted
from edgeship.quantization.torch_executor import TorchExecutor, side_by_side
from edgeship.toolkit.core.memory import release_freed_memory

GROUPS = 2  # of images, summed in parallel, each with its own moments: bounds the memory


@dataclass(frozen=True, slots=True)
class LayerMoments:
    """Input moments and output means of layers in the float network.

    Attributes:
        means: Output of a convolution or matrix product -> mean of every image and channel, (N, C).
        moments: Second moments (B, K, K) of each layer's inputs; centred, if bias correction absorbs the
            mean.
    """

    means: dict[str, Tensor]
    moments: list[Tensor]


@dataclass(frozen=True, slots=True)
class BlockedLayer:
    """Convolution or matrix product whose inputs are divided into blocks.

    Attributes:
        node: Node of the layer.
        shape: Shape of the weights, outputs first: (O, I, ...).
        channels: Input channels in a block; with the kernel taps, K = channels x taps inputs.
    """

    node: ir.Node
    shape: tuple[int, ...]
    channels: int

    @property
    def width(self) -> int:
        """Inputs in a block, K."""
        return self.channels * math.prod(self.shape[2:])

    @property
    def blocks(self) -> int:
        """Blocks, B; the last one may be padded with zeros."""
        return -(-self.shape[1] // self.channels)


class Moments:
    """Second moments about the mean, accumulated over parts of the rows.

    Source:
        Chan et al. 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances.
    """

    def __init__(self, blocks: int, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(blocks, 1, width)
        self.squares = torch.zeros(blocks, width, width)

    def add(self, rows: Tensor) -> None:
        """Add rows (B, R, K)."""
        mean = rows.mean(1, keepdim=True)
        rows = torch.cat([rows - mean, self._shift_mean(mean, rows.shape[1])], 1)
        self.squares.baddbmm_(rows.transpose(1, 2), rows)

    def merge(self, other: Moments) -> None:
        """Add the rows of another accumulator."""
        row = self._shift_mean(other.mean, other.count)
        self.squares.add_(other.squares).baddbmm_(row.transpose(1, 2), row)

    def _shift_mean(self, mean: Tensor, count: int) -> Tensor:
        """Update the mean by `count` rows; return the row (B, 1, K) whose square corrects the moments."""
        difference, total = mean - self.mean, self.count + count
        row = difference * math.sqrt(self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total
        return row

    def about_zero(self) -> Tensor:
        """Return the moments about zero, (B, K, K), in place: the accumulator is invalid afterwards."""
        return self.squares.baddbmm_(self.mean.transpose(1, 2), self.mean, alpha=self.count)


def collect_moments(
    network: TorchExecutor,
    images: Sequence[Tensor],
    layers: Sequence[BlockedLayer],
    rows: int,
    *,
    biases: bool = True,
) -> LayerMoments:
    """Run the float network once and accumulate moments.

    Args:
        network: The float graph.
        images: (N, C, H, W) each.
        layers: Layers for input moments.
        rows: Approximate number of positions for the moments.
        biases: Bias correction absorbs the means, where there is a bias.
    """
    size = -(-len(images) // GROUPS)
    groups = [images[start : start + size] for start in range(0, len(images), size)]
    recorders = [_Recorder(network, layers, max(rows // len(images), 1)) for _ in groups]
    for _ in side_by_side(lambda pair: pair[0].run(pair[1]), zip(recorders, groups, strict=True)):
        pass
    means = {
        name: torch.cat([part for each in recorders for part in each.means[name]])
        for name in recorders[0].means
    }
    moments = recorders[0].moments
    for recorder in recorders[1:]:
        for total, part in zip(moments, recorder.moments, strict=True):
            total.merge(part)
    del recorders
    release_freed_memory()
    uncentred = [not biases or layer.node.op_type == "MatMul" for layer in layers]
    return LayerMoments(
        means,
        [m.about_zero() if zero else m.squares for m, zero in zip(moments, uncentred, strict=True)],
    )


class _Recorder:
    """Moments and means over one group of images."""

    def __init__(self, network: TorchExecutor, layers: Sequence[BlockedLayer], rows: int) -> None:
        self.means: dict[str, list[Tensor]] = {
            str(node.outputs[0].name): [] for node in network.nodes if is_weighted(node)
        }
        self.moments = [Moments(layer.blocks, layer.width) for layer in layers]
        self._network, self._rows = network, rows
        self._layers: dict[str, list[tuple[BlockedLayer, Moments]]] = {}
        for layer, moments in zip(layers, self.moments, strict=True):
            self._layers.setdefault(str(layer.node.inputs[0].name), []).append((layer, moments))  # type: ignore[union-attr]

    @torch.no_grad()
    def run(self, images: Sequence[Tensor]) -> None:
        for part in images:
            self._network(part, self._record)

    def _record(self, name: str, value: Tensor) -> Tensor:
        if name in self.means:
            self.means[name].append(channel_means(value))
        for layer, moments in self._layers.get(name, ()):
            rows = im2col(layer.node, layer.shape, value, self._rows)
            moments.add(in_blocks(rows, layer.width))
        return value


def channel_means(values: Tensor) -> Tensor:
    """Average (N, C, ...) over positions to (N, C)."""
    return values.mean(tuple(range(2, values.ndim))) if values.ndim > 2 else values.clone()


def in_blocks(values: Tensor, width: int) -> Tensor:
    """Divide rows (R, C) into blocks of `width` columns, (B, R, width); the last one is padded with zeros."""
    missing = -values.shape[1] % width
    padded = F.pad(values, (0, missing)) if missing else values
    return padded.reshape(len(values), -1, width).transpose(0, 1)


def im2col(node: ir.Node, shape: tuple[int, ...], values: Tensor, most: int) -> Tensor:
    """Return the input rows of a layer as a matrix product, (positions, K), at about `most` positions."""
    if node.op_type != "Conv":
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", False)
        rows = values.T if transposed else values.reshape(-1, shape[1])
        return rows[:: max(len(rows) // most, 1)]

    sides = values.ndim - 2

    def integers(name: str, default: list[int]) -> list[int]:
        attribute = node.attributes.get(name)
        return default if attribute is None else [int(i) for i in attribute.as_ints()]

    pads = integers("pads", [0] * 2 * sides)
    around = [pad for side in reversed(range(sides)) for pad in (pads[side], pads[sides + side])]
    padded = F.pad(values, around) if any(pads) else values
    strides, dilations = integers("strides", [1] * sides), integers("dilations", [1] * sides)
    positions = len(values) * math.prod(values.shape[2:]) // math.prod(strides)
    thinning = max(int((positions // most) ** (1 / sides)), 1)
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, shape[2:], strict=True)]
    ends = [length - last for length, last in zip(padded.shape[2:], reach, strict=True)]

    def tap(first: tuple[int, ...]) -> Tensor:
        steps = (
            slice(i, i + end, step * thinning) for i, end, step in zip(first, ends, strides, strict=True)
        )
        return padded[(slice(None), slice(None), *steps)]

    taps = [
        tap(i) for i in product(*(range(0, last + 1, d) for last, d in zip(reach, dilations, strict=True)))
    ]
    return torch.stack(taps, -1).movedim(1, -2).reshape(-1, shape[1] * len(taps))
