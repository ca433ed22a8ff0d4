"""`edgeship prune-releases`: remove old releases from devices."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._devices import DRY_RUN, WAIT, device_options, raise_failures, selected_devices


@click.command(epilog="\b\nExamples:\n  edgeship prune-releases --tag shop --keep 2 --dry-run")
@device_options
@click.option(
    "--keep",
    default=3,
    show_default=True,
    type=click.IntRange(1, 10**6),
    help="Number of most recent releases to keep.",
)
@WAIT
@DRY_RUN
def command(
    *,
    inventory: Path | None,
    devices: tuple[str, ...],
    tags: tuple[str, ...],
    keep: int,
    wait_s: float,
    dry_run: bool,
) -> None:
    """Remove old releases from devices.

    Removes the releases except the most recent ones, and the files and engines that only those used. The live
    release and the rollback release are never removed. Exit code 1: it failed on a device.
    """
    from edgeship.toolkit.core.errors import DeviceError
    from edgeship.toolkit.deploy.release import DeployOptions, DeployOutcome, prune

    outcomes = []
    for entry in selected_devices(inventory, devices, tags):
        try:
            pruned = prune(entry, keep, DeployOptions(wait_s=wait_s, dry_run=dry_run))
        except DeviceError as error:  # the other devices go on
            click.echo(f"{entry.name}: failed", err=True)
            outcomes.append(DeployOutcome(entry.name, "failed", error=str(error), hint=error.hint))
            continue
        outcomes.append(DeployOutcome(entry.name, "unchanged"))
        removed = " ".join(pruned["removed"]) or "no release"
        did = "would remove" if dry_run else "removed"
        click.echo(f"{entry.name}: {did} {removed}, {pruned['freed_bytes']} bytes")
    raise_failures(outcomes)
