"""`edgeship report`: show the report of a run, or the measurements of a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.cli._devices import INVENTORY, print_table


@click.command(
    epilog="\b\nExamples:\n  edgeship report runs/quickstart\n"
    "  edgeship report runs/quickstart --open\n"
    "  edgeship report runs/quickstart --format md > comment.md\n"
    "  edgeship report --device nano-1"
)
@click.argument("run", type=click.Path(exists=True, path_type=Path), required=False)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["md", "json", "junit", "html"]),
    help="Print Markdown, JSON, JUnit XML (one test case per gate) or HTML instead of a table.",
)
@click.option("--json", "kind", flag_value="json", help="Print JSON: the same as --format json.")
@click.option("--open", "show", is_flag=True, help="Open the HTML report in the browser; print no table.")
@click.option("--mlflow", is_flag=True, help="Log the run to the MLflow server of MLFLOW_TRACKING_URI.")
@click.option("--device", help="Show the measurements of the releases on this device.")
@INVENTORY
def command(
    run: Path | None, kind: str | None, show: bool, mlflow: bool, device: str | None, inventory: Path | None
) -> None:
    """Show the report of a run or of a device.

    RUN is a folder written by `edgeship run --out`, or its report.json. Give either RUN or --device.
    Exit code 0 also if a gate was missed: only `edgeship run` fails on gates.
    """
    if (run is None) == (device is None):
        raise click.UsageError("expected either RUN or --device")
    if device is not None:
        _show_device(device, inventory, as_json=kind == "json")
    if run is not None:
        _show_run(run, kind, show, mlflow)


COLUMNS = ("release", "state", "variant", "runtime", "top-1", "simulated", "p50 latency", "power", "notes")


def _show_device(name: str, inventory: Path | None, *, as_json: bool) -> None:
    import json

    from edgeship.toolkit.cli._devices import monitored, selected_devices
    from edgeship.toolkit.deploy.release import records
    from edgeship.toolkit.deploy.release import status as query

    (entry,) = selected_devices(inventory, [name], ())
    status = query(entry)
    measured = records(status)
    if as_json:
        click.echo(json.dumps(measured, indent=1))
        return
    print_table(COLUMNS, [_row(record) for record in measured])
    if (monitor := status.get("monitor")) is not None:
        click.echo(f"\nmonitor: {monitored(monitor)}")


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    from edgeship.toolkit.deploy.checks import latency

    accuracy, power_mw = record["accuracy"] or {}, record["power_mw"]
    return (
        record["release"],
        "live" if record["live"] else "",
        record["variant"],
        f"{record['build']['backend']} {record['build']['version'].split('-')[0]}",
        _percent(accuracy.get("top1")),
        _percent(accuracy.get("simulated_top1")),
        latency(record),
        "not measured" if power_mw is None else f"{power_mw / 1000:.2f} W",
        ", ".join([*(["fake"] if record["fake"] else []), *(record["marks"] or ())]),
    )


def _percent(fraction: float | None) -> str:
    return "not measured" if fraction is None else f"{100 * fraction:.2f} %"


def _show_run(run: Path, kind: str | None, show: bool, mlflow: bool) -> None:
    from edgeship.toolkit.report import render

    report = render.load(run)
    folder = render.find(run).parent
    page = folder / "report.html"
    if kind == "html":
        click.echo(page.read_text(encoding="utf-8") if page.is_file() else render.html(report))
    elif kind is not None:
        formatted = {"md": render.markdown, "json": render.text_json, "junit": render.junit}[kind](report)
        click.echo(formatted, nl=False)
    elif not (show or mlflow):
        render.terminal(report, folder)
    if mlflow:
        from edgeship.toolkit.report import tracking

        click.echo(tracking.log(report, folder))
    if show:
        _open(page)


def _open(page: Path) -> None:
    import webbrowser

    from edgeship.toolkit.core.errors import DataError, ToolkitError

    if not page.is_file():
        raise DataError(f"no {page}", hint="write it with `edgeship report RUN --format html > report.html`")
    if not webbrowser.open(page.resolve().as_uri()):
        raise ToolkitError("no web browser could be started", hint=f"open {page.resolve()} in a browser")
    click.echo(page)
