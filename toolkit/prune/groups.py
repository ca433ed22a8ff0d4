"""Channel groups that must be pruned together: inside a block, and along the residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeship.toolkit.models.resnet import Architecture

STEM = "stem"  # a place: outputs of the first convolution


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that can only be removed together.

    Attributes:
        name: The place where the group begins.
        width: Channels of the group.
        places: (place, indices): channel c of the group is channel indices[c] of the place. A place is
            `stem`, `stream1`... (the output of a stage's blocks) or a convolution inside a block.
    """

    name: str
    width: int
    places: tuple[tuple[str, tuple[int, ...]], ...]


def inner_groups(arch: Architecture) -> tuple[ChannelGroup, ...]:
    """Return one group for every convolution but the last of each block."""
    groups = []
    for stage, blocks in enumerate(arch.widths.inner):
        for block, widths in enumerate(blocks):
            for i, width in enumerate(widths):
                name = f"layer{stage + 1}.{block}.conv{i + 1}"
                groups.append(ChannelGroup(name, width, ((name, tuple(range(width))),)))
    return tuple(groups)


def stream_groups(arch: Architecture) -> tuple[ChannelGroup, ...]:
    """Return the groups of the residual streams: all producers and consumers of a stage share a keep-set.

    With option A a stream continues in the next stage, zero-padded on both sides: a group then spans all
    stages from its first on, and the front padding is paired with the back padding.
    """
    places = [STEM, *(f"stream{stage + 1}" for stage in range(len(arch.widths.streams)))]
    widths = [arch.widths.stem, *arch.widths.streams]
    tied = [_tied(arch, stage) for stage in range(len(arch.widths.streams))]
    groups = []
    for start, (place, width) in enumerate(zip(places, widths, strict=True)):
        before = widths[start - 1] if start > 0 and tied[start - 1] else 0
        front = (width - before) // 2
        if width == before:
            continue  # the stream continues unchanged
        if before == 0:
            members: list[list[int]] = [list(range(width))]
        else:  # pairs of a front and a back padding channel
            members = [list(range(front)), list(range(front + before, 2 * front + before))]
        if not members[0]:
            continue
        lies_in = [(place, tuple(m)) for m in members]
        for later in range(start + 1, len(places)):
            if not tied[later - 1]:
                break
            shift = (widths[later] - widths[later - 1]) // 2
            members = [[index + shift for index in m] for m in members]
            lies_in.extend((places[later], tuple(m)) for m in members)
        groups.append(ChannelGroup(place, len(lies_in[0][1]), tuple(lies_in)))
    return tuple(groups)


def kept_places(
    arch: Architecture, groups: Iterable[ChannelGroup], kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the kept channel indices of every place: all but those removed from a group."""
    widths = {STEM: arch.widths.stem}
    widths |= {f"stream{i + 1}": width for i, width in enumerate(arch.widths.streams)}
    widths |= {group.name: group.width for group in inner_groups(arch)}
    keep_mask = {place: torch.ones(width, dtype=torch.bool) for place, width in widths.items()}
    for group in groups:
        removed = torch.ones(group.width, dtype=torch.bool)
        removed[kept[group.name]] = False
        for place, indices in group.places:
            keep_mask[place][torch.tensor(indices)[removed]] = False
    return {place: flags.nonzero().flatten() for place, flags in keep_mask.items()}


def _tied(arch: Architecture, stage: int) -> bool:
    """Return True if the stream enters this stage through an identity or padding, not a convolution."""
    return arch.shortcut != "none" and not arch.projects(stage, 0)
