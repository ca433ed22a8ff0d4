"""Structured pruning that pays in milliseconds: unlabelled images in, a smaller ResNet out."""

from __future__ import annotations

from toolkit.prune.carried import expected_drop_pp
from toolkit.prune.finetune import DistillOptions, distill
from toolkit.prune.plan import Candidate, Measure, PruneOptions, PrunePlan
from toolkit.prune.pruner import family, prune, unpruned
from toolkit.prune.sparsity import SparsityAdvice, advise, sparsify

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
