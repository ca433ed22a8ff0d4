"""Errors that a user can cause and correct.

ToolkitError                   exit 1
  RecipeError                  exit 2   recipe file or option
  DataError                             images, manifests, checkpoints
  ModelError                            a graph we cannot prune, export or fold
  QuantizationError                     a tensor that cannot be quantized as asked
  TargetError                           driver or SDK
  DeviceError                           a device that cannot be reached, or refuses
  GateError                    exit 3   finished, but a gate was missed (the report is written)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

from edgeship.toolkit.core.text import printable


class ToolkitError(Exception):
    """A failure that the user can act on.

    Args:
        message: The failure, with file, tensor or option, value seen and value expected.
        hint: One command or setting; printed on a second line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(printable(message, LONGEST))
        self.hint = printable(hint, LONGEST)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.hint)  # keyword-only arguments do not pickle


class RecipeError(ToolkitError):
    """A recipe file or option that cannot be used."""

    exit_code = 2


class DataError(ToolkitError):
    """Images, manifests or checkpoints that cannot be used."""


class ModelError(ToolkitError):
    """A model or graph that cannot be pruned, exported or folded."""


class QuantizationError(ToolkitError):
    """A tensor that cannot be quantized as asked."""


class TargetError(ToolkitError):
    """A runtime, driver or SDK that is missing or refuses the graph."""


class DeviceError(ToolkitError):
    """A device that cannot be reached, or refuses."""


class GateError(ToolkitError):
    """The run finished and its report is written, but a gate was missed."""

    exit_code = 3


LONGEST = 2000  # characters of a message
LISTED = 40  # names in a hint; a folder may have thousands


E = TypeVar("E", bound=ToolkitError)


def missing(error: E) -> E:
    """Return the error of a path or a name that does not exist as one of wrong usage, exit code 2."""
    error.exit_code = RecipeError.exit_code
    return error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint for a misspelt name: the nearest known name, or all of them."""
    names = sorted(known)
    matches = difflib.get_close_matches(str(name)[:255], names, n=1, cutoff=0.6)
    if matches:
        return f"did you mean '{matches[0]}'?"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"known: {', '.join(names[:LISTED])}{more}"


def _rebuild(kind: type[ToolkitError], message: str, hint: str) -> ToolkitError:
    return kind(message, hint=hint)
