"""Sets of images side by side (train, val, test), and which of them a task takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from edgeship.toolkit.core.errors import DataError

Use = Literal["train", "evaluate"]
_SETS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def set_of(name: str) -> str:
    """The kind of set that a name speaks of: train, val or test; empty without."""
    return _SETS.get(name.lower(), "")


def are_sets(names: Iterable[str]) -> bool:
    """Whether folders are sets of images, not classes: two kinds of set are among them."""
    return len({set_of(name) for name in names} - {""}) > 1


def choose_set(where: str, names: Iterable[str], use: Use | None, unlabelled: Iterable[str] = ()) -> str:
    """Choose a set by what the images are for: train, or to evaluate test, or val where test lacks labels.

    Args:
        where: What holds the sets, for the error.
        names: Their names.
        use: What the images are for; None leaves it open.
        unlabelled: Those of them without labels.

    Raises:
        DataError: The use is open, no set is for it, or several are.
    """
    sets = sorted(name for name in names if set_of(name))
    ours = [name for name in sets if set_of(name) == "train"]
    if use == "evaluate":
        fit = set(sets) - set(unlabelled) or set(sets)
        tests = [name for name in sets if set_of(name) == "test" and name in fit]
        ours = tests or [name for name in sets if set_of(name) == "val" and name in fit]
    if use and len(ours) == 1:
        return ours[0]
    raise DataError(
        f"{where} holds several sets of images: {', '.join(sets)}",
        hint=f"give one of them: {where}/{(ours or sets)[0]}",
    )
