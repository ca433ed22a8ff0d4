"""Carrying a decision out: channels go, what stays is repaired, recalibrated where it helps, and judged."""

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
from edgeship.toolkit.prune.apply import shrink
from edgeship.toolkit.prune.checkpoints import State, States
from edgeship.toolkit.prune.plan import PruneOptions, PrunePlan
from edgeship.toolkit.prune.probe_images import Images, logits
from edgeship.toolkit.prune.ranking import Surveyed
from edgeship.toolkit.prune.reconstruction import Choice, Repair


@dataclass(frozen=True, slots=True)
class Decision:
    """What is decided before the repair.

    Attributes:
        streams: Place -> kept channels of the residual streams.
        surveyed: Rankings of the inner groups; where one is missing, the repair ranks.
        arch: The network to reach.
        latency: Fields of the plan that were measured on the way.
    """

    streams: Mapping[str, Tensor]
    surveyed: Mapping[str, Surveyed]
    arch: Architecture
    latency: Mapping[str, float] = field(default_factory=dict)


def carry_out(
    dense: ResNet, seen: Images, options: PruneOptions, decision: Decision, states: States
) -> tuple[ResNet, PrunePlan]:
    """Prune to the decided widths, repair, recalibrate where it helps, and judge.

    Args:
        dense: The dense network, in evaluation mode.
        seen: The images.
        options: How.
        decision: What goes.
        states: Where the state after every block is kept, and that of the finished network.

    Raises:
        ModelError: The goal asks for less than the network has, but steps are too large for that.
    """
    before, after = dense.architecture, decision.arch
    if after.widths == before.widths and any(
        g not in (None, 1.0) for g in (options.keep_ratio, options.macs_ratio)
    ):
        raise ModelError(
            f"{before.name} is as narrow as steps of {options.channel_multiple} channels allow",
            hint="set a smaller prune.channel_multiple or a lower goal",
        )
    dropped = {
        (s, b)
        for s, blocks in enumerate(after.widths.inner)
        for b, inner in enumerate(blocks)
        if not inner and before.widths.inner[s][b]
    }
    student = shrink(dense, decision.streams, dropped)
    small, repair = _repaired(dense, student, decision, seen, options, states)
    given = logits(small, seen.check)
    plan = PrunePlan(
        method=options.method,
        widths_before=before.widths,
        widths_after=small.architecture.widths,
        macs_before=macs(before, seen.size),
        macs_after=macs(small.architecture, seen.size),
        kept={
            name: tuple(indices.tolist()) for name, indices in {**decision.streams, **repair.chosen}.items()
        },
        dropped=tuple(f"layer{stage + 1}.{block}" for stage, block in sorted(dropped)),
        kl=kl_divergence(seen.reference, given),
        agreement=agreement(seen.reference, given),
        expected_drop_pp=expected_drop_pp(seen.reference, given),
        errors=repair.errors,
        warnings=seen.warnings,
        latency_before_ms=decision.latency.get("latency_before_ms"),
        latency_after_ms=decision.latency.get("latency_after_ms"),
        latency_predicted_ms=decision.latency.get("latency_predicted_ms"),
    )
    return small, plan


def expected_drop_pp(reference: FloatArray, other: FloatArray) -> float:
    """Estimated drop of accuracy in percentage points, without labels.

    The reference puts a probability on every class: the one of its own first class is the accuracy it
    expects of itself, the one of the other's first class what it expects of the other.

    Args:
        reference: Logits of the dense network (N, classes).
        other: Logits of the other (N, classes).
    """
    shifted = np.exp(reference.astype(np.float64) - reference.max(1, keepdims=True))
    probability = shifted / shifted.sum(1, keepdims=True)
    rows = np.arange(len(reference))
    lost = probability[rows, reference.argmax(1)] - probability[rows, other.argmax(1)]
    return float(100 * lost.mean())


def _repaired(
    dense: ResNet,
    student: ResNet,
    decision: Decision,
    seen: Images,
    options: PruneOptions,
    states: States,
) -> tuple[ResNet, Repair]:
    """The student narrowed, repaired and recalibrated; the state after every block is kept."""
    wanted = _wanted(dense, decision)
    state = states.of("repair", options, wanted, dict(decision.streams))
    found = state.load()
    if found is not None:  # as an interrupted pass left it
        student = shrink(student, found["kept"])
        student.load_state_dict(found["model"])
        student.eval()
    repair = Repair(
        dense,
        student,
        kept=decision.streams,
        choice=wanted,
        importance=importances.get(options.method),
        seed=options.seed,
    )
    done = 0
    if found is not None:
        repair.chosen, repair.errors, done = found["kept"], found["errors"], found["done"]
    if found is not None and found["finished"]:
        return student, repair
    small = repair.run(seen.fit, lambda done: _keep(state, repair, student, done), done=done).eval()
    small = _recalibrated(small, seen)
    _keep(state, repair, small, done, finished=True)
    return small, repair


def _keep(state: State, repair: Repair, model: ResNet, done: int, *, finished: bool = False) -> None:
    content: dict[str, Any] = {"kept": repair.chosen, "errors": repair.errors, "model": model.state_dict()}
    state.save({**content, "done": done, "finished": finished})


def _wanted(dense: ResNet, decision: Decision) -> Choice:
    """What every inner group that is to be narrowed keeps: the surveyed channels, or how many."""
    before, after = dense.architecture.widths, decision.arch.widths
    wanted: dict[str, Tensor | int] = {}
    for name, stage, block, _ in dense.blocks():
        pairs = zip(before.inner[stage][block], after.inner[stage][block], strict=False)  # or dropped
        for i, (old, new) in enumerate(pairs, 1):
            group = f"{name}.conv{i}"
            if new < old:
                ranked = decision.surveyed.get(group)
                wanted[group] = new if ranked is None else ranked.keep(new)
    return wanted


@torch.no_grad()
def _recalibrated(model: ResNet, seen: Images) -> ResNet:
    """With BatchNorm statistics of the images, if that brings the logits nearer to the dense ones."""
    other = copy.deepcopy(model)
    norms = [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean over all batches
        module.train()
    for batch in seen.fit:
        other(batch)
    for module in norms:
        module.momentum = 0.1
    other.eval()
    nearer = kl_divergence(seen.reference, logits(other, seen.check))
    return other if nearer < kl_divergence(seen.reference, logits(model, seen.check)) else model
