"""Layer-wise reconstruction of a pruned network towards the dense one, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeship.toolkit.core.progress import track
from edgeship.toolkit.models.resnet import Block, ResNet
from edgeship.toolkit.prune.activation_cache import ActivationCache
from edgeship.toolkit.prune.apply import conform, take_bn, take_inputs, take_outputs
from edgeship.toolkit.prune.groups import STEM
from edgeship.toolkit.prune.importances import Evidence, Importance
from edgeship.toolkit.prune.layer_refit import Affine, LayerRefit, split_moments
from edgeship.toolkit.prune.least_squares import choose_ridge, columns_of, refit
from edgeship.toolkit.prune.resolution import Grid, resampled
from edgeship.toolkit.prune.second_moments import Positions, rows_at, sample_positions

POSITIONS = 16  # sampled output positions of each map; all if it is smaller

# inner group -> its kept channels, or their number (the importance selects them)
Choice: TypeAlias = "Mapping[str, Tensor | int]"


@dataclass(frozen=True, slots=True)
class Trace:
    """Inputs and raw outputs of a block's convolutions, and the sum before the last ReLU."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    projection: Tensor | None
    total: Tensor


def trace(block: Block, x: Tensor) -> Trace:
    """Run a block on x (N, C, H, W) and record the inputs and outputs of its convolutions."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    u = x
    for i in range(1, block.depth + 1):
        if block.preactivation:
            u = F.relu(block.bn(i)(u))
        elif i > 1:
            u = F.relu(block.bn(i - 1)(u))
        inputs.append(u)
        u = block.conv(i)(u)
        outputs.append(u)
    total = u if block.preactivation else block.bn(block.depth)(u)
    projection = None if block.projection is None else block.projection[0](inputs[0])
    if not block.plain:
        total = total + shortcut(block, x, inputs[0])
    return Trace(tuple(inputs), tuple(outputs), projection, total)


def shortcut(block: Block, x: Tensor, first: Tensor) -> Tensor:
    """Return the shortcut output for block input `x`; `first` is the input of the first convolution."""
    if block.downsample is None:
        return x
    result: Tensor = block.downsample(x if block.projection is None else first)
    return result


def batchnorm_after(block: Block, index: int) -> nn.BatchNorm2d | None:
    """Return the BatchNorm after convolution `index` (from 1); None at the end of a pre-activation unit."""
    if not block.preactivation:
        return block.bn(index)
    return block.bn(index + 1) if index < block.depth else None


class Reconstruction:
    """Refit every convolution of a pruned student in order, towards the dense network.

    The student's streams and blocks may be pruned already; channels inside its blocks are pruned during
    the pass, each group just before its consumer is refitted.

    Attributes:
        chosen: Inner group -> kept channels.
        errors: Convolution -> held-out error relative to its power.
    """

    def __init__(
        self,
        dense: ResNet,
        student: ResNet,
        *,
        kept: Mapping[str, Tensor],
        choice: Choice,
        importance: Importance,
        seed: int = 0,
    ) -> None:
        """Store the networks and the choice.

        Args:
            dense: The dense network, in evaluation mode.
            student: Output of `shrink`; refitted in place.
            kept: Stream place -> channels that the student kept.
            choice: Kept channels of inner groups, or their number; other groups keep all channels.
            importance: Channel importance for groups with a number.
            seed: Seed of the sampled positions.
        """
        self.dense, self.student = dense, student
        self.kept, self.choice, self.importance = kept, choice, importance
        self.chosen: dict[str, Tensor] = {}
        self.errors: dict[str, float] = {}
        self._seed = seed

    @torch.no_grad()
    def run(
        self, images: Iterable[Tensor], after_block: Callable[[int], None] | None = None, done: int = 0
    ) -> ResNet:
        """Refit all layers; return the student with its new widths.

        Args:
            images: Batches (N, C, H, W).
            after_block: Called with the number of refitted blocks.
            done: Number of blocks refitted by an earlier, interrupted pass.
        """
        dense_stream = stem_outputs(self.dense, images)
        before, after = self.dense.architecture, self.student.architecture
        changed = STEM in self.kept or after.steps != before.steps
        student_stream = stem_outputs(self.student, images) if changed else dense_stream
        step = after.stem_step / before.stem_step
        students = {name: block for name, _, _, block in self.student.blocks()}
        for number, (name, stage, _, block) in enumerate(track(list(self.dense.blocks()), "pruning"), 1):
            small = students.get(name)
            if number <= done:
                dense_stream = dense_stream.map(block)
                student_stream = student_stream if small is None else student_stream.map(small)
                continue
            grid = None if step == 1 else Grid(step, tuple(next(iter(student_stream)).shape[2:]))
            targets = Targets(
                block, self.kept.get(f"stream{stage + 1}"), position_generator(self._seed, number), grid
            )
            dense_stream = dense_stream.map(targets.sample)
            if small is not None:
                student_stream = self._block(name, small, targets, student_stream)
            if after_block is not None:
                after_block(number)
        self._refit_classifier(dense_stream, student_stream)
        return conform(self.student)

    def _block(
        self, name: str, small: Block, targets: Targets, student_stream: ActivationCache
    ) -> ActivationCache:
        """Refit one block; return its output."""
        first = (
            student_stream.map(lambda x: F.relu(small.bn(1)(x))) if small.preactivation else student_stream
        )
        if small.projection is not None:
            conv, bn = cast("nn.Conv2d", small.projection[0]), None
            if len(small.projection) > 1:
                bn = cast("nn.BatchNorm2d", small.projection[1])
            layer = LayerRefit(
                conv, bn, targets.projection, targets.shortcut_rows, targets.positions[-1], relu=False
            )
            self._refit(f"{name}.downsample.0", layer, first)
        inputs = first
        for i in range(1, small.depth + 1):
            group, source, last = f"{name}.conv{i}", f"{name}.conv{i - 1}", i == small.depth
            indices = None if last else self.choice.get(group)
            if isinstance(indices, Tensor):  # removed before the fit, to save time
                self.chosen[group] = indices
                prune_inner(small, i, indices)
                targets.take(i, indices)
            conv, bn = small.conv(i), batchnorm_after(small, i)
            relu = not (last and small.preactivation)
            layer = LayerRefit(
                conv, bn, targets.affines[i - 1], targets.targets[i - 1], targets.positions[i - 1], relu
            )
            if last and not small.plain:
                rows = zip(student_stream, first, targets.positions[-1], strict=True)
                layer.shortcut = [rows_at(shortcut(small, x, u), place) for x, u, place in rows]
            count = self.choice.get(source) if i > 1 else None
            if isinstance(count, int):
                inputs = self._prune_and_refit(layer, inputs, small, i, group=source, count=count)
            else:
                self._refit(group, layer, inputs)
            if not last:
                inputs = inputs.map(lambda u, conv=conv, bn=bn: F.relu(bn(conv(u))))  # type: ignore[misc]
        result = ActivationCache()
        for x, u, f in zip(student_stream, inputs, first, strict=True):
            total = small.conv(small.depth)(u)
            total = total if small.preactivation else small.bn(small.depth)(total)
            total = total if small.plain else total + shortcut(small, x, f)
            result.append(total if small.preactivation else F.relu(total))
        return result

    def _refit(self, name: str, layer: LayerRefit, inputs: ActivationCache) -> None:
        self.errors[name] = layer.solve(inputs, *layer.moments(inputs))

    def _prune_and_refit(
        self, layer: LayerRefit, inputs: ActivationCache, small: Block, index: int, *, group: str, count: int
    ) -> ActivationCache:
        """Rank the inputs of convolution `index`, keep the best and refit it; return its remaining inputs."""
        moments = layer.moments(inputs)
        reader = layer.reader(moments)
        weight_norm = small.conv(index - 1).weight.detach().double().flatten(1).square().sum(1)
        scale = cast("nn.BatchNorm2d", batchnorm_after(small, index - 1)).weight.detach().double().abs()
        ranking = self.importance(Evidence(weight_norm, scale, (reader,)))
        keep = ranking.order[len(ranking.order) - count :].sort().values
        columns = columns_of(keep, reader.taps)
        fit, check = (each.keep(columns) for each in moments)
        del reader, moments  # free the memory of all columns
        self.chosen[group] = keep
        prune_inner(small, index - 1, keep)
        narrowed = inputs.map(lambda u: u[:, keep])
        self.errors[f"{group[:-1]}{index}"] = layer.solve(narrowed, fit, check)
        return narrowed

    def _refit_classifier(self, dense_stream: ActivationCache, student_stream: ActivationCache) -> None:
        """Refit the last layer towards the dense network's logits."""
        fc = self.student.fc
        fit, check = split_moments(
            map(self.student.pool, student_stream), map(self.dense.forward_head, dense_stream)
        )
        prior, gain = fc.weight.detach().T.double(), torch.ones(fc.out_features, dtype=torch.float64)
        ridge, error = choose_ridge(fit, check, prior, gain, intercept=True)
        result = refit((fit + check).system(intercept=True), prior, gain, ridge, error)
        fc.weight.data = result.weight.T.float().contiguous()
        fc.bias.data = result.intercept.float()
        self.errors["fc"] = error


