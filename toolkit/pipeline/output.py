"""What a run leaves for people: the folder of `--out`, and run.json that says where everything is.

report.md, report.html, junit.xml   copies of the report stage
predictions.npz                     first class of every image and variant, for `edgeship compare`
report.json                         the same, with the stages as in this run: seconds, and whether cached
engines/<target>/<variant>/         engines, and the Q/DQ graph each was built from
run.json                            schema, recipe, command, stages [{name, folder, digest, seconds, cached}]
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from toolkit.core.artifact import canonical_json, plain, read_json, write_json
from toolkit.core.errors import DataError, ToolkitError
from toolkit.pipeline.recipe import Recipe

SCHEMA = 1
REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class StageResult:
    """One stage of a run: where its files are, and what it cost.

    Attributes:
        name: Name of the stage.
        folder: Its files in the store; never to be written to.
        digest: Content digest of the folder.
        seconds: How long the work took when it was done.
        cached: Whether it had been done before this run.
    """

    name: str
    folder: Path
    digest: str
    seconds: float
    cached: bool


def describe(recipe: Recipe, stages: tuple[StageResult, ...]) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "schema": SCHEMA,
        "recipe": plain(recipe.resolved()),
        "command": command(recipe),
        "stages": [{**plain(stage), "folder": str(stage.folder)} for stage in stages],
    }


def command(recipe: Recipe) -> str | None:
    """The command line that runs a recipe again; None of a recipe that was made in Python."""
    if not recipe.name:
        return None
    changed = _differences(recipe, Recipe.read(recipe.name))
    return shlex.join(
        ["edgeship", "run", recipe.name, *(part for text in changed for part in ("--set", text))]
    )


def _differences(options: Any, default: Any, section: str = "") -> list[str]:
    """`section.key=value` of every option that is not as the default has it."""
    found = []
    for each in fields(options):
        value, usual = getattr(options, each.name), getattr(default, each.name)
        if is_dataclass(value):
            found += _differences(value, usual, f"{section}{each.name}.")
        elif value != usual:
            text = value if isinstance(value, str) else "none" if value is None else canonical_json(value)
            found.append(f"{section}{each.name}={text}")
    return found


def publish(recipe: Recipe, stages: tuple[StageResult, ...], out: Path) -> None:
    """Put what people want of a run into a folder: all of it or, on failure, nothing; stale engines go.

    Raises:
        ToolkitError: The folder cannot be written to.
    """
    folders = {stage.name: stage.folder for stage in stages}
    wanted = _wanted(folders)
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=out) as name:
            incoming = Path(name)
            changed = [place for place, file in wanted.items() if not _same(file, out / place)]
            for place in changed:
                (incoming / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(wanted[place], incoming / place)
            written = {Path("run.json"): describe(recipe, stages)}
            if report := folders.get("report"):
                written[Path(REPORT)] = read_report(report, stages)
            for place, content in written.items():
                write_json(incoming / place, content)
            for place in (*changed, *written):  # renames need no room: from here on nothing fails
                (out / place).parent.mkdir(parents=True, exist_ok=True)
                (incoming / place).replace(out / place)
        _remove_stale(out, wanted)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ToolkitError(
            f"cannot write to {error.filename or out}: {error.strerror}",
            hint="name another folder with --out",
        ) from error
    finally:
        if new and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def read_report(folder: Path, stages: tuple[StageResult, ...]) -> dict[str, Any]:
    """The content of report.json, with the stages as in this run: a report that was kept tells of its own."""
    report: dict[str, Any] = read_json(folder / REPORT)
    told = [{"name": each.name, "seconds": each.seconds, "cached": each.cached} for each in stages]
    return {**report, "stages": told}


def _wanted(folders: Mapping[str, Path]) -> dict[Path, Path]:
    """Place in the folder -> file in the store."""
    from toolkit.pipeline.variants import built_of, runnable

    found: dict[Path, Path] = {}
    if report := folders.get("report"):
        pages = [file for file in report.rglob("*") if file.is_file() and file.name != REPORT]
        found |= {file.relative_to(report): file for file in pages}
    if compiled := folders.get("compile"):
        for variant, record in runnable(folders).items():
            place, folder = Path("engines") / variant.target / variant.name, compiled / record["folder"]
            files = {place / file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
            if not any(file.suffix == ".onnx" for file in files):
                files[place / "graph.onnx"] = built_of(variant, record, folders)
            found |= files
    return found


def _remove_stale(out: Path, wanted: Mapping[Path, Path]) -> None:
    for old in sorted((out / "engines").rglob("*"), reverse=True):
        if old.is_dir():
            if not any(old.iterdir()):
                old.rmdir()
        elif old.relative_to(out) not in wanted:
            old.unlink()


def _same(source: Path, target: Path) -> bool:
    """Whether a file was copied here before: size and time are those of its source."""
    if not target.is_file():
        return False
    there, here = target.stat(), source.stat()
    return (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns)


def read_run(out: Path) -> dict[str, Any]:
    """Read the run.json of an `--out` folder.

    Raises:
        DataError: There is none, or it is of another version.
    """
    found: dict[str, Any] = read_json(out / "run.json")
    if found.get("schema") != SCHEMA:
        raise DataError(
            f"{out / 'run.json'} has schema {found.get('schema')}, not {SCHEMA}", hint="run the recipe again"
        )
    return found
