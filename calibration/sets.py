"""Choose between the train, val and test sets of a source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.paths import user_path

Use = Literal["train", "evaluate"]
_SETS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SPLITS = {"train": 5, "test": 5, "calibration": 2, "evaluation": 2}  # every n-th image is measured on


def split_part(source: str) -> str:
    """Return the ending of a source that is to be split, one of `SPLITS`; empty if it is not."""
    part = source.rpartition(":")[2]
    if part not in SPLITS or source in ("digits:train", "digits:test"):
        return ""
    return "" if user_path(source).exists() else part


def set_of(name: str) -> str:
    """Return the kind of set in a name: train, val or test; empty if there is none."""
    return _SETS.get(name.lower(), "")


def are_sets(names: Iterable[str]) -> bool:
    """Return True if folders are sets, not classes: they name two kinds of set."""
    return len({set_of(name) for name in names} - {""}) > 1


def choose_set(where: str, names: Iterable[str], use: Use | None, unlabelled: Iterable[str] = ()) -> str:
    """Choose a set by use: train; for evaluation test, or val if test has no labels.

    Args:
        where: Source of the sets, for the error.
        names: Names of the sets.
        use: Use of the images; None: not specified.
        unlabelled: Names of the sets without labels.

    Raises:
        DataError: The use is not specified, or not exactly one set fits it.
    """
    sets = sorted(name for name in names if set_of(name))
    fitting = [name for name in sets if set_of(name) == "train"]
    if use == "evaluate":
        usable = set(sets) - set(unlabelled) or set(sets)
        tests = [name for name in sets if set_of(name) == "test" and name in usable]
        fitting = tests or [name for name in sets if set_of(name) == "val" and name in usable]
    if use and len(fitting) == 1:
        return fitting[0]
    raise DataError(
        f"{where} holds several sets of images: {', '.join(sets)}",
        hint=f"name one set: {where}/{(fitting or sets)[0]}",
    )
