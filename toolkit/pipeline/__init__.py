"""The main path: recipe, stages, runner and store."""
