"""The pass that repairs: dense and pruned network side by side, one block after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeship.toolkit.core.progress import track
from edgeship.toolkit.models.resnet import Block, ResNet
from edgeship.toolkit.prune.activation_cache import Stash
from edgeship.toolkit.prune.apply import conform, take_bn, take_inputs, take_outputs
from edgeship.toolkit.prune.groups import STEM
from edgeship.toolkit.prune.importances import Evidence, Importance
from edgeship.toolkit.prune.layer_refit import Affine, Site, split_moments
from edgeship.toolkit.prune.least_squares import choose_ridge, columns_of, refit
from edgeship.toolkit.prune.second_moments import Sites, at, choose_sites

POSITIONS = 16  # sampled of each map; all where it is smaller

# what an inner group keeps: these channels, or as many as the importance finds best
Choice: TypeAlias = "Mapping[str, Tensor | int]"


@dataclass(frozen=True, slots=True)
class Trace:
    """What a block gives: raw outputs of its convolutions, and the sum before the last ReLU."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    projection: Tensor | None
    total: Tensor


def trace(block: Block, x: Tensor) -> Trace:
    """Run a block on x (N, C, H, W) and keep what its convolutions see and give."""
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
    """What is added to the last convolution; `first` is what the first convolution sees."""
    if block.downsample is None:
        return x
    result: Tensor = block.downsample(x if block.projection is None else first)
    return result


def following(block: Block, index: int) -> nn.BatchNorm2d | None:
    """The BatchNorm after convolution `index`, from 1; None after the last of a pre-activation unit."""
    if not block.preactivation:
        return block.bn(index)
    return block.bn(index + 1) if index < block.depth else None


class Repair:
    """Walks a student and its dense teacher, refitting every convolution of the student in order.

    The student's stream and blocks may be pruned already; the channels inside its blocks are pruned
    on the way, each group just before the convolution that reads it is refitted.

    Attributes:
        chosen: Inner group -> the channels that were kept.
        errors: Convolution -> held-out error as part of its power.
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
        """Start.

        Args:
            dense: The teacher, in evaluation mode.
            student: What `shrink` left of it, repaired in place.
            kept: Stream place -> what the student kept of it.
            choice: What inner groups keep; a group that is not named keeps everything.
            importance: Ranks where only a number is given.
            seed: Of the sampled positions.
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
        """Repair everything; returns the student with its new widths.

        Args:
            images: Batches (N, C, H, W).
            after_block: Called with the number of blocks repaired so far.
            done: Blocks that an earlier, interrupted pass repaired already.
        """
        teacher = entered(self.dense, images)
        pupil = entered(self.student, images) if STEM in self.kept else teacher  # else they begin alike
        students = {name: block for name, _, _, block in self.student.blocks()}
        for number, (name, stage, _, block) in enumerate(track(list(self.dense.blocks()), "pruning"), 1):
            small = students.get(name)
            if number <= done:
                teacher = teacher.map(block)
                pupil = pupil if small is None else pupil.map(small)
                continue
            targets = Targets(block, self.kept.get(f"stream{stage + 1}"), sampling(self._seed, number))
            teacher = teacher.map(targets.see)
            if small is not None:
                pupil = self._block(name, small, targets, pupil)
            if after_block is not None:
                after_block(number)
        self._head(teacher, pupil)
        return conform(self.student)

    def _block(self, name: str, small: Block, targets: Targets, pupil: Stash) -> Stash:
        """Repair one block; returns what it hands on."""
        first = pupil.map(lambda x: F.relu(small.bn(1)(x))) if small.preactivation else pupil
        if small.projection is not None:
            conv, bn = cast("nn.Conv2d", small.projection[0]), None
            if len(small.projection) > 1:
                bn = cast("nn.BatchNorm2d", small.projection[1])
            site = Site(conv, bn, targets.projection, targets.projected, targets.places[-1], relu=False)
            self._fit(f"{name}.downsample.0", site, first)
        inputs = first
        for i in range(1, small.depth + 1):
            group, source, last = f"{name}.conv{i}", f"{name}.conv{i - 1}", i == small.depth
            known = None if last else self.choice.get(group)
            if isinstance(known, Tensor):  # what leaves need not be fitted
                self.chosen[group] = known
                narrow(small, i, known)
                targets.take(i, known)
            conv, bn = small.conv(i), following(small, i)
            relu = not (last and small.preactivation)
            site = Site(conv, bn, targets.affines[i - 1], targets.wanted[i - 1], targets.places[i - 1], relu)
            if last and not small.plain:
                rows = zip(pupil, first, targets.places[-1], strict=True)
                site.added = [at(shortcut(small, x, u), place) for x, u, place in rows]
            count = self.choice.get(source) if i > 1 else None
            if isinstance(count, int):
                inputs = self._select(site, inputs, small, i, group=source, count=count)
            else:
                self._fit(group, site, inputs)
            if not last:
                inputs = inputs.map(lambda u, conv=conv, bn=bn: F.relu(bn(conv(u))))  # type: ignore[misc]
        result = Stash()
        for x, u, f in zip(pupil, inputs, first, strict=True):
            total = small.conv(small.depth)(u)
            total = total if small.preactivation else small.bn(small.depth)(total)
            total = total if small.plain else total + shortcut(small, x, f)
            result.append(total if small.preactivation else F.relu(total))
        return result

    def _fit(self, name: str, site: Site, inputs: Stash) -> None:
        self.errors[name] = site.solve(inputs, *site.moments(inputs))

    def _select(
        self, site: Site, inputs: Stash, small: Block, index: int, *, group: str, count: int
    ) -> Stash:
        """Rank what convolution `index` reads, keep the best and refit; returns its inputs, fewer now."""
        moments = site.moments(inputs)
        reader = site.reader(moments)
        made = small.conv(index - 1).weight.detach().double().flatten(1).square().sum(1)
        scale = cast("nn.BatchNorm2d", following(small, index - 1)).weight.detach().double().abs()
        ranking = self.importance(Evidence(made, scale, (reader,)))
        kept = ranking.order[len(ranking.order) - count :].sort().values
        columns = columns_of(kept, reader.taps)
        fit, check = (each.keep(columns) for each in moments)
        del reader, moments  # of all columns: large
        self.chosen[group] = kept
        narrow(small, index - 1, kept)
        fewer = inputs.map(lambda u: u[:, kept])
        self.errors[f"{group[:-1]}{index}"] = site.solve(fewer, fit, check)
        return fewer

    def _head(self, teacher: Stash, pupil: Stash) -> None:
        """Refit the last layer towards the teacher's logits."""
        fc = self.student.fc
        fit, check = split_moments(map(self.student.pool, pupil), map(self.dense.leave, teacher))
        prior, gain = fc.weight.detach().T.double(), torch.ones(fc.out_features, dtype=torch.float64)
        ridge, error = choose_ridge(fit, check, prior, gain, intercept=True)
        found = refit((fit + check).system(intercept=True), prior, gain, ridge, error)
        fc.weight.data = found.weight.T.float().contiguous()
        fc.bias.data = found.intercept.float()
        self.errors["fc"] = error


