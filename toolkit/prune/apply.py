"""Removal of channels and blocks from a network; the result is a ResNet with smaller widths."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from edgeship.toolkit.models.resnet import Architecture, Block, ResNet, Widths, resize
from edgeship.toolkit.prune.groups import STEM


def shrink(model: ResNet, kept: Mapping[str, Tensor], without: Collection[tuple[int, int]] = ()) -> ResNet:
    """Return a copy of the network with only the kept channels and blocks; weights are not adapted.

    Args:
        model: The network; not changed.
        kept: Place -> sorted channel indices; a place that is not named keeps all its channels.
        without: (stage, block) of blocks to leave out; their shortcut must be the identity.

    Raises:
        ModelError: The remaining widths do not fit together, or a block cannot be dropped.
    """
    small = copy.deepcopy(model)
    arch = model.architecture
    if STEM in kept:
        take_outputs(small.conv1, kept[STEM])
        if not arch.preactivation:
            take_bn(small.bn1, kept[STEM])
    for name, stage, index, block in list(small.blocks()):
        if (stage, index) in without:
            cast("nn.Sequential", getattr(small, f"layer{stage + 1}"))[index] = nn.Identity()
            continue
        before = STEM if stage == 0 and index == 0 else f"stream{stage + (index > 0)}"
        shrink_block(block, name, kept, before, f"stream{stage + 1}")
    last = f"stream{len(arch.widths.streams)}"
    if last in kept:
        if arch.preactivation:
            take_bn(small.bn, kept[last])
        small.fc.weight.data = small.fc.weight.data[:, kept[last]].clone()
        small.fc.in_features = len(kept[last])
    return conform(small)


def restrided(model: ResNet, strides: tuple[int, int] | None) -> ResNet:
    """Return a copy of the network with other strides of the stem, and the same weights."""
    changed = ResNet(replace(model.architecture, stem_strides=strides))
    changed.load_state_dict(model.state_dict())
    return changed.train(model.training)


def dropped(before: Architecture, after: Architecture) -> set[tuple[int, int]]:
    """Return (stage, block) of the blocks that only the first architecture has."""
    return {
        (stage, block)
        for stage, blocks in enumerate(after.widths.inner)
        for block, inner in enumerate(blocks)
        if not inner and before.widths.inner[stage][block]
    }


def shrink_block(block: Block, name: str, kept: Mapping[str, Tensor], before: str, after: str) -> None:
    """Remove channels from one block, in place."""
    for i in range(1, block.depth + 1):
        source = before if i == 1 else f"{name}.conv{i - 1}"
        target = after if i == block.depth else f"{name}.conv{i}"
        if source in kept:
            take_inputs(block.conv(i), kept[source])
        if target in kept:
            take_outputs(block.conv(i), kept[target])
        normalized = source if block.preactivation else target
        if normalized in kept:
            take_bn(block.bn(i), kept[normalized])
    if block.projection is not None:
        if before in kept:
            take_inputs(cast("nn.Conv2d", block.projection[0]), kept[before])
        if after in kept:
            take_outputs(cast("nn.Conv2d", block.projection[0]), kept[after])
            for bn in list(block.projection)[1:]:
                take_bn(cast("nn.BatchNorm2d", bn), kept[after])


def widths_of(model: ResNet) -> Widths:
    """Return the current widths of the modules."""
    arch = model.architecture
    inner: list[list[tuple[int, ...]]] = [[() for _ in stage] for stage in arch.widths.inner]
    streams = list(arch.widths.streams)
    for _, stage, index, block in model.blocks():
        inner[stage][index] = tuple(block.conv(i).out_channels for i in range(1, block.depth))
        streams[stage] = block.conv(block.depth).out_channels
    return Widths(model.conv1.out_channels, tuple(streams), tuple(tuple(stage) for stage in inner))


def conform(model: ResNet) -> ResNet:
    """Rebuild the network with the current widths and weights of its modules."""
    arch: Architecture = resize(model.architecture, widths_of(model))
    rebuilt = ResNet(arch)
    rebuilt.load_state_dict(model.state_dict())
    return rebuilt.train(model.training)


def take_outputs(conv: nn.Conv2d, indices: Tensor) -> None:
    """Keep some output channels of a convolution, in place."""
    conv.weight.data = conv.weight.data[indices].clone()
    conv.out_channels = len(indices)


def take_inputs(conv: nn.Conv2d, indices: Tensor) -> None:
    """Keep some input channels of a convolution, in place."""
    conv.weight.data = conv.weight.data[:, indices].clone()
    conv.in_channels = len(indices)


def take_bn(bn: nn.BatchNorm2d, indices: Tensor) -> None:
    """Keep some channels of a BatchNorm, in place."""
    for parameter in (bn.weight, bn.bias):
        parameter.data = parameter.data[indices].clone()
    bn.running_mean = cast("Tensor", bn.running_mean)[indices].clone()
    bn.running_var = cast("Tensor", bn.running_var)[indices].clone()
    bn.num_features = len(indices)
