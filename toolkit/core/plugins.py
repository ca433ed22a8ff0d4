"""Find plug-ins: one file each, named by the file.

Besides the modules of a package such as `edgeship.targets`, these are plug-ins of it:

- entry points of installed distributions in the group `edgeship.targets` (`edgeship.observers`, ...):
  `NAME = "module"`;
- files `FOLDER/targets/NAME.py` (`FOLDER/observers/NAME.py`, ...) of the folders in the environment variable
  EDGESHIP_PLUGINS, separated as in PATH.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeship.toolkit.core.errors import RecipeError, nearest
from edgeship.toolkit.core.paths import user_path

FOLDERS = "EDGESHIP_PLUGINS"


def names(package: str) -> tuple[str, ...]:
    """Return the names of the plug-ins of a package, sorted, without import."""
    return tuple(sorted({*_modules(package), *outside(package)}))


def get(package: str, name: str, attribute: str) -> Any:
    """Import one plug-in and return its attribute.

    Raises:
        RecipeError: No plug-in of that name (the hint gives the nearest one), or it has no such attribute.
    """
    return attribute_of(module(package, name, names(package)), attribute)


def module(package: str, name: str, known: Collection[str]) -> ModuleType:
    """Import one plug-in of those `known`.

    Raises:
        RecipeError: No plug-in of that name (the hint gives the nearest one), or it cannot be loaded.
    """
    if name not in known:
        raise RecipeError(f"no {_kind(package).rstrip('s')} named '{name}'", hint=nearest(name, known))
    if name in _modules(package):
        return importlib.import_module(f"{package}.{name}")
    return _load(f"{package}.{name}", outside(package)[name])


def attribute_of(module: ModuleType, attribute: str) -> Any:
    """Return an attribute of a plug-in.

    Raises:
        RecipeError: It has no such attribute.
    """
    if not hasattr(module, attribute):
        raise RecipeError(f"plug-in {module.__file__} has no '{attribute}'", hint=f"define {attribute} in it")
    return getattr(module, attribute)


def outside(package: str) -> dict[str, Path]:
    """Return name -> file of the plug-ins from entry points and folders; a module of the package precedes."""
    files = {}
    for name, module in _entry_points(_kind(package)):
        with suppress(ImportError):
            spec = importlib.util.find_spec(module)
            if spec is not None and spec.origin is not None:
                files[name] = Path(spec.origin)
    for folder in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
        found = sorted((user_path(folder) / _kind(package)).glob("*.py"))
        files |= {file.stem: file.absolute() for file in found if not file.stem.startswith("_")}
    return files


def _kind(package: str) -> str:
    return package.rsplit(".", 1)[-1]


def _modules(package: str) -> list[str]:
    """Return the public modules of a package."""
    path = importlib.import_module(package).__path__
    return [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]


@cache
def _entry_points(kind: str) -> list[tuple[str, str]]:
    return [(point.name, point.value) for point in metadata.entry_points(group=f"edgeship.{kind}")]


def _load(name: str, file: Path) -> ModuleType:
    module = sys.modules.get(name)
    if module is not None and module.__file__ == str(file):
        return module
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "a file with the suffix .py"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        message = f"plug-in {file} cannot be loaded: {type(error).__name__}: {error}"
        raise RecipeError(message, hint=f"correct the file, or remove it from {FOLDERS}") from error
    return module
