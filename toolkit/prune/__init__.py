"""Structured pruning of ResNets for latency, from unlabelled images."""

from __future__ import annotations

from edgeship.toolkit.prune.execute import expected_drop_pp
from edgeship.toolkit.prune.finetune import DistillOptions, distill
from edgeship.toolkit.prune.plan import Candidate, Measure, PruneOptions, PrunePlan
from edgeship.toolkit.prune.pruner import identity_plan, prune

__all__ = [
    "Candidate",
    "DistillOptions",
    "Measure",
    "PruneOptions",
    "PrunePlan",
    "distill",
    "expected_drop_pp",
    "identity_plan",
    "prune",
]
