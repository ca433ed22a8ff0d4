"""Steps of a joint search: losses of all choices, latencies of the device, and widths that meet the goal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.statistics import kl_divergence
from edgeship.toolkit.models.resnet import ResNet, macs
from edgeship.toolkit.prune import importances, joint_search, width_search
from edgeship.toolkit.prune.channel_selection import PruneContext
from edgeship.toolkit.prune.checkpoints import Checkpoint, Checkpoints
from edgeship.toolkit.prune.execute import Decision, expected_drop_pp
from edgeship.toolkit.prune.groups import stream_groups
from edgeship.toolkit.prune.importances import Ranking
from edgeship.toolkit.prune.joint_search import Choice, JointSearch, Losses
from edgeship.toolkit.prune.latency_model import RESOLUTIONS, LatencyModel, samples
from edgeship.toolkit.prune.plan import Candidate
from edgeship.toolkit.prune.probe_images import logits
from edgeship.toolkit.prune.ranking import rank_streams

SAMPLES = 24  # random networks that are measured for the latency model
LEAST_SAMPLES = 8  # of them, also where the time is short
PROBING = 0.25  # part of a time budget after which losses are no longer probed
SEARCHING = 0.4  # part after which no further network is measured
STREAM_WEIGHTS = (4.0, 1.0, 16.0)  # the best of these is found by refitted networks
OTHER_GOALS = (0.8, 0.6)  # latency ratios of the other networks of the frontier

Searches: TypeAlias = "Mapping[joint_search.Strides, JointSearch]"


def decisions(context: PruneContext, states: Checkpoints) -> Iterator[Decision]:
    """Yield the decision that meets the latency goal.

    Args:
        context: The network, images, sensitivities and options.
        states: Checkpoints, from which an interrupted search resumes.

    Raises:
        ModelError: The goal cannot be met, gains less than 3 %, or there is no device to measure on.
    """
    options, measure = context.options, context.measure
    assert options.latency_ratio is not None
    if measure is None:
        raise ModelError(
            "prune.scope is joint, and no target is set to measure on", hint="set prune.macs_ratio"
        )
    losses = _losses(context, states)
    arch, step = context.arch, options.channel_multiple
    dense_ms = measure(arch)
    model = LatencyModel(arch, context.latency_size or context.probes.size, dense_ms)
    networks = samples(arch, tuple(losses.drops), step, SAMPLES)
    for number, network in enumerate(track(networks, "timing networks")):
        if number >= LEAST_SAMPLES and _over(context, SEARCHING):
            break
        model.add(network, measure(network))
    searches = {
        strides: JointSearch(replace(arch, stem_strides=strides), losses, model, step)
        for strides in losses.resolutions
    }
    candidates = _candidates(context, searches, losses, model, dense_ms)
    reference = context.probes.reference
    choice, measured, _ = min(candidates, key=lambda each: kl_divergence(reference, each[2]))
    others = tuple(
        Candidate(
            macs(other.arch, context.probes.size), expected_drop_pp(reference, outputs), ms, chosen=False
        )
        for other, ms, outputs in candidates
        if other is not choice
    )
    allocation = width_search.Allocation(choice.arch, choice.predicted_ms, measured, dense_ms)
    width_search.check_gain(allocation)
    yield Decision(
        _kept(context, losses, choice),
        losses.inner,
        choice.arch,
        {
            "latency_before_ms": dense_ms,
            "latency_after_ms": measured,
            "latency_predicted_ms": choice.predicted_ms,
        },
        searches[choice.arch.stem_strides].coarse_steps(choice, options.latency_ratio * dense_ms),
        (*_frontier(context, searches, losses, dense_ms), *others),
    )


def _candidates(
    context: PruneContext, searches: Searches, losses: Losses, model: LatencyModel, dense_ms: float
) -> list[tuple[Choice, float, FloatArray]]:
    """Return networks near the goal, their latencies, and their logits when refitted on a few images.

    Every resolution is tried with one weight of the streams; the best one with the other weights too.
    """
    assert context.options.latency_ratio is not None
    goal_ms = context.options.latency_ratio * dense_ms
    candidates: list[tuple[Choice, float, FloatArray]] = []

    def add(search: JointSearch, weight: float) -> None:
        found = _nearest(context, search, model, dense_ms, weight)
        if found is not None and all(found[0].arch != other.arch for other, *_ in candidates):
            candidates.append((*found, logits(_refitted(context, losses, found[0]), context.probes.check)))

    weight, *others = STREAM_WEIGHTS
    estimates = {strides: search.within(goal_ms, weight) for strides, search in searches.items()}
    reached = {strides: choice.loss for strides, choice in estimates.items() if choice is not None}
    if not reached:
        least_ms = min(search.least_ms() for search in searches.values())
        raise joint_search.unreachable(context.options.latency_ratio, dense_ms, least_ms)
    for strides in sorted(reached, key=lambda strides: reached[strides]):
        if not candidates or not _over(context, SEARCHING):
            add(searches[strides], weight)
    best = min(candidates, key=lambda each: kl_divergence(context.probes.reference, each[2]))[0]
    for weight in others:
        if not _over(context, SEARCHING):
            add(searches[best.arch.stem_strides], weight)
    return candidates


def _frontier(
    context: PruneContext, searches: Searches, losses: Losses, dense_ms: float
) -> Iterator[Candidate]:
    """Yield networks for higher latencies, measured, and refitted on a few images."""
    assert context.options.latency_ratio is not None and context.measure is not None
    for part in OTHER_GOALS:
        if part < 1.1 * context.options.latency_ratio or _over(context, SEARCHING):
            break
        found = [search.within(part * dense_ms) for search in searches.values()]
        choice = min(filter(None, found), key=lambda each: each.loss, default=None)
        if choice is not None:
            small = _refitted(context, losses, choice)
            drop = expected_drop_pp(context.probes.reference, logits(small, context.probes.check))
            cost = macs(choice.arch, context.probes.size)
            yield Candidate(cost, drop, context.measure(choice.arch), chosen=False)


def _refitted(context: PruneContext, losses: Losses, choice: Choice) -> ResNet:
    """Return the network of a choice, refitted on a few images."""
    return joint_search.refitted(
        context.dense,
        _kept(context, losses, choice),
        choice.arch,
        losses.inner,
        context.probes,
        importances.get(context.options.method),
        context.options.seed,
    )


def _kept(context: PruneContext, losses: Losses, choice: Choice) -> dict[str, Tensor]:
    rankings = {name: each.ranking for name, each in losses.streams.items()}
    return joint_search.kept_streams(context.arch, stream_groups(context.arch), rankings, choice.streams)


def _nearest(
    context: PruneContext, search: JointSearch, model: LatencyModel, dense_ms: float, weight: float
) -> tuple[Choice, float] | None:
    """Return the choice whose measured latency is nearest to the goal: build, measure, correct, repeat.

    None: no widths meet the goal, by the model.
    """
    assert context.options.latency_ratio is not None and context.measure is not None
    goal_ms = context.options.latency_ratio * dense_ms
    asked_ms, best = goal_ms, None
    for _ in range(width_search.ROUNDS):
        choice = search.within(asked_ms, weight)
        if choice is None:
            break
        if best is not None and choice.arch == best[0].arch:
            break
        measured = context.measure(choice.arch)
        if best is None or abs(measured - goal_ms) < abs(best[1] - goal_ms):
            best = choice, measured
        if abs(measured - goal_ms) <= width_search.LATENCY_TOLERANCE * goal_ms or _over(context, SEARCHING):
            break
        model.add(choice.arch, measured)
        asked_ms *= max(0.5, min(2.0, goal_ms * model.total_ms(choice.arch) / (measured * asked_ms)))
    return best


def _losses(context: PruneContext, states: Checkpoints) -> Losses:
    """Return the losses of all choices; probes are left out where the time budget is short."""
    options, importance = context.options, importances.get(context.options.method)
    state = states.of("joint", options.method, options.flip_augment, options.seed)
    saved = state.load() or {}
    if "rankings" not in saved:
        found = rank_streams(context.dense, context.probes.fit, importance, seed=options.seed)
        saved["rankings"] = {name: (each.order, each.error) for name, each in found.items()}
        state.save(saved)
    rankings = {name: Ranking(*each) for name, each in saved["rankings"].items()}
    streams = joint_search.stream_losses(context.arch, rankings, context.sensitivities)
    resolutions = _resolution_losses(context, saved, state)
    return Losses(context.sensitivities, streams, _drop_losses(context, saved, state), resolutions)


def _resolution_losses(
    context: PruneContext, saved: dict[str, Any], state: Checkpoint
) -> dict[joint_search.Strides, float]:
    """Return the losses of the resolutions; one that is not probed is not tried."""
    known: dict[joint_search.Strides, float] = saved.setdefault("resolutions", {None: 0.0})
    importance = importances.get(context.options.method)
    for strides in track(RESOLUTIONS[context.arch.stem], "probing resolutions"):
        if strides not in known and not _over(context, PROBING):
            known[strides] = joint_search.resolution_loss(
                context.dense, context.probes, strides, importance, context.options.seed
            )
            state.save(saved)
    return known


def _drop_losses(
    context: PruneContext, saved: dict[str, Any], state: Checkpoint
) -> dict[tuple[int, int], float]:
    """Return the losses of dropping blocks; a block that is not probed stays."""
    known: dict[str, float] = saved.setdefault("drops", {})
    for stage, block in track(joint_search.droppable(context.arch), "probing blocks"):
        name = f"{stage}.{block}"
        if name not in known and not _over(context, PROBING):
            known[name] = joint_search.drop_loss(context.dense, context.probes, (stage, block))
            state.save(saved)
    return {
        (stage, block): known[f"{stage}.{block}"]
        for stage, block in joint_search.droppable(context.arch)
        if f"{stage}.{block}" in known
    }


def _over(context: PruneContext, part: float) -> bool:
    """Return True if a part of the time budget has passed; without a budget, never."""
    return context.budget is not None and context.budget.elapsed_s > part * context.budget.limit_s
