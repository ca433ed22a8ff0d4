"""edgeship compare: runs side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="\b\nExamples:\n  edgeship compare runs/mse runs/minmax\n"
    "  edgeship compare runs/main runs/change --format md > comment.md"
)
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "md", "json"]),
    default="table",
    show_default=True,
    help="Print a table, Markdown or JSON.",
)
def command(runs: tuple[Path, ...], kind: str) -> None:
    """Compare runs with the first: what differs, and whether it can be chance.

    Accuracies are compared image by image where both runs saw the same images. Latencies are compared
    where device, batch and threads are the same.
    """
    import json

    from edgeship.toolkit.core.artifact import plain
    from edgeship.toolkit.report import compare_runs, render

    if len(runs) < 2:
        raise click.UsageError("compare needs two runs or more")
    read = [compare_runs.Run.read(run) for run in runs]
    differences = compare_runs.compare(read)
    if kind == "json":
        click.echo(json.dumps({"base": read[0].name, "differences": plain(differences)}, indent=1))
    elif kind == "md":
        click.echo(compare_runs.markdown(read, differences), nl=False)
    else:
        rows = compare_runs.table(read, differences)
        render.print_table(compare_runs.COLUMNS, rows, expendable=compare_runs.EXPENDABLE)
