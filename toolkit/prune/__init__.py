"""Structured pruning that pays in milliseconds: unlabelled images in, a smaller ResNet out."""

from __future__ import annotations

from edgeship.toolkit.prune.execute import expected_drop_pp
from edgeship.toolkit.prune.finetune import DistillOptions, distill
from edgeship.toolkit.prune.plan import Candidate, Measure, PruneOptions, PrunePlan
from edgeship.toolkit.prune.pruner import family, prune, unpruned
from edgeship.toolkit.prune.sparsity import SparsityAdvice, advise, sparsify

__all__ = [
    "Candidate",
    "DistillOptions",
    "Measure",
    "PruneOptions",
    "PrunePlan",
    "SparsityAdvice",
    "advise",
    "distill",
    "expected_drop_pp",
    "family",
    "prune",
    "sparsify",
    "unpruned",
]
