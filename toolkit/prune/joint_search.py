"""Joint choice of inner widths, stream widths, whole blocks and the resolution for a measured latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.statistics import kl_divergence
from edgeship.toolkit.models.resnet import Architecture, ResNet
from edgeship.toolkit.prune.apply import dropped, restrided, shrink
from edgeship.toolkit.prune.execute import inner_choice, recalibrated
from edgeship.toolkit.prune.groups import STEM, ChannelGroup, kept_places, stream_groups
from edgeship.toolkit.prune.importances import Importance, Ranking
from edgeship.toolkit.prune.knapsack import allocate
from edgeship.toolkit.prune.latency_model import LatencyModel, with_streams
from edgeship.toolkit.prune.probe_images import Batches, Images, logits
from edgeship.toolkit.prune.ranking import GroupSensitivity
from edgeship.toolkit.prune.reconstruction import Reconstruction
from edgeship.toolkit.prune.width_search import align, nearest_width, options

PARTS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)  # ratios of a group's width that are tried
LEAST_STREAM = 0.375  # least ratio of a stream: every block reads it
PROBE_IMAGES = 256  # of networks that are no result
COARSE = 0.05  # part of the latency that one step of channels may change

Strides: TypeAlias = "tuple[int, int] | None"  # `Architecture.stem_strides`


@dataclass(frozen=True, slots=True)
class Losses:
    """Estimated loss of each choice: KL divergence from the dense logits in nats.

    Attributes:
        inner: Inner group -> ranking and loss.
        streams: Stream group -> ranking and loss.
        drops: (stage, block) -> loss of dropping it.
        resolutions: Strides of the stem -> loss of the dense network with them, refitted.
    """

    inner: Mapping[str, GroupSensitivity]
    streams: Mapping[str, GroupSensitivity]
    drops: Mapping[tuple[int, int], float]
    resolutions: Mapping[Strides, float] = field(default_factory=lambda: {None: 0.0})


@dataclass(frozen=True, slots=True)
class Choice:
    """Widths of a network.

    Attributes:
        arch: The network with these widths.
        streams: Stream group -> number of kept channels.
        predicted_ms: Latency by the model.
        loss: Sum of the estimated losses.
    """

    arch: Architecture
    streams: Mapping[str, int]
    predicted_ms: float
    loss: float


class JointSearch:
    """Find the widths of least estimated loss within a latency, at one resolution."""

    def __init__(self, arch: Architecture, losses: Losses, model: LatencyModel, step: int) -> None:
        """Store the network, the losses and the latency model.

        Args:
            arch: The dense network, with the strides of the stem that set the resolution.
            losses: Estimated losses.
            model: Latency of any widths.
            step: Channel counts are multiples of it.
        """
        self._arch, self.losses, self._model, self._step = arch, losses, model, step
        self._groups = stream_groups(arch)
        self._widths = [
            sorted(
                {nearest_width(g.width, part, step) for part in PARTS if part >= LEAST_STREAM}, reverse=True
            )
            for g in self._groups
        ]

    def within(self, goal_ms: float, stream_weight: float = 1.0) -> Choice | None:
        """Return the best widths within a predicted latency; None if no widths meet it.

        Streams are chosen by coordinate descent from the widest, the narrowest and the middle widths; for
        given streams, a knapsack over the blocks is exact.

        Args:
            goal_ms: Largest predicted latency.
            stream_weight: Factor of the losses of streams, whose estimate is coarse.
        """
        known: dict[tuple[int, ...], Choice | None] = {}

        def at(place: tuple[int, ...]) -> Choice | None:
            if place not in known:
                kept = {g.name: w[i] for g, w, i in zip(self._groups, self._widths, place, strict=True)}
                known[place] = self.with_streams(kept, goal_ms, stream_weight)
            return known[place]

        last = [len(widths) - 1 for widths in self._widths]
        starts = {tuple(round(n * part) for n in last) for part in (0.0, 0.5, 1.0)}
        results = [best for start in starts if (best := self._descend(start, last, at)) is not None]
        return min(results, key=lambda choice: choice.loss, default=None)

    def least_ms(self) -> float:
        """Return the lowest latency that any widths have, by the model."""
        arch, step = self._arch, self._step
        inner = tuple(
            tuple(
                () if (s, b) in self.losses.drops else tuple(nearest_width(w, PARTS[-1], step) for w in block)
                for b, block in enumerate(blocks)
            )
            for s, blocks in enumerate(arch.widths.inner)
        )
        narrowest = {g.name: widths[-1] for g, widths in zip(self._groups, self._widths, strict=True)}
        return self._model.total_ms(with_streams(arch, narrowest, inner))

    def coarse_steps(self, choice: Choice, goal_ms: float) -> tuple[str, ...]:
        """Return warnings for the stages where one step of channels changes the latency by over 5 %."""
        arch, warnings = choice.arch, []
        for stage, blocks in enumerate(arch.widths.inner):
            present = [b for b, inner in enumerate(blocks) if inner]
            if not present:
                continue
            dense = self._arch.widths.inner[stage][present[0]][0]
            unit = align(dense, self._step)
            inner = [list(each) for each in blocks]
            for block in present:
                inner[block][0] = inner[block][0] + unit
            wider = replace(
                arch,
                widths=replace(
                    arch.widths,
                    inner=tuple(
                        tuple(map(tuple, inner)) if s == stage else each
                        for s, each in enumerate(arch.widths.inner)
                    ),
                ),
            )
            change = (self._model.total_ms(wider) - self._model.total_ms(arch)) / len(present)
            if change > COARSE * goal_ms:
                warnings.append(
                    f"layer{stage + 1}: one step of {unit} channels in one block changes the latency by "
                    f"{change / goal_ms:.0%} of the goal; steps are too coarse here for this device: set a "
                    f"smaller prune.channel_multiple than {self._step}"
                )
        return tuple(warnings)

    def _descend(
        self, start: tuple[int, ...], last: list[int], at: Callable[[tuple[int, ...]], Choice | None]
    ) -> Choice | None:
        """Change one stream, or all of them, by one step as long as the loss falls."""
        place, best = start, at(start)
        moves = [
            tuple(int(i == j) * sign for j in range(len(last))) for i in range(len(last)) for sign in (1, -1)
        ]
        moves += [(1,) * len(last), (-1,) * len(last)]
        improved = True
        while improved:
            improved = False
            for move in moves:
                there = tuple(min(max(p + m, 0), n) for p, m, n in zip(place, move, last, strict=True))
                choice = at(there)
                if choice is not None and (best is None or choice.loss < best.loss):
                    place, best, improved = there, choice, True
        return best

    def with_streams(
        self, kept: Mapping[str, int], goal_ms: float, stream_weight: float = 1.0
    ) -> Choice | None:
        """Return the best inner widths and dropped blocks for stream widths; None if the goal is not met.

        Args:
            kept: Stream group -> number of kept channels.
            goal_ms: Largest predicted latency.
            stream_weight: Factor of the losses of streams.
        """
        narrow = with_streams(self._arch, kept, self._arch.widths.inner)
        loss = self.losses.resolutions[self._arch.stem_strides] + stream_weight * sum(
            float(self.losses.streams[g.name].loss[g.width - kept[g.name]]) for g in self._groups
        )

        def cost(stage: int, block: int, inner: tuple[int, ...]) -> float:
            if not inner:
                return 0.0
            return self._model.block_ms(_with_block(narrow, stage, block, inner), stage, block)

        def allowed(width: int) -> tuple[int, ...]:
            return tuple(sorted({nearest_width(width, part, self._step) for part in PARTS}))

        blocks = options(narrow, self.losses.inner, self.losses.drops, cost, allowed)
        total = self._model.total_ms(narrow)
        fixed = total - sum(cost(s, b, narrow.widths.inner[s][b]) for (s, b), _ in blocks)
        selected = allocate([choices for _, choices in blocks], goal_ms - fixed)
        if selected is None:
            return None
        arch = narrow
        for ((stage, block), choices), number in zip(blocks, selected, strict=True):
            arch = _with_block(arch, stage, block, choices[number].inner)
            loss += choices[number].error
        return Choice(arch, kept, self._model.total_ms(arch), loss)


def stream_losses(
    arch: Architecture, rankings: Mapping[str, Ranking], inner: Mapping[str, GroupSensitivity]
) -> dict[str, GroupSensitivity]:
    """Estimate the loss of the stream groups: their ranking errors, in nats.

    The KL divergence for an error is taken from the inner groups of the blocks that read the stream, for
    which it was measured.

    Args:
        arch: The dense network.
        rankings: Stream group -> ranking.
        inner: Inner group -> ranking and loss.
    """
    result = {}
    for group in stream_groups(arch):
        places = {place for place, _ in group.places}
        readers = [
            inner[f"layer{stage + 1}.{block}.conv{i + 1}"]
            for stage, blocks in enumerate(arch.widths.inner)
            for block, widths in enumerate(blocks)
            for i in range(len(widths))
            if _source(stage, block) in places or (f"stream{stage + 1}" in places and block > 0)
        ]
        readers = readers or [
            s for name, s in inner.items() if name.startswith(f"layer{len(arch.widths.inner)}")
        ]
        halves = [(s.loss[len(s.loss) // 2], s.ranking.error[len(s.loss) // 2]) for s in readers]
        factor = sum(float(loss) / max(float(error), 1e-12) for loss, error in halves) / len(halves)
        ranking = rankings[group.name]
        result[group.name] = GroupSensitivity(ranking, ranking.error * factor)
    return result


def _source(stage: int, block: int) -> str:
    """Return the place that a block reads."""
    return STEM if stage == 0 and block == 0 else f"stream{stage + (block > 0)}"


def droppable(arch: Architecture) -> tuple[tuple[int, int], ...]:
    """Return (stage, block) of every block that may be dropped: all but the first of a stage."""
    return tuple(
        (stage, block)
        for stage, blocks in enumerate(arch.widths.inner)
        for block, inner in enumerate(blocks)
        if inner and block > 0 and arch.keeps_shape(stage, block)
    )


def drop_loss(dense: ResNet, probes: Images, place: tuple[int, int]) -> float:
    """Return the KL divergence in nats of dropping one block, with new BatchNorm statistics."""
    without = recalibrated(shrink(dense, {}, {place}), few_of(probes))
    return max(kl_divergence(probes.reference, logits(without, probes.check)), 0.0)


def resolution_loss(
    dense: ResNet, probes: Images, strides: Strides, importance: Importance, seed: int
) -> float:
    """Return the KL divergence in nats of other strides of the stem, refitted on a few of the images."""
    coarse = replace(dense.architecture, stem_strides=strides)
    other = refitted(dense, {}, coarse, {}, probes, importance, seed)
    return max(kl_divergence(probes.reference, logits(other, probes.check)), 0.0)


def few_of(probes: Images) -> Images:
    """Return a few of the images, not mirrored."""
    images = probes.fit.images[:PROBE_IMAGES]
    size = max(2, min(32, len(images) // 10))  # BatchNorm statistics are not those of one image
    whole = images[: max(len(images) // size * size, 1)]
    return replace(probes, fit=Batches(whole, size, mirror=len(whole) < size))


@torch.no_grad()
def refitted(
    dense: ResNet,
    kept: Mapping[str, torch.Tensor],
    arch: Architecture,
    inner: Mapping[str, GroupSensitivity],
    probes: Images,
    importance: Importance,
    seed: int,
) -> ResNet:
    """Return a network with other widths, refitted on a few of the images.

    Args:
        dense: The dense network.
        kept: Stream place -> kept channels.
        arch: Widths inside the blocks, and dropped blocks.
        inner: Rankings of the inner groups; unused where the widths are unchanged.
        probes: The images.
        importance: Channel importance.
        seed: Seed of the sampled positions.
    """
    student = shrink(dense, kept, dropped(dense.architecture, arch))
    student = restrided(student, arch.stem_strides)
    choice = inner_choice(dense, arch, inner)
    repair = Reconstruction(dense, student, kept=kept, choice=choice, importance=importance, seed=seed)
    return repair.run(few_of(probes).fit).eval()


def kept_streams(
    arch: Architecture,
    groups: tuple[ChannelGroup, ...],
    rankings: Mapping[str, Ranking],
    counts: Mapping[str, int],
) -> dict[str, torch.Tensor]:
    """Return place -> kept channels of the streams that are narrower, for a number of channels per group."""
    keep = {g.name: rankings[g.name].order[g.width - counts.get(g.name, g.width) :] for g in groups}
    places = kept_places(arch, groups, keep)
    widths = {"stem": arch.widths.stem} | {f"stream{i}": w for i, w in enumerate(arch.widths.streams, 1)}
    return {place: places[place] for place, width in widths.items() if len(places[place]) < width}


def unreachable(part: float, dense_ms: float, least_ms: float) -> ModelError:
    """Return the error of a latency goal that no widths meet."""
    return ModelError(
        f"prune: {part:.2f} of {dense_ms:.3f} ms cannot be met; about {least_ms / dense_ms:.2f} can",
        hint="raise prune.latency_ratio, or set a smaller prune.channel_multiple",
    )


def _with_block(arch: Architecture, stage: int, block: int, inner: tuple[int, ...]) -> Architecture:
    blocks = list(arch.widths.inner[stage])
    blocks[block] = inner
    changed = (*arch.widths.inner[:stage], tuple(blocks), *arch.widths.inner[stage + 1 :])
    return replace(arch, widths=replace(arch.widths, inner=changed))
