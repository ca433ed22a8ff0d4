"""Find the engines in the folder that `edgeship run --out` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeship.toolkit.core.errors import DataError, missing, nearest

ENGINES = "engines"


def engine_of(path: Path, variant: str | None = None) -> Path:
    """Return the folder of an engine of a run, or the path itself if it is no run.

    Args:
        path: Folder of a run, or an engine.
        variant: Name of the variant; None: the first INT8 engine that runs on CPUs, OpenVINO's first.

    Raises:
        DataError: The run has no engines, or none of that name.
    """
    if not (path / "run.json").is_file():
        return path
    folders = {folder.name: folder for folder in sorted((path / ENGINES).glob("*/*")) if folder.is_dir()}
    if not folders:
        raise DataError(f"{path} has no engines", hint="run the recipe again, to its end, with this --out")
    usable = [name for name, folder in folders.items() if any(folder.glob("model.[xo]*"))]
    return folders[choose(path, tuple(folders), usable, variant)]


def choose(path: Path, variants: Sequence[str], usable: Sequence[str], variant: str | None = None) -> str:
    """Return the name of the engine to use of a run or a bundle.

    Args:
        path: Folder or file, for messages.
        variants: All its variants.
        usable: Those that run on this machine.
        variant: Name of the variant; None: the first INT8 engine that runs on CPUs, OpenVINO's first.

    Raises:
        DataError: There is none of that name, or none that runs here.
    """
    if variant is not None:
        if variant not in variants:
            raise missing(DataError(f"{path} has no variant {variant}", hint=nearest(variant, variants)))
        return variant
    if not usable:
        raise DataError(
            f"{path} has no engine for this machine, only {', '.join(variants)}",
            hint="run the recipe with --set compile.targets=openvino",
        )
    order = ("openvino-int8", "onnxruntime-int8", "openvino", "onnxruntime")
    ranks = {name: [*map(name.startswith, order), True].index(True) for name in usable}
    return min(usable, key=lambda name: (ranks[name], -len(name)))  # a pruned one has a longer name
