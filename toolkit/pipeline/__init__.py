"""The main path: recipe, stages, runner and store."""

from toolkit.pipeline.recipe import Recipe
from toolkit.pipeline.runner import Run, run
from toolkit.pipeline.store import Store

__all__ = ["Recipe", "Run", "Store", "run"]
