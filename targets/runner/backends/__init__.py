"""Backends of the runner: one file each, named like its target."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from ..backend import Backend
from ..failures import Failure

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str, sdk: str | None = None) -> Backend:
    """Return the backend of that name, its SDK imported.

    Args:
        name: One of NAMES.
        sdk: Module to import in place of `tensorrt`.

    Raises:
        ImportError, Failure: The SDK is absent or too old.
    """
    if name not in NAMES:
        raise Failure("backend-unknown", f"no backend named {name}", "the name is misspelt", ", ".join(NAMES))
    module: Any = importlib.import_module(f".{name}", __package__)
    backend: Backend = module.load(sdk)
    return backend
