"""Publish the results of a run in the folder of `--out`, with run.json as index.

recipe.toml                         the recipe: `edgeship run OUT/recipe.toml` gives the same result
report.md, report.html, junit.xml   copies of the report stage
predictions.npz                     first class of every image and variant, for `edgeship compare`
report.json                         the report, with seconds and cache state of the stages of this run
engines/<target>/<variant>/         engines, and the Q/DQ graph of each, annotated (`runs.annotations`);
                                    of a guarded variant INT8, guard.json and reference/, the second engine
engines/model.json, labels.txt      preprocessing and class names, for applications
run.json                            `RunIndex`; files it does not list are never overwritten or removed
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from edgeship.targets.runner.guard_record import FILE as GUARD
from edgeship.targets.runner.guard_record import REFERENCE as REFERENCE_FOLDER
from edgeship.toolkit.core.artifact import canonical_json, plain, read_json, write_json, write_text
from edgeship.toolkit.core.errors import DataError, RecipeError, ToolkitError
from edgeship.toolkit.core.paths import leads_outside, refusal
from edgeship.toolkit.pipeline.model_recipe import RECIPE, recipe_of
from edgeship.toolkit.pipeline.recipe import Recipe, as_toml
from edgeship.toolkit.runs.annotations import ANNOTATED, annotate
from edgeship.toolkit.runs.compiled import CompiledVariant, CompiledVariants, graph_file, published_folder
from edgeship.toolkit.runs.description import DESCRIPTION, LABELS, description, labels_text, stored_monitor
from edgeship.toolkit.runs.guarded import Guards, fast, reference
from edgeship.toolkit.runs.index import RunIndex, StageResult
from edgeship.toolkit.runs.measured import Accuracies
from edgeship.toolkit.runs.network import ModelInfo
from edgeship.toolkit.runs.variant_id import REFERENCE, VariantId

RUN, REPORT = Path(RunIndex.FILE), "report.json"
PAGES = tuple(Path(name) for name in (REPORT, "report.md", "report.html", "junit.xml", "predictions.npz"))
ENGINES = Path("engines")
INCOMING = ".incoming-"  # begins the name of the folder of files to publish; the process number follows


def describe(recipe: Recipe, stages: tuple[StageResult, ...]) -> RunIndex:
    """Return the content of run.json."""
    return RunIndex(1, plain(recipe), command(recipe), stages)


def command(recipe: Recipe) -> str | None:
    """Return the command line that runs a recipe again; None for a recipe built in Python."""
    if not recipe.name:
        return None
    changed = _differences(recipe, recipe_of(recipe.name))
    return shlex.join(
        ["edgeship", "run", recipe.name, *(part for text in changed for part in ("--set", text))]
    )


def _differences(options: Any, default: Any, section: str = "") -> list[str]:
    """Return `section.key=value` of every option that differs from the default."""
    changes = []
    for each in fields(options):
        value, usual = getattr(options, each.name), getattr(default, each.name)
        if is_dataclass(value):
            changes += _differences(value, usual, f"{section}{each.name}.")
        elif value != usual:
            text = value if isinstance(value, str) else "none" if value is None else canonical_json(value)
            changes.append(f"{section}{each.name}={text}")
    return changes


def check_overwrite(recipe: Recipe, stages: Collection[str], out: Path) -> None:
    """Raise if a run of these stages would overwrite files that no run has written.

    Raises:
        RecipeError: The folder cannot be written to, its engines are elsewhere, or a file with the name of an
            output exists; other files may stay.
    """
    if reason := refusal(out):
        raise RecipeError(f"--out {out} cannot be written: {reason}", hint="name another folder with --out")
    engines = out / ENGINES
    for place in (engines, *engines.glob("*"), *engines.glob("*/*")):
        _refuse_link(place.relative_to(out) / RUN, out)
    owned = _owned(out)
    claimed = [RUN, Path(RECIPE), *(PAGES if "report" in stages else ())]
    if "compile" in stages and not owned:  # else run.json lists the engines
        for target in (*recipe.compile.targets, REFERENCE.target):
            files = sorted((out / ENGINES / target).glob(f"{target}-*/*"))
            claimed += [file.relative_to(out) for file in files]
        claimed += [ENGINES] if (out / ENGINES).is_file() else [ENGINES / DESCRIPTION, ENGINES / LABELS]
    _refuse_foreign(claimed, owned, out)


def publish(recipe: Recipe, stages: tuple[StageResult, ...], out: Path) -> None:
    """Copy reports and engines into a folder, all or, on failure, none; remove engines of earlier runs.

    Raises:
        RecipeError: An output would overwrite a file that no run has written.
        ToolkitError: The folder cannot be written to.
    """
    folders = {stage.name: stage.folder for stage in stages}
    outputs = _outputs(folders)
    written: dict[Path, object] = {
        Path(RECIPE): f"# {command(recipe) or 'edgeship.run'}\n\n{as_toml(recipe)}"
    }
    if "report" in folders:
        written[Path(REPORT)] = read_report(folders["report"], stages)
    described = _description(folders) if "compile" in folders else None
    if described is not None:
        written |= {ENGINES / DESCRIPTION: described, ENGINES / LABELS: labels_text(described)}
    new, owned = not out.exists(), _owned(out)
    _refuse_foreign((RUN, *outputs, *written), owned, out)
    stale = {place for place in owned - {*outputs} if ENGINES in place.parents}
    files = sorted({RUN, *outputs, *written, *(owned - stale)})
    index = replace(describe(recipe, stages), files=tuple(file.as_posix() for file in files))
    written = {RUN: index, **written}
    try:
        out.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        with tempfile.TemporaryDirectory(prefix=f"{INCOMING}{os.getpid()}-", dir=out) as name:
            incoming = Path(name)
            changed = [place for place, file in outputs.items() if not _same(file, out / place)]
            if described != _stated_description(out):
                changed += [place for place in outputs if place.suffix in ANNOTATED and place not in changed]
            for place in changed:
                (incoming / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(outputs[place], incoming / place)
                if described is not None and ENGINES in place.parents:
                    annotate(incoming / place, described)
                    shutil.copystat(outputs[place], incoming / place)
            for place, content in written.items():
                if isinstance(content, str):
                    write_text(incoming / place, content)
                else:
                    write_json(incoming / place, content)
            for place in stale:
                _remove(place, out)
            for place in (*written, *changed):  # run.json first: killed after it, the rest is still ours
                (out / place).parent.mkdir(parents=True, exist_ok=True)
                (incoming / place).replace(out / place)
    except OSError as error:
        raise ToolkitError(
            f"cannot write to {error.filename or out}: {error.strerror}",
            hint="name another folder with --out",
        ) from error
    finally:
        if new and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _remove_leftovers(out: Path) -> None:
    """Remove the temporary folders of runs that were killed while they wrote."""
    for folder in out.glob(f"{INCOMING}*"):
        pid = folder.name.removeprefix(INCOMING).partition("-")[0]
        if pid.isdecimal() and not _runs(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)  # follows no link


def _runs(pid: int) -> bool:
    """Return True if there is a process with this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True


