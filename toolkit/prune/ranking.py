"""Ranking of channels and their accuracy cost, in one pass over the dense network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.statistics import kl_divergence
from edgeship.toolkit.models.resnet import Block, ResNet
from edgeship.toolkit.prune.activation_cache import ActivationCache
from edgeship.toolkit.prune.checkpoints import Checkpoint
from edgeship.toolkit.prune.groups import STEM, stream_groups
from edgeship.toolkit.prune.importances import Evidence, Importance, Ranking, Reader
from edgeship.toolkit.prune.layer_refit import Affine, LayerRefit, split_moments
from edgeship.toolkit.prune.least_squares import Refit, columns_of, solve, store
from edgeship.toolkit.prune.reconstruction import (
    Targets,
    batchnorm_after,
    position_generator,
    prune_inner,
    shortcut,
    stem_outputs,
    trace,
)
from edgeship.toolkit.prune.second_moments import rows_at

PROBES = (0.25, 0.5, 0.75)  # width ratios of a group at which the network is run
PROBE_IMAGES = 192
PROBE_RIDGE = 1e-2


@dataclass(frozen=True, slots=True)
class GroupSensitivity:
    """Ranking and loss of one channel group.

    Attributes:
        ranking: The order in which its channels are removed.
        loss: KL divergence in nats without the first i channels (C + 1 values).
    """

    ranking: Ranking
    loss: Tensor

    def keep(self, count: int) -> Tensor:
        """Return the best `count` channels, sorted; smaller counts keep subsets of larger ones."""
        return self.ranking.order[len(self.ranking.order) - count :].sort().values


@torch.no_grad()
def rank_inner_groups(
    model: ResNet,
    images: Iterable[Tensor],
    importance: Importance,
    *,
    probe: bool,
    state: Checkpoint,
    seed: int = 0,
    after_block: Callable[[int, int], None] | None = None,
) -> dict[str, GroupSensitivity]:
    """Rank every group inside the blocks, from the activations of the dense network.

    Args:
        model: The dense network, in evaluation mode.
        images: Batches (N, C, H, W).
        importance: Channel importance.
        probe: Whether to run the network at a few widths of each group for `GroupSensitivity.loss`;
            if not, the loss is the error of the layer.
        state: Checkpoint, saved after every block; an interrupted pass resumes from it.
        seed: Seed of the sampled positions.
        after_block: Called with the number of ranked blocks and of all, after each is saved.
    """
    stream = stem_outputs(model, images)
    blocks = list(model.blocks())
    saved = state.load() or {}
    sensitivities = {
        group: GroupSensitivity(Ranking(*ranks), loss) for group, (*ranks, loss) in saved.items()
    }
    for number, (name, _, _, block) in enumerate(track(blocks, "surveying")):
        if f"{name}.conv1" in sensitivities:
            stream = stream.map(block)
            continue
        targets = Targets(block, None, position_generator(seed, number))
        next_stream = stream.map(targets.sample)
        probed = (
            _Probe(model, [later for *_, later in blocks[number + 1 :]], block, stream) if probe else None
        )
        for i in range(2, block.depth + 1):
            inputs = stream.map(lambda x, block=block, i=i: trace(block, x).inputs[i - 1])  # type: ignore[misc]
            reader = _reader(block, i, targets, stream, inputs)
            weight_norm = block.conv(i - 1).weight.double().flatten(1).square().sum(1)
            scale = cast("nn.BatchNorm2d", batchnorm_after(block, i - 1)).weight.double().abs()
            ranking = importance(Evidence(weight_norm, scale, (reader,)))
            loss = ranking.error if probed is None else probed.losses(i, reader, ranking)
            sensitivities[f"{name}.conv{i - 1}"] = GroupSensitivity(ranking, loss)
        state.save({group: (s.ranking.order, s.ranking.error, s.loss) for group, s in sensitivities.items()})
        if after_block is not None:
            after_block(number + 1, len(blocks))
        stream = next_stream
    return sensitivities


@torch.no_grad()
def rank_streams(
    model: ResNet, images: Iterable[Tensor], importance: Importance, *, seed: int = 0
) -> dict[str, Ranking]:
    """Rank the channels of the residual streams by the errors of all their readers.

    Args:
        model: The dense network, in evaluation mode.
        images: Batches (N, C, H, W).
        importance: Channel importance.
        seed: Seed of the sampled positions.
    """
    stream = stem_outputs(model, images)
    readers: list[tuple[str, Reader]] = []  # input place, reader
    weight_norm: dict[str, Tensor] = {STEM: model.conv1.weight.double().flatten(1).square().sum(1)}
    scale: dict[str, Tensor] = {}
    if not model.architecture.preactivation:
        scale[STEM] = model.bn1.weight.double().abs()
    blocks = list(model.blocks())
    for number, (_, stage, index, block) in enumerate(track(blocks, "surveying streams")):
        before = STEM if stage == 0 and index == 0 else f"stream{stage + (index > 0)}"
        after = f"stream{stage + 1}"
        targets = Targets(block, None, position_generator(seed, number))
        next_stream = stream.map(targets.sample)
        inputs = stream.map(lambda x, block=block: trace(block, x).inputs[0])  # type: ignore[misc]
        readers.append((before, _reader(block, 1, targets, stream, inputs)))
        if block.projection is not None:
            conv = cast("nn.Conv2d", block.projection[0])
            bn = cast("nn.BatchNorm2d", block.projection[1]) if len(block.projection) > 1 else None
            layer = LayerRefit(
                conv, bn, targets.projection, targets.shortcut_rows, targets.positions[-1], relu=False
            )
            readers.append((before, layer.reader(layer.moments(inputs))))
        last = block.conv(block.depth)
        weight_norm[after] = weight_norm.get(after, 0) + last.weight.double().flatten(1).square().sum(1)
        bn_last = batchnorm_after(block, block.depth)
        if bn_last is not None:
            scale[after] = scale.get(after, 0) + bn_last.weight.double().abs()
        stream = next_stream
    readers.append((f"stream{len(model.architecture.widths.streams)}", _head_reader(model, stream)))
    rankings = {}
    for group in stream_groups(model.architecture):
        norm, gain = (
            torch.zeros(group.width, dtype=torch.float64),
            torch.zeros(group.width, dtype=torch.float64),
        )
        group_readers = []
        for place in dict.fromkeys(place for place, _ in group.places):
            members = torch.tensor([indices for read_place, indices in group.places if read_place == place])
            norm += weight_norm[place][members].sum(0)
            gain += scale.get(place, weight_norm[place].sqrt())[members].sum(0)
            group_readers += [
                _group_first(reader, members) for read_place, reader in readers if read_place == place
            ]
        rankings[group.name] = importance(Evidence(norm, gain, tuple(group_readers)))
    return rankings


def _reader(
    block: Block, index: int, targets: Targets, stream: ActivationCache, inputs: ActivationCache
) -> Reader:
    """Return convolution `index` of a dense block as a reader of its input."""
    i = index - 1
    layer = LayerRefit(
        block.conv(index),
        batchnorm_after(block, index),
        targets.affines[i],
        targets.targets[i],
        targets.positions[i],
        False,
    )
    if index == block.depth and not block.plain:
        pairs = zip(stream, targets.positions[i], strict=True)
        layer.shortcut = [rows_at(shortcut(block, x, trace(block, x).inputs[0]), place) for x, place in pairs]
    return layer.reader(layer.moments(inputs))


def _head_reader(model: ResNet, stream: ActivationCache) -> Reader:
    """Return the last layer as a reader of the last stream."""
    fit, check = split_moments(map(model.pool, stream), map(model.forward_head, stream))
    ones = torch.ones(model.fc.out_features, dtype=torch.float64)
    return Reader((fit + check).system(intercept=True), model.fc.weight.T.double(), ones, 1)


def _group_first(reader: Reader, members: Tensor) -> Reader:
    """Reorder a reader's columns, a group's first: for channel c of the group, inputs members[:, c]."""
    channels = members.T.flatten()
    fixed = torch.ones(len(reader.weight) // reader.taps, dtype=torch.bool)
    fixed[channels] = False
    columns = columns_of(torch.cat([channels, fixed.nonzero().flatten()]), reader.taps)
    return Reader(
        reader.system.take(columns), reader.weight[columns], reader.gain, reader.taps * len(members)
    )


class _Probe:
    """Run the network with one narrowed group, to relate its layer error to the KL divergence."""

    def __init__(self, model: ResNet, rest: list[Block], block: Block, stream: ActivationCache) -> None:
        self._model, self._rest, self._block = model, rest, block
        batches = list(stream.first(PROBE_IMAGES))
        self._start = torch.cat(batches)[:PROBE_IMAGES]
        self._reference = self._run(block)

    def losses(self, index: int, reader: Reader, ranking: Ranking) -> Tensor:
        """Return the KL divergence for every number of removed input channels of convolution `index`.

        Between the probed widths and outside them it is proportional to the error of the layer.
        """
        width = len(ranking.order)
        counts = sorted({max(1, round(width * part)) for part in PROBES})
        removed, factors = [], []
        for count in counts:
            keep = ranking.order[width - count :].sort().values
            block = copy.deepcopy(self._block)
            prune_inner(block, index - 1, keep)
            conv, bn = block.conv(index), batchnorm_after(block, index)
            columns = columns_of(keep, reader.taps)
            system = reader.system
            weight = solve(system.take(columns), reader.weight[columns], PROBE_RIDGE)
            intercept = system.mean_t - system.mean_x[columns] @ weight
            affine = Affine.of(bn, conv.out_channels)
            store(conv, bn, Refit(weight, intercept, PROBE_RIDGE, 0.0), affine.mean)
            error = float(ranking.error[width - count])
            kl = kl_divergence(self._reference, self._run(block))
            removed.append(width - count)
            factors.append(max(kl, 0.0) / max(error, 1e-12))
        factor = np.interp(np.arange(width + 1), removed[::-1], factors[::-1])
        return ranking.error * torch.from_numpy(factor)

    def _run(self, block: Block) -> FloatArray:
        x = block(self._start)
        for later in self._rest:
            x = later(x)
        logits: FloatArray = self._model.forward_head(x).numpy()
        return logits
