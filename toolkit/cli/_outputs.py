"""Checks of output paths: no input and no other command's network is overwritten."""

from __future__ import annotations

from pathlib import Path

from edgeship.toolkit.core.errors import RecipeError


def refuse_inputs(out: Path, *inputs: Path | str) -> None:
    """Raise if the output path is one of the inputs.

    Raises:
        RecipeError: `out` is one of the inputs.
    """
    target = out.expanduser().resolve()
    if any(target == Path(each).expanduser().resolve() for each in inputs):
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
    source_path = Path(source).expanduser().resolve()
    present = [name for name in (network.name, "widths.json", last) if (folder / name).exists()]
    if source_path in (folder.resolve(), network.resolve()) or len(present) in (1, 2):
        raise RecipeError(
            f"{folder / present[0] if present else folder} would be overwritten; another command wrote it",
            hint="name another folder with --out",
        )
