"""Checks of output paths, before any work: they can be written, and nothing else is overwritten."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.paths import refusal, user_path


class OutPath(click.Path):
    """A path that can be written: the folder that exists nearest to it is checked at once."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path.

        Raises:
            RecipeError: It cannot be written.
        """
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if reason := refusal(path):
            raise RecipeError(
                f"--out {path} cannot be written: {reason}", hint="name another path with --out"
            )
        return path


def unused_folder(out: Path) -> Path:
    """Return the folder, or the first of NAME-2, NAME-3, ... that holds no files."""
    out = out.absolute() if out.name in ("", "..") else out
    for number in count(1):
        folder = out if number == 1 else out.with_name(f"{out.name}-{number}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            break
    return folder


def refuse_inputs(out: Path, *inputs: Path | str) -> None:
    """Raise if the output path is one of the inputs.

    Raises:
        RecipeError: `out` is one of the inputs.
    """
    target = user_path(out).resolve()
    if any(target == user_path(each).resolve() for each in inputs):
        raise RecipeError(
            f"--out {out} is an input of this command and would be overwritten",
            hint="name another file with --out",
        )


def refuse_other_network(folder: Path, *, last: str, source: str) -> None:
    """Raise if `folder` contains the input network, or a network that another command wrote.

    Args:
        folder: Output folder: receives model.safetensors, widths.json and `last`.
        last: File that only this command writes.
        source: Input of the command.

    Raises:
        RecipeError: `source` is in the folder, or the folder has some of the three files, but not all.
    """
    network = folder / "model.safetensors"
    source_path = user_path(source).resolve()
    present = [name for name in (network.name, "widths.json", last) if (folder / name).exists()]
    if source_path in (folder.resolve(), network.resolve()) or len(present) in (1, 2):
        raise RecipeError(
            f"{folder / present[0] if present else folder} would be overwritten; another command wrote it",
            hint="name another folder with --out",
        )
