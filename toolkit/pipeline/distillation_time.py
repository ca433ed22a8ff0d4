"""Hand the time budget of a run on from the prune to the finetune stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeship.toolkit.core.artifact import read_json

if TYPE_CHECKING:
    from edgeship.toolkit.pipeline.recipe import Recipe
    from edgeship.toolkit.prune.time_budget import TimeBudget

CLOCK = "clock.json"  # elapsed seconds of the time budget, written by the prune stage
SCHEME = "scheme.json"  # `QuantScheme` of the target; so finetune does not depend on the targets' code
LEAST = 0.05  # part of a time budget below which distillation is left out


def time_budget(recipe: Recipe, file: Path, used_s: float = 0.0) -> TimeBudget | None:
    """Return the time budget of pruning and distillation, with its state in a file; None: no limit."""
    from edgeship.toolkit.prune.time_budget import TimeBudget

    limit_s = recipe.prune.budget_s
    return None if limit_s is None else TimeBudget(limit_s, file, used_s=used_s)


def distills(recipe: Recipe, pruned: Path) -> bool:
    """Return True if there are epochs, or enough of a time budget is left, for a distillation."""
    if recipe.prune.budget_s is None:
        return recipe.finetune.epochs > 0
    left_s = recipe.prune.budget_s - float(read_json(pruned / CLOCK))
    return left_s > LEAST * recipe.prune.budget_s