def stem_outputs(model: ResNet, images: Iterable[Tensor]) -> ActivationCache:
    """Return the input of the first block for every batch."""
    stream = ActivationCache()
    for batch in images:
        stream.append(model.forward_stem(batch))
    return stream


def position_generator(seed: int, number: int) -> torch.Generator:
    """Return the generator of the positions of block `number`; the same in a resumed pass."""
    return torch.Generator().manual_seed((seed << 16) + number)


class Targets:
    """Outputs of a dense block at the sampled positions of every batch."""

    def __init__(
        self, block: Block, out: Tensor | None, generator: torch.Generator, grid: Grid | None = None
    ) -> None:
        """Prepare to sample.

        Args:
            block: The dense block.
            out: Channels of its output that the student kept; None: all.
            generator: Generator of the positions.
            grid: Positions of the student's block input, if they are others.
        """
        self._block, self._generator = block, generator
        self._grids: list[Grid | None] = []
        for i in range(1, block.depth + 1):
            grid = None if grid is None else grid.strided(block.conv(i).stride[0])
            self._grids.append(grid)
        self._out = torch.arange(block.conv(block.depth).out_channels) if out is None else out
        self.positions: list[list[Positions]] = [[] for _ in range(block.depth)]
        self.targets: list[list[Tensor]] = [[] for _ in range(block.depth)]
        self.shortcut_rows: list[Tensor] = []
        self.affines = [
            Affine.of(batchnorm_after(block, i), block.conv(i).out_channels)
            for i in range(1, block.depth + 1)
        ]
        self.affines[-1] = self.affines[-1].take(self._out)
        bn = block.projection[1] if block.projection is not None and len(block.projection) > 1 else None
        self.projection = Affine.of(cast("nn.BatchNorm2d | None", bn), self.affines[-1].gain.numel())
        if bn is not None:
            self.projection = Affine.of(cast("nn.BatchNorm2d", bn), 0).take(self._out)

    def sample(self, x: Tensor) -> Tensor:
        """Sample one batch; return the output of the block."""
        traced = trace(self._block, x)
        total = resampled(traced.total, self._grids[-1])
        for i, raw in enumerate(traced.outputs):
            output = total if i == len(traced.outputs) - 1 else resampled(raw, self._grids[i])
            positions = sample_positions(output.shape[2], output.shape[3], POSITIONS, self._generator)
            self.positions[i].append(positions)
            if i < len(traced.outputs) - 1:
                self.targets[i].append(self.affines[i](rows_at(output, positions)))
            else:
                self.targets[i].append(rows_at(total, positions)[:, self._out])
        if traced.projection is not None:
            projected = rows_at(resampled(traced.projection, self._grids[-1]), self.positions[-1][-1])
            self.shortcut_rows.append(self.projection(projected[:, self._out]))
        return traced.total if self._block.preactivation else F.relu(traced.total)

    def take(self, index: int, indices: Tensor) -> None:
        """Keep some outputs of convolution `index` (from 1)."""
        self.affines[index - 1] = self.affines[index - 1].take(indices)
        self.targets[index - 1] = [rows[:, indices] for rows in self.targets[index - 1]]


def prune_inner(block: Block, index: int, indices: Tensor) -> None:
    """Remove channels between convolutions `index` and `index` + 1 of a block, in place."""
    take_outputs(block.conv(index), indices)
    take_bn(cast("nn.BatchNorm2d", batchnorm_after(block, index)), indices)
    take_inputs(block.conv(index + 1), indices)