def entered(model: ResNet, images: Iterable[Tensor]) -> Stash:
    """What the first block sees of every batch."""
    stream = Stash()
    for batch in images:
        stream.append(model.enter(batch))
    return stream


def sampling(seed: int, number: int) -> torch.Generator:
    """What chooses the positions of block `number`: the same wherever a pass begins."""
    return torch.Generator().manual_seed((seed << 16) + number)


class Targets:
    """What the teacher's block gives at the sampled positions of every batch."""

    def __init__(self, block: Block, out: Tensor | None, generator: torch.Generator) -> None:
        self._block, self._generator = block, generator
        self._out = torch.arange(block.conv(block.depth).out_channels) if out is None else out
        self.places: list[list[Sites]] = [[] for _ in range(block.depth)]
        self.wanted: list[list[Tensor]] = [[] for _ in range(block.depth)]
        self.projected: list[Tensor] = []
        self.affines = [
            Affine.of(following(block, i), block.conv(i).out_channels) for i in range(1, block.depth + 1)
        ]
        self.affines[-1] = self.affines[-1].take(self._out)
        bn = block.projection[1] if block.projection is not None and len(block.projection) > 1 else None
        self.projection = Affine.of(cast("nn.BatchNorm2d | None", bn), self.affines[-1].gain.numel())
        if bn is not None:
            self.projection = Affine.of(cast("nn.BatchNorm2d", bn), 0).take(self._out)

    def see(self, x: Tensor) -> Tensor:
        """Sample one batch; returns what the block hands on."""
        seen = trace(self._block, x)
        for i, output in enumerate(seen.outputs):
            place = choose_sites(output.shape[2], output.shape[3], POSITIONS, self._generator)
            self.places[i].append(place)
            if i < len(seen.outputs) - 1:
                self.wanted[i].append(self.affines[i](at(output, place)))
            else:
                self.wanted[i].append(at(seen.total, place)[:, self._out])
        if seen.projection is not None:
            self.projected.append(self.projection(at(seen.projection, self.places[-1][-1])[:, self._out]))
        return seen.total if self._block.preactivation else F.relu(seen.total)

    def take(self, index: int, kept: Tensor) -> None:
        """Keep some outputs of convolution `index`, from 1."""
        self.affines[index - 1] = self.affines[index - 1].take(kept)
        self.wanted[index - 1] = [rows[:, kept] for rows in self.wanted[index - 1]]


def narrow(block: Block, index: int, kept: Tensor) -> None:
    """Take channels between convolutions `index` and `index` + 1 out of a block."""
    take_outputs(block.conv(index), kept)
    take_bn(cast("nn.BatchNorm2d", following(block, index)), kept)
    take_inputs(block.conv(index + 1), kept)
