"""Pruning from unlabelled images: survey, decide, carry out, and keep the best."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.models.resnet import ResNet, macs
from edgeship.toolkit.prune import channel_selection, importances, width_search
from edgeship.toolkit.prune.checkpoints import States
from edgeship.toolkit.prune.execute import Decision, carry_out
from edgeship.toolkit.prune.plan import Candidate, Measure, PruneOptions, PrunePlan
from edgeship.toolkit.prune.probe_images import Images, split
from edgeship.toolkit.prune.ranking import Surveyed, survey_inner

SEARCH_ROUNDS = 5
SEARCHED = (0.2, 1.0)  # parts of the multiply-accumulates between which a drop is searched

Result = tuple[ResNet, PrunePlan]


def prune(
    model: ResNet,
    images: Iterable[FloatArray],
    options: PruneOptions,
    measure: Measure | None = None,
    *,
    checkpoint: Path | None = None,
) -> Result:
    """Prune a network for a goal, from unlabelled images and without training.

    Args:
        model: The dense network; left as it is.
        images: Batches (N, C, H, W), preprocessed; 500 to 2,000 images are usual.
        options: The goal, and how.
        measure: Milliseconds of a network in INT8 on the device; needed for `target_latency`.
        checkpoint: Folder in which an interrupted pass leaves its state; the same call goes on from
            its last block.

    Returns:
        The pruned network, in evaluation mode, and what was done.

    Raises:
        ModelError: The goal cannot be met, brings less than 3 %, or nothing is left to prune.
        DataError: There are no images.
    """
    if options.method == "none":
        return model, unpruned(model)
    dense = copy.deepcopy(model).eval()
    seen = split(dense, images, mirror=options.flip_augment)
    states = States(checkpoint, dense, seen.fit.images)
    if options.keep_ratio is not None and options.scope == "block":
        narrow = width_search.uniform(dense.architecture, options.keep_ratio, options.channel_multiple)
        result = carry_out(dense, seen, options, Decision({}, {}, narrow), states)
    else:
        whole = options.scope == "residual"  # blocks stay as they are: nothing to know about them
        surveyed = {} if whole else _survey(dense, seen, options, states, probe=options.keep_ratio is None)
        known = channel_selection.Known(dense, seen, surveyed, options, measure)
        result = (_searched if options.max_expected_drop_pp is not None else _tried)(known, states)
    states.clear()
    return result


def family(
    model: ResNet,
    images: Iterable[FloatArray],
    parts: Sequence[float],
    options: PruneOptions,
    *,
    checkpoint: Path | None = None,
) -> list[Result]:
    """Nested networks from one survey: each keeps a subset of the channels of the wider ones.

    Args:
        model: The dense network; left as it is.
        images: Batches (N, C, H, W), preprocessed.
        parts: Of the inner channels that stay, e.g. (0.9, 0.75, 0.6, 0.5, 0.4).
        options: Method, step and seed; its goal is not used.
        checkpoint: As of `prune`; finished widths are not made again.

    Raises:
        DataError: There are no images.
    """
    dense = copy.deepcopy(model).eval()
    seen = split(dense, images, mirror=options.flip_augment)
    states = States(checkpoint, dense, seen.fit.images)
    surveyed = _survey(dense, seen, options, states, probe=False)
    found = []
    for part in track(sorted(parts, reverse=True), "pruning a family"):
        narrow = width_search.uniform(dense.architecture, part, options.channel_multiple)
        found.append(carry_out(dense, seen, options, Decision({}, surveyed, narrow), states))
    states.clear()
    return found


def unpruned(model: ResNet) -> PrunePlan:
    """The plan of a network that is passed on as it is."""
    arch = model.architecture
    count = macs(arch, 224)
    return PrunePlan("none", arch.widths, arch.widths, count, count)


def _survey(
    dense: ResNet, seen: Images, options: PruneOptions, states: States, *, probe: bool
) -> Mapping[str, Surveyed]:
    importance = importances.get(options.method)
    # the goal does not matter: where one cannot be met, the next begins with what is known
    state = states.of("survey", probe, options.method, options.flip_augment, options.seed)
    return survey_inner(dense, seen.fit, importance, probe=probe, state=state, seed=options.seed)


def _tried(known: channel_selection.Known, states: States) -> Result:
    """The decisions carried out in turn, until one is farther from the dense network than the last."""
    results: list[Result] = []
    for decision in channel_selection.decisions(known):
        results.append(carry_out(known.dense, known.seen, known.options, decision, states))
        if len(results) > 1 and _distance(results[-1]) >= _distance(results[-2]):
            break
    return _chosen(min(results, key=_distance), results)


def _searched(known: channel_selection.Known, states: States) -> Result:
    """The fewest multiply-accumulates whose expected drop stays within the limit, by bisection."""
    options = known.options
    limit, arch = options.max_expected_drop_pp or 0.0, known.arch
    low, high = SEARCHED
    results: list[Result] = []
    best: Result | None = None
    drops = channel_selection.drop_losses(known)
    for _ in range(SEARCH_ROUNDS):
        part = (low + high) / 2
        try:
            found = width_search.for_macs(
                arch, known.surveyed, drops, part, size=known.seen.size, step=options.channel_multiple
            )
        except ModelError:
            low = part
            continue
        decision = Decision({}, known.surveyed, found.arch)
        results.append(carry_out(known.dense, known.seen, options, decision, states))
        if (results[-1][1].expected_drop_pp or 0.0) <= limit:
            best, high = results[-1], part
        else:
            low = part
    if best is None:
        raise ModelError(
            f"no pruning of {arch.name} has an expected drop within {limit} pp",
            hint="raise prune.max_expected_drop_pp, give more images, or fine-tune afterwards",
        )
    return _chosen(best, results)


def _distance(result: Result) -> float:
    return result[1].kl or 0.0


def _chosen(best: Result, results: Sequence[Result]) -> Result:
    """The best one, its plan telling of the others and of the dense network: the frontier."""
    model, plan = best
    if len(results) == 1:
        return best
    rows = [
        Candidate(each.macs_after, each.expected_drop_pp or 0.0, each.latency_after_ms, each is plan)
        for _, each in results
    ]
    dense = Candidate(plan.macs_before, 0.0, plan.latency_before_ms, chosen=False)
    return model, replace(plan, frontier=(dense, *rows))
