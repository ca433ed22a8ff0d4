"""Application of a pruning decision: remove channels, refit weights, recalibrate BatchNorm, evaluate."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.statistics import agreement, kl_divergence
from edgeship.toolkit.models.resnet import Architecture, ResNet, macs
from edgeship.toolkit.prune import importances
from edgeship.toolkit.prune.apply import dropped, restrided, shrink
from edgeship.toolkit.prune.checkpoints import Checkpoint, Checkpoints
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.plan import Candidate, PrunePlan
from edgeship.toolkit.prune.probe_images import Images, logits
from edgeship.toolkit.prune.ranking import GroupSensitivity
from edgeship.toolkit.prune.reconstruction import Choice, Reconstruction


@dataclass(frozen=True, slots=True)
class Decision:
    """Widths and channels chosen before the refit.

    Attributes:
        streams: Place -> kept channels of the residual streams.
        sensitivities: Rankings of the inner groups; a missing one is computed during the refit.
        arch: Target architecture.
        latency: Latency fields of the plan measured so far.
        warnings: Warnings for the user.
        frontier: Networks that meet other goals.
    """

    streams: Mapping[str, Tensor]
    sensitivities: Mapping[str, GroupSensitivity]
    arch: Architecture
    latency: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    frontier: tuple[Candidate, ...] = ()


def apply_decision(
    dense: ResNet, probes: Images, options: PruneOptions, decision: Decision, states: Checkpoints
) -> tuple[ResNet, PrunePlan]:
    """Prune to the decided widths, refit, recalibrate if that lowers the divergence, and evaluate.

    Args:
        dense: The dense network, in evaluation mode.
        probes: The images.
        options: Method and seed.
        decision: Target widths and kept channels.
        states: Checkpoints after every block and of the finished network.

    Raises:
        ModelError: The step is too large to make the network smaller.
    """
    before, after = dense.architecture, decision.arch
    if after.widths == before.widths and any(
        g not in (None, 1.0) for g in (options.keep_ratio, options.macs_ratio)
    ):
        raise ModelError(
            f"{before.name} is as narrow as steps of {options.channel_multiple} channels allow",
            hint="set a smaller prune.channel_multiple or a lower goal",
        )
    gone = dropped(before, after)
    student = restrided(shrink(dense, decision.streams, gone), after.stem_strides)
    small, repair = _refitted(dense, student, decision, probes, options, states)
    pruned_logits = logits(small, probes.check)
    plan = PrunePlan(
        method=options.method,
        widths_before=before.widths,
        widths_after=small.architecture.widths,
        macs_before=macs(before, probes.size),
        macs_after=macs(small.architecture, probes.size),
        kept={
            name: tuple(indices.tolist()) for name, indices in {**decision.streams, **repair.chosen}.items()
        },
        dropped=tuple(f"layer{stage + 1}.{block}" for stage, block in sorted(gone)),
        stem_strides=after.stem_strides,
        kl=kl_divergence(probes.reference, pruned_logits),
        agreement=agreement(probes.reference, pruned_logits),
        expected_drop_pp=expected_drop_pp(probes.reference, pruned_logits),
        errors=repair.errors,
        warnings=probes.warnings + decision.warnings,
        latency_before_ms=decision.latency.get("latency_before_ms"),
        latency_after_ms=decision.latency.get("latency_after_ms"),
        latency_predicted_ms=decision.latency.get("latency_predicted_ms"),
    )
    return small, plan


def expected_drop_pp(reference: FloatArray, other: FloatArray) -> float:
    """Estimate the accuracy drop in percentage points, without labels.

    It is the mean difference of the reference's probabilities of its own top-1 class (its expected
    accuracy) and of the other network's top-1 class (the other's expected accuracy).

    Args:
        reference: Logits of the dense network (N, classes).
        other: Logits of the other network (N, classes).
    """
    shifted = np.exp(reference.astype(np.float64) - reference.max(1, keepdims=True))
    probability = shifted / shifted.sum(1, keepdims=True)
    rows = np.arange(len(reference))
    lost = probability[rows, reference.argmax(1)] - probability[rows, other.argmax(1)]
    return float(100 * lost.mean())


def _refitted(
    dense: ResNet,
    student: ResNet,
    decision: Decision,
    probes: Images,
    options: PruneOptions,
    states: Checkpoints,
) -> tuple[ResNet, Reconstruction]:
    """Narrow, refit and recalibrate the student; save a checkpoint after every block."""
    choice = inner_choice(dense, decision.arch, decision.sensitivities)
    state = states.of("repair", options, choice, dict(decision.streams), student.architecture.steps)
    checkpoint = state.load()
    if checkpoint is not None:  # of an interrupted pass
        student = shrink(student, checkpoint["kept"])
        student.load_state_dict(checkpoint["model"])
        student.eval()
    repair = Reconstruction(
        dense,
        student,
        kept=decision.streams,
        choice=choice,
        importance=importances.get(options.method),
        seed=options.seed,
    )
    done = 0
    if checkpoint is not None:
        repair.chosen, repair.errors, done = checkpoint["kept"], checkpoint["errors"], checkpoint["done"]
    if checkpoint is not None and checkpoint["finished"]:
        return student, repair
    small = repair.run(probes.fit, lambda done: _save(state, repair, student, done), done=done).eval()
    small = recalibrated(small, probes)
    _save(state, repair, small, done, finished=True)
    return small, repair


def _save(
    state: Checkpoint, repair: Reconstruction, model: ResNet, done: int, *, finished: bool = False
) -> None:
    content: dict[str, Any] = {"kept": repair.chosen, "errors": repair.errors, "model": model.state_dict()}
    state.save({**content, "done": done, "finished": finished})


def inner_choice(dense: ResNet, arch: Architecture, sensitivities: Mapping[str, GroupSensitivity]) -> Choice:
    """Return the channels, or their number without a ranking, that every narrowed inner group keeps."""
    before, after = dense.architecture.widths, arch.widths
    choice: dict[str, Tensor | int] = {}
    for name, stage, block, _ in dense.blocks():
        pairs = zip(before.inner[stage][block], after.inner[stage][block], strict=False)  # or dropped
        for i, (old, new) in enumerate(pairs, 1):
            group = f"{name}.conv{i}"
            if new < old:
                sensitivity = sensitivities.get(group)
                choice[group] = new if sensitivity is None else sensitivity.keep(new)
    return choice


@torch.no_grad()
def recalibrated(model: ResNet, probes: Images) -> ResNet:
    """Re-estimate BatchNorm statistics on the images if that lowers the KL divergence."""
    candidate = copy.deepcopy(model)
    norms = [module for module in candidate.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # cumulative average over all batches
        module.train()
    for batch in probes.fit:
        candidate(batch)
    for module in norms:
        module.momentum = 0.1
    candidate.eval()
    divergence = kl_divergence(probes.reference, logits(candidate, probes.check))
    return candidate if divergence < kl_divergence(probes.reference, logits(model, probes.check)) else model
