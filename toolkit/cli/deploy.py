"""`edgeship deploy`: install a run on devices, verify it there and make it live."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._devices import (
    DRY_RUN,
    WAIT,
    device_options,
    print_table,
    raise_failures,
    selected_devices,
    states,
)
from edgeship.toolkit.cli._options import Number, Resumable
from edgeship.toolkit.cli._outputs import OutPath


@click.command(
    cls=Resumable,
    former={"--time": "--duration", "--report": "--out"},
    epilog="\b\nExamples:\n  edgeship deploy runs/quickstart --device nano-1\n"
    "  edgeship deploy runs/main --tag shop --canaries 2 --max-failures 0.05\n"
    "  edgeship deploy bundle.tar --device nano-1 --dry-run",
)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@device_options
@click.option(
    "--parallel", default=8, show_default=True, type=click.IntRange(1, 64), help="Devices at the same time."
)
@click.option(
    "--canaries",
    default=0,
    show_default=True,
    type=click.IntRange(0, 10**6),
    help="Devices deployed to first; if one of them fails, the others are skipped.",
)
@click.option(
    "--max-failures",
    default=0.1,
    show_default=True,
    type=Number(0, 1),
    help="Fraction of the devices that may fail before the rest is skipped.",
)
@click.option(
    "--limit",
    "limit_s",
    metavar="SECONDS",
    default=3600.0,
    show_default=True,
    type=Number(0, 604800, above=True),
    help="Time limit of a build.",
)
@click.option(
    "--duration",
    "timing_s",
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    type=Number(0, 86400, above=True),
    help="Seconds of timed inferences.",
)
@WAIT
@DRY_RUN
@click.option("--out", "folder", type=OutPath(file_okay=False), help="Folder for fleet.json and fleet.md.")
def command(
    run: Path,
    *,
    inventory: Path | None,
    devices: tuple[str, ...],
    tags: tuple[str, ...],
    parallel: int,
    canaries: int,
    max_failures: float,
    limit_s: float,
    timing_s: float,
    wait_s: float,
    dry_run: bool,
    folder: Path | None,
) -> None:
    """Deploy a run to devices.

    RUN is a folder written by `edgeship run --out`, or a bundle file. At least one --device or --tag is
    required. On each device the command uploads the missing files, builds the engine, compares its outputs
    with the golden outputs and its accuracy with the simulation, measures its latency, and then makes the
    release live. If a step fails, the previous release stays live. Repeating the command continues an
    interrupted deployment and changes nothing on devices where the release is already live.

    Exit code 1: the deployment failed on a device.
    """
    from edgeship.toolkit.deploy import bundle_from_run, fleet_report
    from edgeship.toolkit.deploy.release import DeployOptions
    from edgeship.toolkit.deploy.rollout import RolloutOptions, deploy_all

    entries = selected_devices(inventory, devices, tags)
    bundle = bundle_from_run.bundle_of(run)
    options = DeployOptions(wait_s=wait_s, limit_s=limit_s, timing_s=timing_s, dry_run=dry_run)
    with states([entry.name for entry in entries]) as display:
        order = RolloutOptions(parallel, canaries, max_failures)
        outcomes = deploy_all(entries, bundle, display.update, options, order)
    if dry_run:
        for outcome in outcomes:
            for step in outcome.steps or (outcome.error or outcome.state,):
                click.echo(f"{outcome.device}: {step}")
    else:
        fleet = fleet_report.report(outcomes, bundle.id, parallel=parallel)
        written = folder and fleet_report.write(fleet, folder)
        print_table(fleet_report.COLUMNS, fleet_report.table(fleet))
        for outlier in fleet["outliers"]:
            click.echo(fleet_report.outlier_text(outlier))
        if written:
            click.echo(written)
    raise_failures(outcomes)
