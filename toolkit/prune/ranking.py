"""One pass over the dense network: in which order channels may go, and what that costs in accuracy."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.statistics import kl_divergence
from edgeship.toolkit.models.resnet import Block, ResNet
from edgeship.toolkit.prune.activation_cache import Stash
from edgeship.toolkit.prune.checkpoints import State
from edgeship.toolkit.prune.groups import STEM, stream_groups
from edgeship.toolkit.prune.importances import Evidence, Importance, Ranking, Reader
from edgeship.toolkit.prune.layer_refit import Affine, Site, split_moments
from edgeship.toolkit.prune.least_squares import Refit, columns_of, solve, store
from edgeship.toolkit.prune.reconstruction import (
    Targets,
    entered,
    following,
    narrow,
    sampling,
    shortcut,
    trace,
)
from edgeship.toolkit.prune.second_moments import at

PROBES = (0.25, 0.5, 0.75)  # parts of a group at which the network is really run
PROBE_IMAGES = 192
PROBE_RIDGE = 1e-2


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What the pass found out about one group.

    Attributes:
        ranking: The order in which its channels go.
        loss: KL divergence in nats if only the first i channels are gone (C + 1 values).
    """

    ranking: Ranking
    loss: Tensor

    def keep(self, count: int) -> Tensor:
        """The best `count` channels, sorted; a smaller count keeps a subset of a larger one's."""
        return self.ranking.order[len(self.ranking.order) - count :].sort().values


@torch.no_grad()
def survey_inner(
    model: ResNet,
    images: Iterable[Tensor],
    importance: Importance,
    *,
    probe: bool,
    state: State,
    seed: int = 0,
) -> dict[str, Surveyed]:
    """Rank every group inside the blocks, from the dense network's own activations.

    Args:
        model: The dense network, in evaluation mode.
        images: Batches (N, C, H, W).
        importance: Ranks.
        probe: Whether to run the network at a few widths of each group, for `Surveyed.loss`; without,
            the loss is the error of the layer.
        state: What is known after every block; an interrupted survey goes on from there.
        seed: Of the sampled positions.
    """
    stream = entered(model, images)
    blocks = list(model.blocks())
    known = state.load() or {}
    found = {group: Surveyed(Ranking(*ranks), loss) for group, (*ranks, loss) in known.items()}
    for number, (name, _, _, block) in enumerate(track(blocks, "surveying")):
        if f"{name}.conv1" in found:
            stream = stream.map(block)
            continue
        targets = Targets(block, None, sampling(seed, number))
        onward = stream.map(targets.see)
        probed = (
            _Probe(model, [later for *_, later in blocks[number + 1 :]], block, stream) if probe else None
        )
        for i in range(2, block.depth + 1):
            inputs = stream.map(lambda x, block=block, i=i: trace(block, x).inputs[i - 1])  # type: ignore[misc]
            reader = _reader(block, i, targets, stream, inputs)
            made = block.conv(i - 1).weight.double().flatten(1).square().sum(1)
            scale = cast("nn.BatchNorm2d", following(block, i - 1)).weight.double().abs()
            ranking = importance(Evidence(made, scale, (reader,)))
            loss = ranking.error if probed is None else probed.losses(i, reader, ranking)
            found[f"{name}.conv{i - 1}"] = Surveyed(ranking, loss)
        state.save({group: (s.ranking.order, s.ranking.error, s.loss) for group, s in found.items()})
        stream = onward
    return found