def _description(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return the content of model.json of the engines, for applications."""
    return description(
        ModelInfo.read(folders["load"]),
        Accuracies.read(folders["evaluate"]).data.classes if "evaluate" in folders else (),
        stored_monitor(folders["evaluate"]) if "evaluate" in folders else None,
    )


def _stated_description(out: Path) -> object:
    """Return the content of model.json of an earlier run; None without."""
    try:
        return read_json(out / ENGINES / DESCRIPTION)
    except DataError:
        return None


def read_report(folder: Path, stages: tuple[StageResult, ...]) -> dict[str, Any]:
    """Return the content of report.json, with seconds and cache state of the stages of this run."""
    report: dict[str, Any] = read_json(folder / REPORT)
    summaries = [{"name": each.name, "seconds": each.seconds, "cached": each.cached} for each in stages]
    return {**report, "stages": summaries}


def _outputs(folders: Mapping[str, Path]) -> dict[Path, Path]:
    """Return path in the `--out` folder -> file in the store."""
    outputs: dict[Path, Path] = {}
    if report := folders.get("report"):
        pages = [file for file in report.rglob("*") if file.is_file() and file.name != REPORT]
        outputs |= {file.relative_to(report): file for file in pages}
    if compiled := folders.get("compile"):
        built = CompiledVariants.read(compiled).built()
        for variant, record in built.items():
            outputs |= _engine_files(variant, record, Path(published_folder(variant)), folders)
        if guards := folders.get("guard"):
            for variant, guard in Guards.read(guards).by_id().items():
                place = Path(published_folder(variant))
                int8, second = fast(variant), reference(variant, guard.reference)
                outputs |= _engine_files(int8, built[int8], place, folders)
                outputs |= _engine_files(second, built[second], place / REFERENCE_FOLDER, folders)
                outputs[place / GUARD] = guards / variant.name / GUARD
    return outputs


def _engine_files(
    variant: VariantId, record: CompiledVariant, place: Path, folders: Mapping[str, Path]
) -> dict[Path, Path]:
    """Return path below `place` -> file in the store of an engine and its graph."""
    folder = folders["compile"] / variant.name
    files = {place / file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    if not any(file.suffix == ".onnx" for file in files):
        files[place / "graph.onnx"] = graph_file(variant, record, folders)
    return files


def _owned(out: Path) -> frozenset[Path]:
    """Return the files of an earlier run in a folder, as listed in its run.json."""
    try:
        places = [Path(name) for name in RunIndex.read(out).files]
    except DataError:  # no run.json, or a foreign file of that name
        return frozenset()
    inside = [place for place in places if not place.is_absolute() and ".." not in place.parts]
    return frozenset(place for place in inside if (out / place).is_file() and not leads_outside(place, out))


def _refuse_foreign(places: Iterable[Path], owned: Collection[Path], out: Path) -> None:
    for place in places:
        _refuse_link(place, out)
        if place not in owned and ((out / place).exists() or (out / place).is_symlink()):
            raise RecipeError(
                f"{out / place} would be overwritten, and no run of edgeship is known to have written it",
                hint="name another folder with --out, or move the file away",
            )


def _refuse_link(place: Path, out: Path) -> None:
    if leads_outside(place, out):
        raise RecipeError(
            f"{(out / place).parent} is reached by a link, and is not in {out}",
            hint="remove the link, or name another folder with --out",
        )


def _remove(place: Path, out: Path) -> None:
    """Remove a file and its parent folders that become empty."""
    (out / place).unlink()
    for folder in place.parents:
        if folder != Path() and (out / folder).is_dir() and not any((out / folder).iterdir()):
            (out / folder).rmdir()


def _same(source: Path, target: Path) -> bool:
    """Return True if a copy has the time of its source and its size, or is larger by its annotations."""
    if not target.is_file():
        return False
    copy, original = target.stat(), source.stat()
    larger = copy.st_size > original.st_size and source.suffix in ANNOTATED
    return copy.st_mtime_ns == original.st_mtime_ns and (copy.st_size == original.st_size or larger)
