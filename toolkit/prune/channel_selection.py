"""From a goal to decisions: which channels of the streams stay, and how wide the blocks become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.statistics import kl_divergence
from edgeship.toolkit.core.tensors import Size
from edgeship.toolkit.models.resnet import Architecture, ResNet, macs
from edgeship.toolkit.prune import importances, width_search
from edgeship.toolkit.prune.apply import shrink
from edgeship.toolkit.prune.execute import Decision
from edgeship.toolkit.prune.groups import STEM, kept_places, stream_groups
from edgeship.toolkit.prune.importances import Ranking
from edgeship.toolkit.prune.plan import Measure, PruneOptions
from edgeship.toolkit.prune.probe_images import Images, logits
from edgeship.toolkit.prune.ranking import Surveyed, survey_streams

STREAM_PARTS = (1.0, 0.875, 0.75, 0.625, 0.5)  # tried together with channels inside blocks
STREAM_STEPS = 16  # how finely streams alone are narrowed


@dataclass(frozen=True, slots=True)
class Known:
    """What the goals are decided on.

    Attributes:
        dense: The dense network.
        seen: The images.
        surveyed: Rankings and losses of the inner groups.
        options: The goal, and how.
        measure: Milliseconds of a network in INT8 on the device; needed for `target_latency`.
    """

    dense: ResNet
    seen: Images
    surveyed: Mapping[str, Surveyed]
    options: PruneOptions
    measure: Measure | None

    @property
    def arch(self) -> Architecture:
        """The dense network's description."""
        return self.dense.architecture


def decisions(known: Known) -> Iterator[Decision]:
    """Decisions that meet the goal; of several, the repair shows which is best.

    With streams and inner groups together there are several: the widest streams with the narrowest
    blocks first.

    Raises:
        ModelError: The goal cannot be met, or brings less than 3 %.
    """
    options = known.options
    if options.latency_ratio is not None and known.measure is None:
        raise ModelError(
            "prune.latency_ratio needs a device to measure on", hint="set prune.macs_ratio, or name a target"
        )
    if options.scope == "block":
        yield from _inner(known, {})
        return
    rankings = survey_streams(known.dense, known.seen.fit, importances.get(options.method), seed=options.seed)
    if options.scope == "residual":
        yield _streams_alone(known, rankings)
        return
    parts = STREAM_PARTS if options.keep_ratio is None else (options.keep_ratio,)
    yield from _inner(known, *(_streams(known, rankings, part) for part in parts))


def drop_losses(known: Known) -> dict[tuple[int, int], float]:
    """KL divergence in nats of leaving out each block that can be left out; empty where none may go."""
    losses: dict[tuple[int, int], float] = {}
    if not known.options.drop_blocks:
        return losses
    with torch.no_grad():
        for _, stage, block, _ in known.dense.blocks():
            if known.arch.keeps_shape(stage, block) and block > 0:
                without = shrink(known.dense, {}, {(stage, block)})
                losses[stage, block] = kl_divergence(known.seen.reference, logits(without, known.seen.check))
    return losses


def _inner(known: Known, *streams: dict[str, Tensor]) -> Iterator[Decision]:
    """Inner widths for the goal, on each of several choices of streams that allows it."""
    options, size = known.options, known.seen.size
    drops = drop_losses(known)
    goal, last, met = None, None, False
    if options.latency_ratio is not None and known.measure is not None:
        dense_ms = known.measure(known.arch)
        table = width_search.time_blocks(known.arch, dense_ms, options.channel_multiple, known.measure, drops)
        goal = width_search.LatencyGoal(options.latency_ratio, dense_ms, table)
    for kept in streams:
        arch = shrink(known.dense, kept).architecture
        try:
            if goal is not None and known.measure is not None:
                found = width_search.for_latency(
                    arch,
                    known.surveyed,
                    drops,
                    replace(goal, narrowed=arch != known.arch),
                    step=options.channel_multiple,
                    measure=known.measure,
                )
                latency = _latency(found)
            else:
                found, latency = _by_count(known, arch, drops, size), {}
        except ModelError as error:
            last = error
            continue
        met = True
        yield Decision(kept, known.surveyed, found.arch, latency)
    if not met:
        raise last or ModelError("nothing to prune", hint="set prune.keep_ratio")


def _by_count(
    known: Known, arch: Architecture, drops: Mapping[tuple[int, int], float], size: Size
) -> width_search.Allocated:
    """Inner widths for a part of the channels or of the multiply-accumulates."""
    options, dense = known.options, float(macs(known.arch, size))
    start = float(macs(arch, size))
    if options.keep_ratio is not None:
        return width_search.Allocated(
            width_search.uniform(arch, options.keep_ratio, options.channel_multiple), start, start, dense
        )
    assert options.macs_ratio is not None
    if options.macs_ratio * dense >= start:
        return width_search.Allocated(arch, start, start, dense)
    return width_search.for_macs(
        arch,
        known.surveyed,
        drops,
        options.macs_ratio,
        size=size,
        step=options.channel_multiple,
        of=known.arch,
    )


def _streams_alone(known: Known, rankings: Mapping[str, Ranking]) -> Decision:
    """The widest streams that meet the goal without touching the blocks."""
    options, size = known.options, known.seen.size
    if options.keep_ratio is not None:
        kept = _streams(known, rankings, options.keep_ratio)
        return Decision(kept, {}, shrink(known.dense, kept).architecture)
    choices: dict[Architecture, dict[str, Tensor]] = {}
    for sixteenths in range(STREAM_STEPS - 1, 1, -1):
        kept = _streams(known, rankings, sixteenths / STREAM_STEPS)
        choices.setdefault(shrink(known.dense, kept).architecture, kept)
    archs = [arch for arch in choices if arch != known.arch]
    if not archs:
        raise ModelError("prune: there is no stream that could be narrower", hint="set prune.scope=block")
    if options.latency_ratio is not None and known.measure is not None:
        dense_ms = known.measure(known.arch)
        at, measured = width_search.streams_for(archs, known.measure, options.latency_ratio, dense_ms)
        found = width_search.Allocated(archs[at], measured, measured, dense_ms)
        width_search.check_gain(found)
        latency = _latency(found)
        del latency["latency_predicted_ms"]  # nothing was predicted: every candidate was measured
    else:
        assert options.macs_ratio is not None
        cost = float(macs(known.arch, size))
        at, _ = width_search.streams_for(
            archs, lambda arch: float(macs(arch, size)), options.macs_ratio, cost
        )
        latency = {}
    return Decision(choices[archs[at]], {}, archs[at], latency)


def _streams(known: Known, rankings: Mapping[str, Ranking], part: float) -> dict[str, Tensor]:
    """Place -> what the residual streams keep of it at a part of their widths."""
    groups, whole = stream_groups(known.arch), known.arch.widths
    before = {STEM: whole.stem} | {f"stream{i}": width for i, width in enumerate(whole.streams, 1)}
    kept = {
        group.name: rankings[group.name].order[
            group.width - width_search.nearest(group.width, part, known.options.channel_multiple) :
        ]
        for group in groups
    }
    places = kept_places(known.arch, groups, kept)
    return {place: places[place] for place, width in before.items() if len(places[place]) < width}


def _latency(found: width_search.Allocated) -> dict[str, float]:
    return {
        "latency_before_ms": found.dense,
        "latency_after_ms": found.measured,
        "latency_predicted_ms": found.predicted,
    }
