"""`edgeship compare`: compare runs with the first."""

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
    help="Output format.",
)
@click.option("--json", "kind", flag_value="json", help="Print JSON: the same as --format json.")
def command(runs: tuple[Path, ...], kind: str) -> None:
    """Compare runs with the first run.

    RUN is a folder written by `edgeship run --out`, or its report.json. Accuracies are compared image by
    image if both runs were evaluated on the same images (paired 95 % interval), else with a wider, unpaired
    interval. Latencies are compared if device, batch and threads are equal and no other work disturbed the
    timing. A drop is positive when the run is less accurate than the first one. Recipe options that differ
    are listed first.
    """
    import json

    from edgeship.toolkit.core.artifact import plain
    from edgeship.toolkit.report import compare_runs, render

    if len(runs) < 2:
        raise click.UsageError(f"compare takes at least 2 runs, got {len(runs)}")
    loaded = [compare_runs.Run.read(run) for run in runs]
    differences = compare_runs.compare(loaded)
    if kind == "json":
        options = compare_runs.differing_options(loaded)
        content = {"base": loaded[0].name, "options": options, "differences": differences}
        click.echo(json.dumps(plain(content), indent=1))
    elif kind == "md":
        click.echo(compare_runs.markdown(loaded, differences), nl=False)
    else:
        if options_rows := compare_runs.options_table(loaded):
            render.print_table(options_rows[0], options_rows[1:])
        rows = compare_runs.table(loaded, differences)
        render.print_table(compare_runs.COLUMNS, rows, expendable=compare_runs.EXPENDABLE)
