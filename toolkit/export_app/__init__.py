"""Generate applications of a run: services, pipelines and programs that use its engine.

A kind of application is one file in `kinds`, named after it, with

    TARGETS   targets that it can use, the preferred one first
    SUMMARY   one line for the README
    write(source, folder) -> Readme    write its files
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.export_app import programs

if TYPE_CHECKING:
    from edgeship.toolkit.export_app.source import Source


@dataclass(frozen=True, slots=True)
class Readme:
    """Text of a README.

    Attributes:
        start: Commands that start the application, for a shell.
        text: Paragraphs.
        checked: Checks of these files, and the document that their form follows.
        pixels: Preprocessing in words; empty: that of the engine.
    """

    start: str
    text: tuple[str, ...]
    checked: str
    pixels: str = ""


@dataclass(frozen=True, slots=True)
class Exported:
    """Folder that was written, the variant in it, the names of the files, and the commands that start it."""

    folder: Path
    variant: str
    files: tuple[str, ...]
    start: str


def names() -> list[str]:
    """Return the names of the kinds."""
    files = (Path(__file__).parent / "kinds").glob("[!_]*.py")
    return sorted(file.stem.replace("_", "-") for file in files)


def kind_module(kind: str) -> Any:
    """Return the module of a kind."""
    return importlib.import_module(f"edgeship.toolkit.export_app.kinds.{kind.replace('-', '_')}")


def write(run: Path, kind: str, out: Path, variant: str | None = None) -> Exported:
    """Write the folder of an application; it appears when it is complete.

    Args:
        run: Folder of the run.
        kind: One of `names()`.
        out: Folder to make; it must not exist, or be empty.
        variant: Variant of the run; None: an INT8 engine that the application can use.

    Raises:
        DataError: `out` has something in it, or the run has no engine for it.
        ModelError: The graph has no form for it.
    """
    from edgeship.toolkit.core.artifact import write_text
    from edgeship.toolkit.export_app import source

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder", hint="choose another --out, or remove it")
    module = kind_module(kind)
    engine = source.read(run, module.TARGETS, variant)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        folder = Path(scratch) / "app"
        folder.mkdir()
        readme: Readme = module.write(engine, folder)
        write_text(folder / "README.md", _readme(engine, kind, module.SUMMARY, readme))
        if out.exists():
            out.rmdir()
        shutil.move(str(folder), str(out))
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return Exported(out, engine.variant.name, tuple(files), readme.start)


def program(name: str) -> str:
    """Return the text of a program that is copied as it is."""
    return (Path(programs.__file__).parent / name).read_text(encoding="utf-8")


def _readme(engine: Source, kind: str, summary: str, readme: Readme) -> str:
    parts = [
        f"# {engine.name}: {kind}",
        f"{summary[0].upper()}{summary[1:]}.",
        f"`{engine.variant.name}` with {len(engine.how.labels)} classes, written by `edgeship export-app`.",
        f"```sh\n{readme.start}\n```",
        *readme.text,
        f"Preprocessing: {readme.pixels or engine.pixels}",
        f"Checked: {readme.checked}",
    ]
    return "\n\n".join(parts) + "\n"
