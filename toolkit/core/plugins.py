"""Find plug-ins: one file each, named by the file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection
from typing import Any

from edgeship.toolkit.core.errors import RecipeError, nearest


def names(package: str) -> tuple[str, ...]:
    """Return the plug-ins of a package, its public modules, sorted, without import."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))


def get(package: str, name: str, attribute: str, known: Collection[str] | None = None) -> Any:
    """Import one plug-in and return its attribute.

    Args:
        package: Dotted name of the package.
        name: Name of the plug-in.
        attribute: Attribute to return.
        known: Plug-ins with the attribute; None: all.

    Raises:
        RecipeError: No file of that name; the hint gives the nearest one.
    """
    known = names(package) if known is None else known
    if name not in known:
        kind = package.rsplit(".", 1)[-1].rstrip("s")
        raise RecipeError(f"no {kind} named '{name}'", hint=nearest(name, known))
    return getattr(importlib.import_module(f"{package}.{name}"), attribute)
