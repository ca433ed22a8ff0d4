"""Run the stages of a recipe in order; stages with a stored result are skipped."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edgeship.toolkit.core import signals
from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.errors import GateError, RecipeError, ToolkitError, nearest
from edgeship.toolkit.pipeline.fingerprints import (
    Fingerprint,
    check_exist,
    check_unchanged,
    fingerprint,
    key_values,
)
from edgeship.toolkit.pipeline.publish import check_overwrite, describe, publish, read_report
from edgeship.toolkit.pipeline.recipe import Recipe, check_required
from edgeship.toolkit.pipeline.stage import Stage, restricted
from edgeship.toolkit.pipeline.stages import STAGES
from edgeship.toolkit.pipeline.store import Store, key_of
from edgeship.toolkit.runs.index import StageResult

State: TypeAlias = Literal["started", "waiting", "done", "cached"]
Watcher: TypeAlias = Callable[[str, State, float], None]  # stage, state, seconds

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
STORE_FULL = "free space with `edgeship store gc`, or set --store; finished stages stay stored"
NO_ROOM_WORDS = ("no space left", "os error 28", "disk quota", "file too large", "os error 27")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        recipe: The recipe.
        stages: Results of the stages, in order.
    """

    recipe: Recipe
    stages: tuple[StageResult, ...]

    def folder(self, stage: str) -> Path:
        """Return the folder of a stage's files."""
        return next(each.folder for each in self.stages if each.name == stage)

    @property
    def report(self) -> dict[str, Any]:
        """Return the content of report.json."""
        return read_report(self.folder("report"), self.stages)

    def check_gates(self) -> None:
        """Raise if a limit of the recipe's report section is missed.

        Raises:
            GateError: A limit is missed.
        """
        missed = [gate for gate in self.report["gates"] if gate["passed"] is False]
        if missed:
            raise GateError(
                "; ".join(
                    f"{gate['variant'] or 'the run'} misses {gate['name']}: {gate['reason']}"
                    for gate in missed
                ),
                hint="the report is written and shows what costs accuracy or time",
            )


def run(
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    until: str | None = None,
    redo: Collection[str] = (),
    store: Store | None = None,
    watch: Watcher = lambda _stage, _state, _seconds: None,
    stages: Sequence[Stage] = STAGES,
) -> Run:
    """Run a recipe.

    Args:
        recipe: The recipe.
        out: Folder for the report, the engines and `run.json`; None: results stay in the store only.
        until: Last stage to run; None runs all.
        redo: Stages to run again even if the store has their result.
        store: Cache of stage results; None: the user's store.
        watch: Called when a stage starts, waits for another run, or is done.
        stages: Stages in order.

    Returns:
        The stages and their folders; limits are checked by `Run.check_gates`.

    Raises:
        RecipeError: An option or a stage name cannot be used, or `out` holds files that it would overwrite.
        ToolkitError: A stage failed; results of earlier stages stay in the store.
    """
    chosen = _chosen(stages, until, redo)
    check_required(recipe, [stage.name for stage in chosen])
    for stage in chosen:
        check_exist(getattr(recipe, stage.name), stage.name)
    if out is not None:
        check_overwrite(recipe, [stage.name for stage in chosen], Path(out))
    store = store or Store()
    with ExitStack() as stack:
        with _no_room_explained(store.root, STORE_FULL):
            stack.enter_context(store.in_use())
            done: dict[str, StageResult] = {}
            for stage in chosen:
                again = stage.name in redo
                done[stage.name] = _run_stage(stage, recipe, done, store, redo=again, watch=watch)
        finished = Run(recipe, tuple(done.values()))
        if out is not None:
            with _no_room_explained(Path(out), "free space there, or name another folder with --out"):
                publish(recipe, finished.stages, Path(out))
        return finished


def _chosen(stages: Sequence[Stage], until: str | None, redo: Collection[str]) -> list[Stage]:
    names = [stage.name for stage in stages]
    for name in (*redo, *([until] if until else [])):
        if name not in names:
            raise RecipeError(f"no stage named '{name}'", hint=nearest(name, names))
    return list(stages[: names.index(until) + 1 if until else None])


def _run_stage(
    stage: Stage,
    recipe: Recipe,
    done: dict[str, StageResult],
    store: Store,
    *,
    redo: bool,
    watch: Watcher,
) -> StageResult:
    names = stage.options(recipe)
    view = restricted(recipe, stage.name, names)
    values, outside = key_values(recipe, names)
    fingerprints = {name: fingerprint(path, store.root / "digests") for name, path in outside.items()}
    key = _key(stage, view, values, fingerprints, recipe, done)
    inputs = {name: done[name].folder for name in stage.needs}

    def work(out: Path, work_dir: Path) -> None:
        watch(stage.name, "started", 0.0)
        if not stage.needs_run_info:
            stage.work(view, inputs, out, work_dir)
            check_unchanged(outside, fingerprints)
            return
        with tempfile.TemporaryDirectory() as folder:
            describe(recipe, tuple(done.values())).write(Path(folder))
            stage.work(view, {**inputs, "run": Path(folder)}, out, work_dir)

    try:
        with signals.interrupts():
            entry, computed = store.make(
                stage.name,
                key,
                work,
                redo=redo,
                waiting=lambda: watch(stage.name, "waiting", 0.0),
            )
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"interrupted in stage '{stage.name}'") from interrupt
    watch(stage.name, "done" if computed else "cached", entry.seconds)
    return StageResult(stage.name, entry.folder, entry.digest, entry.seconds, not computed, stage.needs)


def _key(
    stage: Stage,
    view: Recipe,
    values: Mapping[str, Any],
    fingerprints: Mapping[str, Fingerprint],
    recipe: Recipe,
    done: dict[str, StageResult],
) -> str:
    """Return the cache key of a stage; outside files count by content, not by name."""
    return key_of(
        stage=stage.name,
        code=stage.code_digest(view),
        options=plain(values),
        outside={name: each.content for name, each in fingerprints.items()},
        inputs={name: done[name].digest for name in stage.needs},
        device=_this_device() if stage.on_device and stage.on_device(view) else None,
        extra=plain(stage.extra_key(view)) if stage.extra_key else None,
        recipe=plain(recipe) if stage.needs_run_info else None,
    )


def _this_device() -> Any:
    """Describe this machine without its current clock."""
    from edgeship.targets._device import this_device

    return plain(replace(this_device(), clocks_mhz=None))


@contextmanager
def _no_room_explained(folder: Path, hint: str) -> Iterator[None]:
    """Translate the disk-full errors of libraries into one ToolkitError."""
    try:
        yield
    except ToolkitError as error:
        if _is_no_room(error):
            raise ToolkitError(f"no room left to write below {folder}", hint=hint) from error
        raise
    except Exception as error:
        if _is_no_room(error):
            raise ToolkitError(f"no room left to write below {folder}", hint=hint) from error
        raise


def _is_no_room(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        if not isinstance(error, ToolkitError) and any(
            words in str(error).lower() for words in NO_ROOM_WORDS
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
