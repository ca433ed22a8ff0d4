"""`edgeship run`: from a model and images, or a recipe, to engines and a report."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._options import JSON, PREPROCESS, STORE, Resumable, note, recipe_options
from edgeship.toolkit.cli._outputs import OutPath, unused_folder
from edgeship.toolkit.core.paths import user_path

if TYPE_CHECKING:
    from edgeship.toolkit.pipeline.recipe import Recipe
    from edgeship.toolkit.pipeline.runner import Run


def _list_options(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        from edgeship.toolkit.pipeline.recipe import option_help

        for name, default, explanation in option_help():
            click.echo(f"{name:<34} {default:<22} {explanation}")
        context.exit()


@click.command(
    cls=Resumable,
    former={"--redo": "--rerun", "--skip-bad": "--skip-unreadable"},
    epilog="""\b
Examples:
  edgeship run resnet18.pth --data photos/ --target openvino --max-drop 1
  edgeship run net.onnx --data train/ --eval-data val.csv --size 224
  edgeship run net.onnx --data train/ --eval-data val/ --guard 0.001 \\
      --guard-data unlabelled/
  edgeship run quickstart
  edgeship run runs/resnet18/recipe.toml --set quantize.effort=max
  edgeship run my.toml --until quantize --rerun calibrate
""",
)
@click.argument("model")
@recipe_options(
    "select.source",
    "evaluate.source",
    "select.images",
    "compile.targets",
    "compile.precisions",
    "compile.module",
    "compile.jetpack",
    "compile.tensorrt",
    "export.size",
    "report.max_drop_pp",
    "quantize.effort",
    "guard.max_flips",
    "guard.source",
    "bench.threads",
    "bench.duration_s",
)
@click.option(
    "--out",
    type=OutPath(file_okay=False),
    help="Folder for report, engines, graphs and recipe.toml.  [default: runs/NAME of the model or recipe]",
)
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run in --out.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set any recipe option; repeatable. --options lists all of them.",
)
@click.option(
    "--options",
    "listed",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_options,
    help="List all recipe options with defaults, and exit.",
)
@click.option("--until", metavar="STAGE", help="Last stage to run.")
@click.option(
    "--rerun",
    multiple=True,
    metavar="STAGE",
    help="Run a stage again, even if its result is cached; repeatable.",
)
@click.option("--skip-unreadable", is_flag=True, help="Skip unreadable images; the report has their number.")
@PREPROCESS
@JSON
@STORE
def command(
    *,
    model: str,
    options: dict[str, Any],
    overrides: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    until: str | None,
    rerun: tuple[str, ...],
    skip_unreadable: bool,
    as_json: bool,
    store_root: Path | None,
) -> None:
    """Quantize, compile, measure and report a model in one command.

    MODEL is a checkpoint (.pth, .safetensors), an ONNX file, or a recipe: a TOML file, the name of a built-in
    one such as quickstart, or the folder of a run. With --data a folder that has train/ and test/ (or val/)
    is used as it says; one set of images is split in half, by class, into calibration and evaluation images.

    All options of the run are written to recipe.toml in --out; `edgeship run OUT/recipe.toml` repeats it.
    Results of finished stages are cached: running again resumes, and a changed option reruns only the stages
    that depend on it.

    Exit code 3: a gate (--max-drop, or another limit of the recipe's report section) was missed, or its value
    was not measured. A gate that the 95 % interval leaves undecided is reported as NEEDS MORE DATA, with exit
    code 0. With report.judge_by=point, gates use the value alone.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.options import parse_override
    from edgeship.toolkit.pipeline import Recipe, Store, run
    from edgeship.toolkit.pipeline.model_recipe import recipe_of, with_data
    from edgeship.toolkit.pipeline.recipe import check_required

    given = {**dict(parse_override(text, Recipe) for text in overrides), **options}
    if "select.source" in options:
        given = with_data(given)
    if skip_unreadable:
        given |= {"select.skip_unreadable": True, "evaluate.skip_unreadable": True}
    chosen = recipe_of(model, given)
    check_required(chosen, _busy(chosen, until))
    if out is None and until is None:
        out = OutPath(file_okay=False).convert(Path("runs") / _name(model), None, None)
    wanted = out
    if out is not None and not overwrite:
        out = unused_folder(out)
    with show_progress(_busy(chosen, until)) as progress:
        finished = run(
            chosen, out=out, until=until, redo=rerun, store=Store(store_root), watch=progress.stage
        )
    if out is not None and wanted is not None and out.name != wanted.absolute().name:
        note(f"{wanted} holds files; the results are in {out} (--overwrite replaces those of a run)")
    if finished.stages[-1].name != "report":
        click.echo(finished.stages[-1].folder)
        return
    if as_json:
        click.echo(json.dumps(finished.report, indent=1))
    else:
        _show(finished, out)
    finished.check_gates()


def _busy(recipe: Recipe, until: str | None) -> list[str]:
    """Return the names of the stages of a run that have something to do."""
    from edgeship.toolkit.pipeline.stages import STAGES

    names = [stage.name for stage in STAGES]
    last = names.index(until) if until in names else len(names)
    return [stage.name for stage in STAGES[: last + 1] if not (stage.idle and stage.idle(recipe))]


def _name(model: str) -> str:
    """Return the name of a run's folder: that of the model or recipe."""
    path = user_path(model)
    if path.stem in ("model", "recipe") or path.is_dir():  # named by their folder
        path = path.absolute() if path.is_dir() else path.absolute().parent
        return path.name
    return path.stem.replace(":", "-")


def _show(finished: Run, out: Path | None) -> None:
    """Print the report with the files to ship, and the next command."""
    from edgeship.toolkit.report import render

    report = render.load(finished.folder("report") / "report.json")
    render.terminal(report, out)
    click.echo(f"\nreport:  {(out or finished.folder('report')) / 'report.html'}")
    if out is None:
        return
    click.echo(f"use:     edgeship predict {shlex.quote(str(out))} IMAGE")
    click.echo(f"app:     edgeship export-app {shlex.quote(str(out))} --for http --out service")
    if report.verdicts and report.verdicts[0].level == "pass":
        click.echo(f"next:    edgeship bundle {shlex.quote(str(out))}")
    else:
        click.echo(f"next:    edgeship report {shlex.quote(str(out))} --open")
