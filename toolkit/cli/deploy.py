"""edgeship deploy: bring a run onto devices, prove it there, make it live."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._devices import DRY_RUN, WAIT, as_table, choice, chosen, finish, states
from edgeship.toolkit.cli._options import Resumable


@click.command(
    cls=Resumable,
    epilog="\b\nExamples:\n  edgeship deploy runs/quickstart --device nano-1\n"
    "  edgeship deploy runs/main --tag shop --parallel 10 --canaries 2 --max-failures 0.05\n"
    "  edgeship deploy bundle.tar --device nano-1 --dry-run",
)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@choice
@click.option("--parallel", default=8, show_default=True, type=click.IntRange(1, 64), help="Devices at once.")
@click.option(
    "--canaries",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Devices that go first; all must pass.",
)
@click.option(
    "--max-failures",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of the devices that may fail before the rest is left alone.",
)
@click.option(
    "--limit", "limit_s", default=3600.0, show_default=True, help="Seconds that a build may take there."
)
@click.option("--time", "timing_s", default=3.0, show_default=True, help="Seconds of timed inferences.")
@WAIT
@DRY_RUN
@click.option(
    "--report", "folder", type=click.Path(path_type=Path), help="Folder for fleet.json and fleet.md."
)
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
    """Deploy RUN, a folder written by `edgeship run --out` or a bundle, to devices.

    Each device is probed; gets what it lacks; builds the engine; compares it with the golden outputs and with
    the simulated accuracy; is timed; and only then switches. If anything fails, what was live stays live.
    The same command again does nothing, or goes on where it was interrupted.
    """
    from edgeship.toolkit.deploy import bundle_from_run, fleet_report
    from edgeship.toolkit.deploy.release import DeployOptions, deploy
    from edgeship.toolkit.deploy.rollout import RolloutOptions, rollout

    entries = chosen(inventory, devices, tags)
    bundle = bundle_from_run.find(run)
    options = DeployOptions(wait_s=wait_s, limit_s=limit_s, timing_s=timing_s, dry_run=dry_run)
    with states([entry.name for entry in entries]) as shown:
        outcomes = rollout(
            entries,
            lambda entry, tell, connect: deploy(entry, bundle, options, tell, connect),
            RolloutOptions(parallel, canaries, max_failures),
            shown.tell,
        )
    if dry_run:
        for outcome in outcomes:
            for step in outcome.steps or (outcome.error or outcome.state,):
                click.echo(f"{outcome.device}: {step}")
    else:
        found = fleet_report.report(outcomes, bundle.id, parallel=parallel)
        as_table(fleet_report.COLUMNS, fleet_report.table(found))
        for outlier in found["outliers"]:
            click.echo(fleet_report.sentence(outlier))
        if folder is not None:
            click.echo(fleet_report.write(found, folder))
    finish(outcomes)
