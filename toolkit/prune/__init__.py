"""Structured pruning that pays in milliseconds: unlabelled images in, a smaller ResNet out."""

from __future__ import annotations

from toolkit.prune.plan import Measure, PruneOptions, PrunePlan
from toolkit.prune.pruner import expected_drop_pp, family, prune, unpruned

__all__ = ["Measure", "PruneOptions", "PrunePlan", "expected_drop_pp", "family", "prune", "unpruned"]
