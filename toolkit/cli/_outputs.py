"""Places that commands write to: never an input, never a network that another command has made."""

from __future__ import annotations

from pathlib import Path

from edgeship.toolkit.core.errors import RecipeError


def refuse_inputs(out: Path, *inputs: Path | str) -> None:
    """Refuse to write over what is read.

    Raises:
        RecipeError: `out` is one of the inputs.
    """
    place = out.expanduser().resolve()
    if any(place == Path(each).expanduser().resolve() for each in inputs):
        raise RecipeError(
            f"--out {out} is an input of this command and would be overwritten",
            hint="name another file with --out",
        )


def refuse_other_network(folder: Path, *, last: str, source: str) -> None:
    """Refuse a folder whose network is the source of the command, or was not made by it.

    Args:
        folder: Where the command writes model.safetensors, widths.json and `last`.
        last: What tells this command's networks from others.
        source: What it reads.

    Raises:
        RecipeError: The folder holds some of these files, but not all.
    """
    network = folder / "model.safetensors"
    read = Path(source).expanduser().resolve()
    there = [name for name in (network.name, "widths.json", last) if (folder / name).exists()]
    if read in (folder.resolve(), network.resolve()) or len(there) in (1, 2):
        raise RecipeError(
            f"{folder / there[0] if there else folder} would be overwritten; this command did not make it",
            hint="name another folder with --out",
        )
