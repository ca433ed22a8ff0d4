"""Pruning from unlabelled images: rank channels, choose widths, prune, refit, and select the best result."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.tensors import Size
from edgeship.toolkit.models.resnet import ResNet, macs
from edgeship.toolkit.prune import channel_selection, importances, joint_pruning, width_search
from edgeship.toolkit.prune.checkpoints import Checkpoints
from edgeship.toolkit.prune.execute import Decision, apply_decision
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.plan import Candidate, Measure, PrunePlan
from edgeship.toolkit.prune.probe_images import Images, split
from edgeship.toolkit.prune.ranking import GroupSensitivity, rank_inner_groups
from edgeship.toolkit.prune.time_budget import TimeBudget, in_words

SEARCH_ROUNDS = 5
RANKING_PART = 0.4  # part of search and refit that the ranking of channels takes
SURE = 0.25  # part of the blocks after which the required time is estimated
SEARCHED = (0.2, 1.0)  # bounds of the bisection, as ratios of the multiply-accumulates

Result = tuple[ResNet, PrunePlan]


def prune(
    model: ResNet,
    images: Iterable[FloatArray],
    options: PruneOptions,
    measure: Measure | None = None,
    *,
    checkpoint: Path | None = None,
    budget: TimeBudget | None = None,
    latency_size: Size | None = None,
) -> Result:
    """Prune a network to a goal, from unlabelled images and without training.

    Args:
        model: The dense network; not changed.
        images: Batches (N, C, H, W), preprocessed; 500 to 2,000 images are usual.
        options: The goal, method and scope.
        measure: Network -> INT8 latency on the device in ms; required for `target_latency`.
        checkpoint: Folder for the state of an interrupted pass; the same call resumes after its last block.
        budget: Time that search and refit may take, with what follows them; None: no limit.
        latency_size: Height and width in pixels of the networks that `measure` builds; default: the images'.

    Returns:
        The pruned network, in evaluation mode, and its plan.

    Raises:
        ModelError: The goal cannot be met, gains less than 3 %, or nothing is left to prune.
        DataError: There are no images.
    """
    if options.method == "none":
        return model, identity_plan(model)
    dense = copy.deepcopy(model).eval()
    probes = split(dense, images, mirror=options.flip_augment)
    states = Checkpoints(checkpoint, dense, probes.fit.images)
    if options.keep_ratio is not None and options.scope == "block":
        narrow = width_search.uniform(dense.architecture, options.keep_ratio, options.channel_multiple)
        result = apply_decision(dense, probes, options, Decision({}, {}, narrow), states)
    else:
        whole = options.scope == "residual"  # blocks are not narrowed: no ranking needed
        sensitivities = (
            {}
            if whole
            else _sensitivities(dense, probes, options, states, budget, probe=options.keep_ratio is None)
        )
        context = channel_selection.PruneContext(
            dense, probes, sensitivities, options, measure, budget, latency_size
        )
        result = (_search_drop if options.max_expected_drop_pp is not None else _best_decision)(
            context, states
        )
    states.clear()
    return result


def identity_plan(model: ResNet) -> PrunePlan:
    """Return the plan of a network that is not pruned."""
    arch = model.architecture
    count = macs(arch, 224)
    return PrunePlan("none", arch.widths, arch.widths, count, count)


def _sensitivities(
    dense: ResNet,
    probes: Images,
    options: PruneOptions,
    states: Checkpoints,
    budget: TimeBudget | None,
    *,
    probe: bool,
) -> Mapping[str, GroupSensitivity]:
    importance = importances.get(options.method)
    # the key leaves out the goal, so that a run with another goal reuses the ranking
    state = states.of("survey", probe, options.method, options.flip_augment, options.seed)
    after_block = None if budget is None else partial(_check_time, budget)
    return rank_inner_groups(
        dense,
        probes.fit,
        importance,
        probe=probe,
        state=state,
        seed=options.seed,
        after_block=after_block,
    )


def _check_time(budget: TimeBudget, done: int, total: int) -> None:
    """Check after each ranked block that there is time left to prune.

    Raises:
        ModelError: The time is used up; the message has an estimate of the time that is needed.
    """
    budget.save()
    required_s = budget.elapsed_s * total / done / RANKING_PART
    if required_s <= budget.limit_s or (budget.left_s > 0 and done < SURE * total):
        return
    budget.restart()
    raise ModelError(
        f"prune.budget_s: search and refit need about {required_s:.0f} s, {budget.limit_s:.0f} s are given; "
        f"the ranking of {done} of {total} blocks is kept for the same command",
        hint=f"set prune.budget_s={in_words(2 * required_s)}, or a smaller prune.images",
    )


def _best_decision(context: channel_selection.PruneContext, states: Checkpoints) -> Result:
    """Apply the decisions in turn until the divergence from the dense network grows; return the best."""
    results: list[Result] = []
    if context.options.scope == "joint":
        candidates = joint_pruning.decisions(context, states)
    else:
        candidates = channel_selection.decisions(context)
    others: tuple[Candidate, ...] = ()
    for decision in candidates:
        others = decision.frontier
        results.append(apply_decision(context.dense, context.probes, context.options, decision, states))
        if len(results) > 1 and _divergence(results[-1]) >= _divergence(results[-2]):
            break
    return _with_frontier(min(results, key=_divergence), results, others)


def _search_drop(context: channel_selection.PruneContext, states: Checkpoints) -> Result:
    """Find the fewest multiply-accumulates whose expected drop is within the limit, by bisection."""
    options = context.options
    limit, arch = options.max_expected_drop_pp or 0.0, context.arch
    low, high = SEARCHED
    results: list[Result] = []
    best: Result | None = None
    drops = channel_selection.block_drop_losses(context)
    for _ in range(SEARCH_ROUNDS):
        part = (low + high) / 2
        try:
            allocation = width_search.for_macs(
                arch,
                context.sensitivities,
                drops,
                part,
                size=context.probes.size,
                step=options.channel_multiple,
            )
        except ModelError:
            low = part
            continue
        decision = Decision({}, context.sensitivities, allocation.arch)
        results.append(apply_decision(context.dense, context.probes, options, decision, states))
        if (results[-1][1].expected_drop_pp or 0.0) <= limit:
            best, high = results[-1], part
        else:
            low = part
    if best is None:
        raise ModelError(
            f"no pruning of {arch.name} has an expected drop within {limit} pp",
            hint="raise prune.max_expected_drop_pp",
        )
    return _with_frontier(best, results)


def _divergence(result: Result) -> float:
    return result[1].kl or 0.0


def _with_frontier(best: Result, results: Sequence[Result], others: tuple[Candidate, ...] = ()) -> Result:
    """Add the frontier (the dense network and every candidate) to the plan of the best result."""
    model, plan = best
    if len(results) == 1 and not others:
        return best
    rows = [
        Candidate(each.macs_after, each.expected_drop_pp or 0.0, each.latency_after_ms, each is plan)
        for _, each in results
    ]
    dense = Candidate(plan.macs_before, 0.0, plan.latency_before_ms, chosen=False)
    return model, replace(plan, frontier=(dense, *others, *rows))
