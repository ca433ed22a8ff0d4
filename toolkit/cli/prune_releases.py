"""edgeship prune-releases: free space on devices."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._devices import DRY_RUN, WAIT, choice, chosen


@click.command(epilog="\b\nExamples:\n  edgeship prune-releases --tag shop --keep 2 --dry-run")
@choice
@click.option(
    "--keep", default=3, show_default=True, type=click.IntRange(1), help="How many of the last to keep."
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
    """Remove old releases, and the files and engines only they used.

    The live release and the one a rollback would go to are always kept.
    """
    from edgeship.toolkit.deploy.release import DeployOptions, prune

    for entry in chosen(inventory, devices, tags):
        found = prune(entry, keep, DeployOptions(wait_s=wait_s, dry_run=dry_run))
        removed = " ".join(found["removed"]) or "no release"
        did = "would remove" if dry_run else "removed"
        click.echo(f"{entry.name}: {did} {removed}, {found['freed_bytes']} bytes")
