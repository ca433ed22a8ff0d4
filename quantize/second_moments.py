"""Moments of what layers read and give in the float network: what fitted weights and biases have to know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeship.quantization.placement import is_weighted
from edgeship.quantization.torch_executor import TorchExecutor, side_by_side
from edgeship.toolkit.core.memory import release_freed_memory

GROUPS = 2  # of images whose moments are summed up side by side: memory


@dataclass(frozen=True, slots=True)
class Observed:
    """What a float pass saw.

    Attributes:
        means: Output of a convolution or matrix product -> mean of every image and channel, (N, C).
        moments: Second moments (B, K, K) of what each reader's weights are multiplied with; about their
            means, where a bias makes up for these.
    """

    means: dict[str, Tensor]
    moments: list[Tensor]


@dataclass(frozen=True, slots=True)
class Reader:
    """A convolution or matrix product, and how its inputs are taken together.

    Attributes:
        node: It.
        shape: Of its weights, outputs first: (O, I, ...).
        channels: Of its input in one block: with a kernel's taps, K = channels x taps numbers.
    """

    node: ir.Node
    shape: tuple[int, ...]
    channels: int

    @property
    def width(self) -> int:
        """Numbers in a block, K."""
        return self.channels * math.prod(self.shape[2:])

    @property
    def blocks(self) -> int:
        """Blocks, B; the last one may be filled up with zeros."""
        return -(-self.shape[1] // self.channels)


class Moments:
    """Second moments about the mean of rows that come in parts.

    Source:
        Chan et al. 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances.
    """

    def __init__(self, blocks: int, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(blocks, 1, width)
        self.squares = torch.zeros(blocks, width, width)

    def add(self, rows: Tensor) -> None:
        """Take up rows (B, R, K)."""
        mean = rows.mean(1, keepdim=True)
        rows = torch.cat([rows - mean, self._moved(mean, rows.shape[1])], 1)
        self.squares.baddbmm_(rows.transpose(1, 2), rows)

    def merge(self, other: Moments) -> None:
        """Take up what another one was given."""
        row = self._moved(other.mean, other.count)
        self.squares.add_(other.squares).baddbmm_(row.transpose(1, 2), row)

    def _moved(self, mean: Tensor, count: int) -> Tensor:
        """Count rows of another mean; the row (B, 1, K) whose square makes up for the two means."""
        apart, total = mean - self.mean, self.count + count
        row = apart * math.sqrt(self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total
        return row

    def about_zero(self) -> Tensor:
        """What there is before the mean is taken away, (B, K, K); these moments are used up by it."""
        return self.squares.baddbmm_(self.mean.transpose(1, 2), self.mean, alpha=self.count)


def observe(
    network: TorchExecutor,
    images: Sequence[Tensor],
    readers: Sequence[Reader],
    rows: int,
    *,
    biases: bool = True,
) -> Observed:
    """Run the float network once.

    Args:
        network: The float graph.
        images: (N, C, H, W) each.
        readers: Layers whose inputs' second moments are asked for.
        rows: Positions that these are taken over, about.
        biases: Whether bias correction makes up for the means, where there is a bias.
    """
    some = -(-len(images) // GROUPS)
    groups = [images[start : start + some] for start in range(0, len(images), some)]
    watches = [_Watch(network, readers, max(rows // len(images), 1)) for _ in groups]
    for _ in side_by_side(lambda pair: pair[0].run(pair[1]), zip(watches, groups, strict=True)):
        pass
    means = {name: torch.cat([part for w in watches for part in w.means[name]]) for name in watches[0].means}
    moments = watches[0].moments
    for watch in watches[1:]:
        for mine, theirs in zip(moments, watch.moments, strict=True):
            mine.merge(theirs)
    del watches
    release_freed_memory()
    uncentred = [not biases or reader.node.op_type == "MatMul" for reader in readers]
    return Observed(
        means,
        [m.about_zero() if zero else m.squares for m, zero in zip(moments, uncentred, strict=True)],
    )


class _Watch:
    """Looks at some images on their way through the float network."""

    def __init__(self, network: TorchExecutor, readers: Sequence[Reader], rows: int) -> None:
        self.means: dict[str, list[Tensor]] = {
            str(node.outputs[0].name): [] for node in network.nodes if is_weighted(node)
        }
        self.moments = [Moments(reader.blocks, reader.width) for reader in readers]
        self._network, self._rows = network, rows
        self._readers: dict[str, list[tuple[Reader, Moments]]] = {}
        for reader, seen in zip(readers, self.moments, strict=True):
            self._readers.setdefault(str(reader.node.inputs[0].name), []).append((reader, seen))  # type: ignore[union-attr]

    @torch.no_grad()
    def run(self, images: Sequence[Tensor]) -> None:
        for part in images:
            self._network(part, self._look)

    def _look(self, name: str, value: Tensor) -> Tensor:
        if name in self.means:
            self.means[name].append(channel_means(value))
        for reader, seen in self._readers.get(name, ()):
            rows = columns(reader.node, reader.shape, value, self._rows)
            seen.add(in_blocks(rows, reader.width))
        return value


def channel_means(values: Tensor) -> Tensor:
    """Means of (N, C, ...) over all but images and channels, (N, C)."""
    return values.mean(tuple(range(2, values.ndim))) if values.ndim > 2 else values.clone()


def in_blocks(values: Tensor, width: int) -> Tensor:
    """Rows (R, C) in blocks of so many numbers, (B, R, width); the last one filled up with zeros."""
    missing = -values.shape[1] % width
    filled = F.pad(values, (0, missing)) if missing else values
    return filled.reshape(len(values), -1, width).transpose(0, 1)


def columns(node: ir.Node, shape: tuple[int, ...], values: Tensor, most: int) -> Tensor:
    """What the weights of an output are multiplied with, (positions, K), at about `most` positions."""
    if node.op_type != "Conv":
        turned = node.op_type == "Gemm" and node.attributes.get_int("transA", False)
        rows = values.T if turned else values.reshape(-1, shape[1])
        return rows[:: max(len(rows) // most, 1)]

    def two(name: str) -> tuple[int, int]:
        attribute = node.attributes.get(name)
        first, second = (1, 1) if attribute is None else attribute.as_ints()
        return int(first), int(second)

    pads = node.attributes.get("pads")
    top, left, bottom, right = (0, 0, 0, 0) if pads is None else (int(i) for i in pads.as_ints())
    padded = F.pad(values, (left, right, top, bottom)) if max(top, left, bottom, right) else values
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
