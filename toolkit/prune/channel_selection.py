"""Selection of stream channels and block widths for a pruning goal."""

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
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.plan import Measure
from edgeship.toolkit.prune.probe_images import Images, logits
from edgeship.toolkit.prune.ranking import GroupSensitivity, rank_streams
from edgeship.toolkit.prune.time_budget import TimeBudget

STREAM_PARTS = (1.0, 0.875, 0.75, 0.625, 0.5)  # tried together with channels inside blocks
STREAM_STEPS = 16  # number of ratios tried for streams alone


@dataclass(frozen=True, slots=True)
class PruneContext:
    """Inputs of the channel selection.

    Attributes:
        dense: The dense network.
        probes: The images.
        sensitivities: Rankings and losses of the inner groups.
        options: The goal, method and scope.
        measure: Network -> INT8 latency on the device in ms; required for `target_latency`.
        budget: Time budget; None: no limit.
        latency_size: Height and width in pixels of the measured networks; None: that of the images.
    """

    dense: ResNet
    probes: Images
    sensitivities: Mapping[str, GroupSensitivity]
    options: PruneOptions
    measure: Measure | None
    budget: TimeBudget | None = None
    latency_size: Size | None = None

    @property
    def arch(self) -> Architecture:
        """Return the architecture of the dense network."""
        return self.dense.architecture


def decisions(context: PruneContext) -> Iterator[Decision]:
    """Yield decisions that meet the goal, for the caller to refit and compare.

    Scope "both" yields several, from the widest streams with the narrowest blocks on.

    Raises:
        ModelError: The goal cannot be met, or gains less than 3 %.
    """
    options = context.options
    if options.latency_ratio is not None and context.measure is None:
        raise ModelError(
            "prune.latency_ratio needs a device to measure on; no target is set", hint="set prune.macs_ratio"
        )
    if options.scope == "block":
        yield from _inner_decisions(context, {})
        return
    rankings = rank_streams(
        context.dense, context.probes.fit, importances.get(options.method), seed=options.seed
    )
    if options.scope == "residual":
        yield _stream_decision(context, rankings)
        return
    parts = STREAM_PARTS if options.keep_ratio is None else (options.keep_ratio,)
    yield from _inner_decisions(context, *(_stream_channels(context, rankings, part) for part in parts))


def block_drop_losses(context: PruneContext) -> dict[tuple[int, int], float]:
    """Return the KL divergence in nats of dropping each droppable block; empty without `drop_blocks`."""
    losses: dict[tuple[int, int], float] = {}
    if not context.options.drop_blocks:
        return losses
    with torch.no_grad():
        for _, stage, block, _ in context.dense.blocks():
            if context.arch.keeps_shape(stage, block) and block > 0:
                without = shrink(context.dense, {}, {(stage, block)})
                losses[stage, block] = kl_divergence(
                    context.probes.reference, logits(without, context.probes.check)
                )
    return losses


def _inner_decisions(context: PruneContext, *streams: dict[str, Tensor]) -> Iterator[Decision]:
    """Yield inner widths that meet the goal, for each choice of streams with which it can be met."""
    options, size = context.options, context.probes.size
    drops = block_drop_losses(context)
    goal, last_error, reachable = None, None, False
    if options.latency_ratio is not None and context.measure is not None:
        dense_ms = context.measure(context.arch)
        table = width_search.time_blocks(
            context.arch, dense_ms, options.channel_multiple, context.measure, drops
        )
        goal = width_search.LatencyGoal(options.latency_ratio, dense_ms, table)
    for channels in streams:
        arch = shrink(context.dense, channels).architecture
        try:
            if goal is not None and context.measure is not None:
                allocation = width_search.for_latency(
                    arch,
                    context.sensitivities,
                    drops,
                    replace(goal, narrowed=arch != context.arch),
                    step=options.channel_multiple,
                    measure=context.measure,
                )
                latency = _latency(allocation)
            else:
                allocation, latency = _inner_widths(context, arch, drops, size), {}
        except ModelError as error:
            last_error = error
            continue
        reachable = True
        yield Decision(channels, context.sensitivities, allocation.arch, latency)
    if not reachable:
        raise last_error or ModelError("no layer can be pruned", hint="set prune.keep_ratio")


def _inner_widths(
    context: PruneContext, arch: Architecture, drops: Mapping[tuple[int, int], float], size: Size
) -> width_search.Allocation:
    """Return inner widths for a ratio of the channels or of the multiply-accumulates."""
    options, dense = context.options, float(macs(context.arch, size))
    start = float(macs(arch, size))
    if options.keep_ratio is not None:
        return width_search.Allocation(
            width_search.uniform(arch, options.keep_ratio, options.channel_multiple), start, start, dense
        )
    assert options.macs_ratio is not None
    if options.macs_ratio * dense >= start:
        return width_search.Allocation(arch, start, start, dense)
    return width_search.for_macs(
        arch,
        context.sensitivities,
        drops,
        options.macs_ratio,
        size=size,
        step=options.channel_multiple,
        of=context.arch,
    )


def _stream_decision(context: PruneContext, rankings: Mapping[str, Ranking]) -> Decision:
    """Return the widest streams that meet the goal with unchanged inner widths."""
    options, size = context.options, context.probes.size
    if options.keep_ratio is not None:
        channels = _stream_channels(context, rankings, options.keep_ratio)
        return Decision(channels, {}, shrink(context.dense, channels).architecture)
    choices: dict[Architecture, dict[str, Tensor]] = {}
    for step in range(STREAM_STEPS - 1, 1, -1):
        channels = _stream_channels(context, rankings, step / STREAM_STEPS)
        choices.setdefault(shrink(context.dense, channels).architecture, channels)
    archs = [arch for arch in choices if arch != context.arch]
    if not archs:
        raise ModelError("prune: no residual stream can be narrowed", hint="set prune.scope=block")
    if options.latency_ratio is not None and context.measure is not None:
        dense_ms = context.measure(context.arch)
        index, measured = width_search.widest_within(archs, context.measure, options.latency_ratio, dense_ms)
        allocation = width_search.Allocation(archs[index], measured, measured, dense_ms)
        width_search.check_gain(allocation)
        latency = _latency(allocation)
        del latency["latency_predicted_ms"]  # every candidate was measured
    else:
        assert options.macs_ratio is not None
        cost = float(macs(context.arch, size))
        index, _ = width_search.widest_within(
            archs, lambda arch: float(macs(arch, size)), options.macs_ratio, cost
        )
        latency = {}
    return Decision(choices[archs[index]], {}, archs[index], latency)


def _stream_channels(
    context: PruneContext, rankings: Mapping[str, Ranking], part: float
) -> dict[str, Tensor]:
    """Return place -> kept channel indices of the residual streams at a ratio of their widths."""
    groups, whole = stream_groups(context.arch), context.arch.widths
    before = {STEM: whole.stem} | {f"stream{i}": width for i, width in enumerate(whole.streams, 1)}
    keep = {
        group.name: rankings[group.name].order[
            group.width - width_search.nearest_width(group.width, part, context.options.channel_multiple) :
        ]
        for group in groups
    }
    places = kept_places(context.arch, groups, keep)
    return {place: places[place] for place, width in before.items() if len(places[place]) < width}


def _latency(allocation: width_search.Allocation) -> dict[str, float]:
    return {
        "latency_before_ms": allocation.dense,
        "latency_after_ms": allocation.measured,
        "latency_predicted_ms": allocation.predicted,
    }
