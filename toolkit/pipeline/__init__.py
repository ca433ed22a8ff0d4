"""The main path: recipe, stages, runner and store."""

from edgeship.toolkit.pipeline.recipe import Recipe
from edgeship.toolkit.pipeline.runner import Run, run
from edgeship.toolkit.pipeline.store import Store

__all__ = ["Recipe", "Run", "Store", "run"]
