"""Which channels go together: inside a block, and along the residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeship.toolkit.models.resnet import Architecture

STEM = "stem"  # a place: outputs of the first convolution


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that can only leave together, wherever they lie.

    Attributes:
        name: The place where they begin.
        width: Channels of the group.
        places: (place, indices): channel c of the group is channel indices[c] of the place. A place is
            `stem`, `stream1`... (what the blocks of a stage hand on) or a convolution inside a block.
    """

    name: str
    width: int
    places: tuple[tuple[str, tuple[int, ...]], ...]


def inner_groups(arch: Architecture) -> tuple[ChannelGroup, ...]:
    """One group for every convolution but the last of each block."""
    found = []
    for stage, blocks in enumerate(arch.widths.inner):
        for block, widths in enumerate(blocks):
            for i, width in enumerate(widths):
                name = f"layer{stage + 1}.{block}.conv{i + 1}"
                found.append(ChannelGroup(name, width, ((name, tuple(range(width))),)))
    return tuple(found)


def stream_groups(arch: Architecture) -> tuple[ChannelGroup, ...]:
    """Groups of the residual streams: every producer and consumer of a stage shares one keep-set.

    With option A a stream runs on, zero-padded on both sides, in the next stage: a group then lies in
    all stages from where it begins, and what begins in front leaves together with what begins behind.
    """
    places = [STEM, *(f"stream{stage + 1}" for stage in range(len(arch.widths.streams)))]
    widths = [arch.widths.stem, *arch.widths.streams]
    tied = [_tied(arch, stage) for stage in range(len(arch.widths.streams))]
    found = []
    for start, (place, width) in enumerate(zip(places, widths, strict=True)):
        before = widths[start - 1] if start > 0 and tied[start - 1] else 0
        front = (width - before) // 2
        if width == before:
            continue  # the stream goes on unchanged
        if before == 0:
            members: list[list[int]] = [list(range(width))]
        else:  # pairs, one from the padding in front and one from behind
            members = [list(range(front)), list(range(front + before, 2 * front + before))]
        if not members[0]:
            continue
        where = [(place, tuple(m)) for m in members]
        for later in range(start + 1, len(places)):
            if not tied[later - 1]:
                break
            shift = (widths[later] - widths[later - 1]) // 2
            members = [[index + shift for index in m] for m in members]
            where.extend((places[later], tuple(m)) for m in members)
        found.append(ChannelGroup(place, len(where[0][1]), tuple(where)))
    return tuple(found)


def kept_places(
    arch: Architecture, groups: Iterable[ChannelGroup], kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What every place keeps: all its channels but those of groups that gave some up."""
    widths = {STEM: arch.widths.stem}
    widths |= {f"stream{i + 1}": width for i, width in enumerate(arch.widths.streams)}
    widths |= {group.name: group.width for group in inner_groups(arch)}
    stays = {place: torch.ones(width, dtype=torch.bool) for place, width in widths.items()}
    for group in groups:
        gone = torch.ones(group.width, dtype=torch.bool)
        gone[kept[group.name]] = False
        for place, indices in group.places:
            stays[place][torch.tensor(indices)[gone]] = False
    return {place: flags.nonzero().flatten() for place, flags in stays.items()}


def _tied(arch: Architecture, stage: int) -> bool:
    """Whether the stream enters this stage through an identity or padding, not a convolution."""
    return arch.shortcut != "none" and not arch.projects(stage, 0)
