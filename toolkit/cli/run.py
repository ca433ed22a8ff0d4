"""`edgeship run`: run a recipe, from weights to the report."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgeship.toolkit.cli._options import JSON, STORE, Resumable


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
  edgeship run quickstart --out runs/quickstart
  edgeship run resnet50-imagenet --set select.source=train/ --set evaluate.source=val.csv
  edgeship run my.toml --until quantize --rerun calibrate
""",
)
@click.argument("recipe")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set a recipe option; repeatable. --options lists all of them.",
)
@click.option(
    "--options",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_options,
    help="List all recipe options with defaults, and exit.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write report, engines and graphs to this folder.",
)
@click.option("--until", metavar="STAGE", help="Last stage to run.")
@click.option(
    "--rerun",
    multiple=True,
    metavar="STAGE",
    help="Run a stage again, even if its result is cached; repeatable.",
)
@click.option("--skip-unreadable", is_flag=True, help="Skip unreadable images; the report has their number.")
@JSON
@STORE
def command(
    *,
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    until: str | None,
    rerun: tuple[str, ...],
    skip_unreadable: bool,
    as_json: bool,
    store_root: Path | None,
) -> None:
    """Run a recipe, from weights to the report.

    RECIPE is a TOML file, or the name of a built-in recipe such as quickstart. Its stages are load, prune,
    finetune, export, select, calibrate, quantize, compile, evaluate, bench and report. Results of finished
    stages are cached: running again resumes, and a changed option reruns only the stages that depend on it.

    Exit code 3: a gate (a limit of the recipe's report section) was missed, or its value was not measured.
    A gate that the 95 % interval leaves undecided is reported as NEEDS MORE DATA, with exit code 0. With
    report.judge_by=point, gates use the value alone.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.pipeline import Recipe, Store, run

    if skip_unreadable:
        overrides = (*overrides, "select.skip_unreadable=true", "evaluate.skip_unreadable=true")
    chosen = Recipe.read(recipe, overrides)
    with show_progress() as progress:
        finished = run(
            chosen, out=out, until=until, redo=rerun, store=Store(store_root), watch=progress.stage
        )
    if finished.stages[-1].name != "report":
        last = finished.stages[-1]
        click.echo(last.folder)
        return
    if as_json:
        click.echo(json.dumps(finished.report, indent=1))
    else:
        from edgeship.toolkit.report import render

        render.terminal(render.load(finished.folder("report") / "report.json"), out)
        click.echo(f"\nreport: {(out or finished.folder('report')) / 'report.html'}")
    finished.check_gates()
