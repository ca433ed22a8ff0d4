"""edgeship report: what a run found."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="\b\nExamples:\n  edgeship report runs/quickstart\n"
    "  edgeship report runs/quickstart --open\n"
    "  edgeship report runs/quickstart --format md > comment.md"
)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["md", "json", "junit", "html"]),
    help="Print as Markdown, JSON, JUnit XML of the gates or HTML instead of a table.",
)
@click.option("--open", "show", is_flag=True, help="Open the HTML report in the browser.")
@click.option("--mlflow", is_flag=True, help="Log the run to MLflow (MLFLOW_TRACKING_URI says where).")
def command(run: Path, kind: str | None, show: bool, mlflow: bool) -> None:
    """Show the report of RUN: a folder written by `edgeship run --out`, or its report.json."""
    from toolkit.report import render

    report = render.load(run)
    folder = render.find(run).parent
    page = folder / "report.html"
    if kind == "html":
        click.echo(page.read_text(encoding="utf-8") if page.is_file() else render.html(report))
    elif kind is not None:
        written = {"md": render.markdown, "json": render.text_json, "junit": render.junit}[kind](report)
        click.echo(written, nl=False)
    elif not (show or mlflow):
        render.terminal(report)
    if mlflow:
        from toolkit.report import tracking

        click.echo(tracking.log(report, folder))
    if show:
        _open(page)


def _open(page: Path) -> None:
    import webbrowser

    from toolkit.core.errors import DataError, ToolkitError

    if not page.is_file():
        raise DataError(f"no {page}", hint="make it with `edgeship report RUN --format html > report.html`")
    if not webbrowser.open(page.resolve().as_uri()):
        raise ToolkitError("no browser could be started", hint=f"open {page.resolve()} yourself")
    click.echo(page)
