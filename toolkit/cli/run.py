"""`edgeship run`: the whole path, from weights to the report."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgeship.toolkit.cli._options import JSON, STORE, Resumable


def _list_options(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        from edgeship.toolkit.pipeline.recipe import explained

        for name, default, explanation in explained():
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
    help="Change an option; --options lists them.",
)
@click.option(
    "--options",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_options,
    help="List every option of a recipe with its default.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report and engines."
)
@click.option("--until", metavar="STAGE", help="Last stage to run.")
@click.option(
    "--rerun", multiple=True, metavar="STAGE", help="Run a stage again, even if its result is stored."
)
@click.option("--skip-unreadable", is_flag=True, help="Leave unreadable images out, and count them.")
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
    """Run RECIPE, a TOML file or the name of one that comes along.

    Finished stages are kept in the store: running again resumes, and a changed option reruns only what
    depends on it. The stages are load, prune, finetune, export, select, calibrate, quantize, compile,
    evaluate, bench and report. Exit code 3: a limit of the recipe's report section was missed, or its figure
    is absent. A limit that the data do not decide is NEEDS MORE DATA, with exit code 0; with
    report.judge_by=point the figure alone decides.
    """
    from edgeship.toolkit.cli._progress import shown
    from edgeship.toolkit.pipeline import Recipe, Store, run

    if skip_unreadable:
        overrides = (*overrides, "select.skip_unreadable=true", "evaluate.skip_unreadable=true")
    chosen = Recipe.read(recipe, overrides)
    with shown() as progress:
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

        render.terminal(render.load(finished.folder("report") / "report.json"))
        click.echo(f"\nreport: {(out or finished.folder('report')) / 'report.html'}")
    finished.check_gates()
