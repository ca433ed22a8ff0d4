"""Latency of any widths and blocks, from measured networks: a non-negative fit of each stage's work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core.tensors import Size
from edgeship.toolkit.models.resnet import Architecture, resize, strided
from edgeship.toolkit.prune import width_search
from edgeship.toolkit.prune.groups import STEM, stream_groups
from edgeship.toolkit.prune.width_search import nearest_width

Vector = npt.NDArray[np.float64]

KINDS = 3  # per stage: multiply-accumulates of 1x1 and of larger convolutions, activations
PRIOR = 0.05  # weight of a latency in proportion to the work, against one measured network
GRANULARITIES = (1, 16, 32, 64)  # channels
RATIOS = (0.25, 0.5, 0.75, 1.0)  # widths of the measured networks
# strides of the stem that are tried: the same resolution without a strided pool, then coarser ones
RESOLUTIONS: Mapping[str, tuple[tuple[int, int] | None, ...]] = {
    "imagenet": (None, (4, 1), (5, 1), (3, 2)),
    "cifar": (None, (2, 1)),
}
DROPPED = 0.25  # part of the droppable blocks that is left out of a measured network


class LatencyModel:
    """Latency as a sum over stages of coefficient times work; the work depends on all widths.

    Multiply-accumulates are counted with widths rounded up to a multiple of channels, the one of
    `GRANULARITIES` that fits best: kernels work on blocks of channels.

    Attributes:
        granularity: That multiple.
        error: Root mean square relative error over the measured networks.
    """

    def __init__(self, dense: Architecture, size: Size, dense_ms: float) -> None:
        """Start from a latency in proportion to the work of the dense network.

        Args:
            dense: The dense network.
            size: Height and width of an image in pixels.
            dense_ms: Its measured latency.
        """
        self._areas: dict[tuple[int, int], dict[tuple[int, int], tuple[int, int]]] = {}
        self._dense, self._size, self._dense_ms, self.granularity = dense, size, dense_ms, 1
        self._unit = np.maximum(self._work(dense), 1e-9)  # a coefficient is the dense network's milliseconds
        macs = self._unit * _is_macs(len(self._unit))
        other = self._unit * (1 - _is_macs(len(self._unit)))
        self._prior = dense_ms * (0.7 * macs / macs.sum() + 0.3 * other / other.sum())
        self._measured: list[tuple[Architecture, float]] = [(dense, dense_ms)]
        self._coefficients, self.error = self._prior, 0.0

    def add(self, arch: Architecture, ms: float) -> None:
        """Add a measured network, and fit again."""
        self._measured.append((arch, ms))
        fits = []
        for granularity in GRANULARITIES:
            self.granularity = granularity
            fits.append((*self._fit(), granularity))
        self.error, self._coefficients, self.granularity = min(fits, key=lambda each: each[0])

    def _fit(self) -> tuple[float, Vector]:
        """Return the error and the coefficients with the present granularity."""
        from scipy.optimize import nnls

        measured = np.array([self._work(arch) / self._unit / ms for arch, ms in self._measured])
        weight = PRIOR / np.maximum(self._prior, 0.01 * self._dense_ms)
        matrix = np.vstack([measured, np.diag(weight)])
        coefficients, _ = nnls(matrix, np.concatenate([np.ones(len(measured)), weight * self._prior]))
        return float(np.sqrt(np.mean((measured @ coefficients - 1) ** 2))), coefficients

    def total_ms(self, arch: Architecture) -> float:
        """Return the predicted latency of a network in milliseconds."""
        return float(self._work(arch) / self._unit @ self._coefficients)

    def block_ms(self, arch: Architecture, stage: int, block: int) -> float:
        """Return the predicted share of one block in milliseconds."""
        at = 2 + KINDS * stage
        part = slice(at, at + KINDS)
        return float(self._block(arch, stage, block) / self._unit[part] @ self._coefficients[part])

    def _work(self, arch: Architecture) -> Vector:
        """Return [stem multiply-accumulates, stem activations, KINDS per stage..., 1]."""
        area = strided(self._size, arch.steps[0])
        kernel = 49 if arch.stem == "imagenet" else 9
        outputs = math.prod(area) * arch.widths.stem
        work = [float(outputs * kernel * arch.channels), float(outputs)]
        for stage, blocks in enumerate(arch.widths.inner):
            total = np.zeros(KINDS)
            for block, inner in enumerate(blocks):
                if inner:
                    total += self._block(arch, stage, block)
            work += total.tolist()
        return np.array([*work, 1.0])

    def _sides(self, steps: tuple[int, int], stage: int, block: int) -> tuple[int, int]:
        """Return height and width of the input of a block, by the strides of the stem."""
        if steps not in self._areas:
            self._areas[steps] = width_search.block_sides(
                replace(self._dense, stem_strides=steps), self._size
            )
        return self._areas[steps][stage, block]

    def _block(self, arch: Architecture, stage: int, block: int) -> Vector:
        input_sides = self._sides(arch.steps, stage, block)
        area, out = math.prod(input_sides), math.prod(strided(input_sides, arch.stride(stage, block)))
        widths = (arch.width_in(stage, block), *arch.widths.inner[stage][block], arch.widths.streams[stage])
        whole = tuple(-(-width // self.granularity) * self.granularity for width in widths)
        if arch.unit == "basic":
            small = 0.0
            large = 9.0 * out * sum(a * b for a, b in itertools.pairwise(whole))
            moved = area * widths[0] + out * (2 * widths[1] + 2 * widths[2])
        else:
            small = float(area * whole[0] * whole[1] + out * whole[2] * whole[3])
            large = 9.0 * out * whole[1] * whole[2]
            moved = area * (widths[0] + 2 * widths[1]) + out * (2 * widths[2] + 2 * widths[3])
        if arch.projects(stage, block):
            small += float(out * whole[0] * whole[-1])
            moved += out * (widths[0] + widths[-1])
        return np.array([small, large, float(moved)])


def samples(
    arch: Architecture, droppable: Sequence[tuple[int, int]], step: int, count: int
) -> list[Architecture]:
    """Return random networks to measure: widths of every stage and stream, blocks left out, resolutions."""
    rng = np.random.default_rng(0)
    groups = stream_groups(arch)
    result = []
    for _ in range(count):
        parts = rng.choice(RATIOS, len(arch.widths.streams))
        gone = {place for place in droppable if rng.random() < DROPPED}
        inner = tuple(
            tuple(
                ()
                if (stage, block) in gone or not dense
                else tuple(nearest_width(width, parts[stage], step) for width in dense)
                for block, dense in enumerate(blocks)
            )
            for stage, blocks in enumerate(arch.widths.inner)
        )
        kept = {g.name: nearest_width(g.width, rng.choice(RATIOS[1:]), step) for g in groups}
        strides = RESOLUTIONS[arch.stem][rng.integers(len(RESOLUTIONS[arch.stem]))]
        result.append(replace(with_streams(arch, kept, inner), stem_strides=strides))
    return result


def with_streams(
    arch: Architecture, kept: Mapping[str, int], inner: tuple[tuple[tuple[int, ...], ...], ...]
) -> Architecture:
    """Return the architecture with a number of channels of every stream group, and inner widths."""
    widths = arch.widths
    places = {STEM: widths.stem} | {f"stream{i}": width for i, width in enumerate(widths.streams, 1)}
    for group in stream_groups(arch):
        for place in group.places:
            places[place[0]] -= group.width - kept[group.name]
    streams = tuple(places[f"stream{i}"] for i in range(1, len(widths.streams) + 1))
    return resize(arch, type(widths)(places[STEM], streams, inner))


def _is_macs(count: int) -> Vector:
    """Return 1 for the entries of the work that count multiply-accumulates."""
    flags = np.zeros(count)
    flags[0] = 1
    for kind in range(KINDS - 1):
        flags[2 + kind : -1 : KINDS] = 1
    return flags
