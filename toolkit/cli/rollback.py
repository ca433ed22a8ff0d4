"""`edgeship rollback`: make an earlier release live again."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._devices import WAIT, device_options, raise_failures, selected_devices, states


@click.command(
    epilog="\b\nExamples:\n  edgeship rollback --device nano-1\n"
    "  edgeship rollback --tag shop --to resnet18-3f2a91c07b54"
)
@device_options
@click.option("--to", help="Release name or a prefix of it.  [default: the previous good release]")
@WAIT
def command(
    *, inventory: Path | None, devices: tuple[str, ...], tags: tuple[str, ...], to: str | None, wait_s: float
) -> None:
    """Make an earlier release live again.

    The release has to pass its health check on the device; otherwise the current one stays live.
    Exit code 1: the rollback failed on a device.
    """
    from edgeship.toolkit.deploy.release import DeployOptions, rollback
    from edgeship.toolkit.deploy.rollout import RolloutOptions, rollout

    entries = selected_devices(inventory, devices, tags)
    options = DeployOptions(wait_s=wait_s)
    with states([entry.name for entry in entries]) as display:
        outcomes = rollout(
            entries,
            lambda entry, report_state, connect: rollback(entry, to, options, report_state, connect),
            RolloutOptions(max_failures=1.0),
            display.update,
        )
    for outcome in outcomes:
        if not outcome.error:
            click.echo(f"{outcome.device}: {outcome.release} is live, before: {outcome.before or 'nothing'}")
    raise_failures(outcomes)
