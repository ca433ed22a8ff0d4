"""The main path: recipe, stages, runner and store."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeship.toolkit.pipeline.recipe import Recipe
    from edgeship.toolkit.pipeline.runner import Run, run
    from edgeship.toolkit.pipeline.store import Store

__all__ = ["Recipe", "Run", "Store", "run"]
_MODULES = {"Recipe": "recipe", "Run": "runner", "Store": "store", "run": "runner"}


def __getattr__(name: str) -> Any:
    """Import on first use: the help of a command reads options only, without any SDK."""
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