@torch.no_grad()
def survey_streams(
    model: ResNet, images: Iterable[Tensor], importance: Importance, *, seed: int = 0
) -> dict[str, Ranking]:
    """Rank the channels of the residual streams by what all their readers lose.

    Args:
        model: The dense network, in evaluation mode.
        images: Batches (N, C, H, W).
        importance: Ranks.
        seed: Of the sampled positions.
    """
    stream = entered(model, images)
    readers: list[tuple[str, Reader]] = []  # place that is read, reader
    made: dict[str, Tensor] = {STEM: model.conv1.weight.double().flatten(1).square().sum(1)}
    scale: dict[str, Tensor] = {}
    if not model.architecture.preactivation:
        scale[STEM] = model.bn1.weight.double().abs()
    blocks = list(model.blocks())
    for number, (_, stage, index, block) in enumerate(track(blocks, "surveying streams")):
        before = STEM if stage == 0 and index == 0 else f"stream{stage + (index > 0)}"
        after = f"stream{stage + 1}"
        targets = Targets(block, None, sampling(seed, number))
        onward = stream.map(targets.see)
        inputs = stream.map(lambda x, block=block: trace(block, x).inputs[0])  # type: ignore[misc]
        readers.append((before, _reader(block, 1, targets, stream, inputs)))
        if block.projection is not None:
            conv = cast("nn.Conv2d", block.projection[0])
            bn = cast("nn.BatchNorm2d", block.projection[1]) if len(block.projection) > 1 else None
            site = Site(conv, bn, targets.projection, targets.projected, targets.places[-1], relu=False)
            readers.append((before, site.reader(site.moments(inputs))))
        last = block.conv(block.depth)
        made[after] = made.get(after, 0) + last.weight.double().flatten(1).square().sum(1)
        bn_last = following(block, block.depth)
        if bn_last is not None:
            scale[after] = scale.get(after, 0) + bn_last.weight.double().abs()
        stream = onward
    readers.append((f"stream{len(model.architecture.widths.streams)}", _head_reader(model, stream)))
    rankings = {}
    for group in stream_groups(model.architecture):
        norm, gain = (
            torch.zeros(group.width, dtype=torch.float64),
            torch.zeros(group.width, dtype=torch.float64),
        )
        mine = []
        for place in dict.fromkeys(place for place, _ in group.places):
            members = torch.tensor([indices for where, indices in group.places if where == place])
            norm += made[place][members].sum(0)
            gain += scale.get(place, made[place].sqrt())[members].sum(0)
            mine += [_ordered(reader, members) for where, reader in readers if where == place]
        rankings[group.name] = importance(Evidence(norm, gain, tuple(mine)))
    return rankings


def _reader(block: Block, index: int, targets: Targets, stream: Stash, inputs: Stash) -> Reader:
    """Convolution `index` of a dense block as a reader of its input."""
    i = index - 1
    site = Site(
        block.conv(index),
        following(block, index),
        targets.affines[i],
        targets.wanted[i],
        targets.places[i],
        False,
    )
    if index == block.depth and not block.plain:
        pairs = zip(stream, targets.places[i], strict=True)
        site.added = [at(shortcut(block, x, trace(block, x).inputs[0]), place) for x, place in pairs]
    return site.reader(site.moments(inputs))


def _head_reader(model: ResNet, stream: Stash) -> Reader:
    """The last layer as a reader of the last stream."""
    fit, check = split_moments(map(model.pool, stream), map(model.leave, stream))
    ones = torch.ones(model.fc.out_features, dtype=torch.float64)
    return Reader((fit + check).system(intercept=True), model.fc.weight.T.double(), ones, 1)


def _ordered(reader: Reader, members: Tensor) -> Reader:
    """The reader with a group's columns first: for channel c of the group, members[:, c] of its inputs."""
    channels = members.T.flatten()
    stays = torch.ones(len(reader.weight) // reader.taps, dtype=torch.bool)
    stays[channels] = False
    columns = columns_of(torch.cat([channels, stays.nonzero().flatten()]), reader.taps)
    return Reader(
        reader.system.take(columns), reader.weight[columns], reader.gain, reader.taps * len(members)
    )


class _Probe:
    """Runs the network with one group narrowed, to see what its error means for the logits."""

    def __init__(self, model: ResNet, rest: list[Block], block: Block, stream: Stash) -> None:
        self._model, self._rest, self._block = model, rest, block
        batches = list(stream.first(PROBE_IMAGES))
        self._start = torch.cat(batches)[:PROBE_IMAGES]
        self._reference = self._run(block)

    def losses(self, index: int, reader: Reader, ranking: Ranking) -> Tensor:
        """KL divergence for every number of channels that convolution `index` no longer sees.

        Between the probed widths, and beyond, it follows the error of the layer.
        """
        width = len(ranking.order)
        counts = sorted({max(1, round(width * part)) for part in PROBES})
        gone, factors = [], []
        for count in counts:
            kept = ranking.order[width - count :].sort().values
            block = copy.deepcopy(self._block)
            narrow(block, index - 1, kept)
            conv, bn = block.conv(index), following(block, index)
            columns = columns_of(kept, reader.taps)
            system = reader.system
            weight = solve(system.take(columns), reader.weight[columns], PROBE_RIDGE)
            intercept = system.mean_t - system.mean_x[columns] @ weight
            affine = Affine.of(bn, conv.out_channels)
            store(conv, bn, Refit(weight, intercept, PROBE_RIDGE, 0.0), affine.mean)
            error = float(ranking.error[width - count])
            kl = kl_divergence(self._reference, self._run(block))
            gone.append(width - count)
            factors.append(max(kl, 0.0) / max(error, 1e-12))
        at_each = np.interp(np.arange(width + 1), gone[::-1], factors[::-1])
        return ranking.error * torch.from_numpy(at_each)

    def _run(self, block: Block) -> FloatArray:
        x = block(self._start)
        for later in self._rest:
            x = later(x)
        logits: FloatArray = self._model.leave(x).numpy()
        return logits
