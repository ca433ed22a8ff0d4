"""Paths as users type them, and what may be written there."""

from __future__ import annotations

import os
import stat
import tempfile
from itertools import islice
from pathlib import Path

from edgeship.toolkit.core.errors import DataError

MOST_NAMES = 1000  # candidates for a hint


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return a path with its leading ~ or ~user expanded.

    Raises:
        DataError: It is no path, or the user has no home folder and no file has that name.
    """
    if not isinstance(text, (str, os.PathLike)):
        raise DataError(f"{text!r} is no path", hint="give a path as text")
    path = Path(os.path.expanduser(text))  # noqa: PTH111 (pathlib's raises RuntimeError)
    if str(path).startswith("~") and not os.path.lexists(path):
        raise DataError(f"{text}: no home folder of that name", hint="write the path in full")
    return path


def siblings(path: Path) -> list[str]:
    """Return names in the folder of a path, for a hint, without hidden ones; none where it cannot be read."""
    try:
        names = [entry.name for entry in islice(path.parent.iterdir(), MOST_NAMES)]
        return [name for name in names if not name.startswith(".")]
    except OSError:
        return []


def refusal(path: Path) -> str:
    """Return the reason why nothing may be written at a path, in words; empty if something may.

    Files and folders may be replaced. Links without a target, devices, pipes and sockets may not, nor paths
    that the system refuses. Links are looked at, not followed.
    """
    try:
        mode = path.stat().st_mode if path.exists() else 0
        if path.is_symlink() and not mode:
            return f"{path} is a link to nothing"
        if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return f"{path} is a device, a pipe or a socket"
        existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
        if existing != path.absolute() and not existing.is_dir():
            return f"{existing} is a file"
        folder = existing if existing.is_dir() else existing.parent  # a file is replaced, by a rename
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{error.strerror}"


def leads_outside(place: Path, folder: Path) -> bool:
    """Return True if a parent of a relative path in a folder is a link, so that the path is elsewhere."""
    return any((folder / parent).is_symlink() for parent in place.parents if parent != Path())
