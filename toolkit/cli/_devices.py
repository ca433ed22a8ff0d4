"""Helpers of the device commands: device selection, state display, tables and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeship.toolkit.cli._options import Number

if TYPE_CHECKING:
    from rich.table import Table

    from edgeship.toolkit.deploy.inventory import Device
    from edgeship.toolkit.deploy.release import DeployOutcome

Command = TypeVar("Command", bound=Callable[..., Any])

COLOURS = {"live": "green", "unchanged": "green", "planned": "cyan"} | dict.fromkeys(
    ("failed", "unknown", "interrupted"), "red"
)

INVENTORY = click.option(
    "--inventory",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Inventory file.  [default: ~/.config/edgeship/devices.toml]",
)
WAIT = click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    default=60.0,
    type=Number(0, 86400),
    show_default=True,
    help="Time to wait for the lock of another deployment on the device.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the steps, change nothing.")


def device_options(command: Command) -> Command:
    """Add the options that select devices: --device, --tag and --inventory."""
    command = click.option(
        "--tag", "tags", multiple=True, help="Select the devices with this tag; repeatable."
    )(command)
    command = click.option("--device", "devices", multiple=True, help="Select a device by name; repeatable.")(
        command
    )
    return INVENTORY(command)


def inventory_path(inventory: Path | None) -> Path:
    """Return the inventory file: the option's value, or the default path."""
    from edgeship.toolkit.deploy.inventory import default_path

    return inventory or default_path()


def selected_devices(inventory: Path | None, devices: Sequence[str], tags: Sequence[str]) -> list[Device]:
    """Return the inventory entries selected by names and tags."""
    from edgeship.toolkit.deploy.inventory import select

    return select(inventory, devices, tags)


def monitored(monitor: dict[str, Any]) -> str:
    """Return the state of a device's monitor as text."""
    alarm = monitor["alarm"]
    if alarm is None:
        return f"{monitor['frames']:,} frames watched, no alarm"
    return f"ALARM at frame {alarm['frame']:,}: {alarm['title']}"


class States:
    """State of every device: a live table in a terminal, lines elsewhere."""

    def __init__(self, names: Sequence[str]) -> None:
        self._states = dict.fromkeys(names, ("queued", ""))
        self._printed: dict[str, str] = {}
        self.lines = True

    def update(self, device: str, state: str, detail: str) -> None:
        """Record a state change; thread-safe."""
        self._states[device] = (state, detail)
        if self.lines and self._printed.get(device) != state:
            self._printed[device] = state
            click.echo(f"{device}: {state}{f' ({detail})' if detail else ''}", err=True)

    def __rich__(self) -> Table:
        """Render the current states as a table."""
        from rich.table import Table
        from rich.text import Text

        table = Table("device", "state", "", box=None, header_style="bold")
        for name, (state, detail) in self._states.items():
            table.add_row(
                Text(name), Text(state, COLOURS.get(state, "yellow")), Text(detail, overflow="ellipsis")
            )
        return table


@contextmanager
def states(names: Sequence[str]) -> Iterator[States]:
    """Show the states of devices on stderr while the block runs."""
    display = States(names)
    if not sys.stderr.isatty():
        yield display
        return
    from rich.console import Console
    from rich.live import Live

    display.lines = False
    with Live(display, console=Console(stderr=True), refresh_per_second=8):
        yield display


def raise_failures(outcomes: Sequence[DeployOutcome]) -> None:
    """Raise the error that summarizes the outcomes; return if every device succeeded.

    Raises:
        DeviceError: A device failed.
        KeyboardInterrupt: The work was interrupted.
    """
    from edgeship.toolkit.core.errors import DeviceError

    if any(outcome.state == "interrupted" for outcome in outcomes):
        raise KeyboardInterrupt("interrupted; devices listed as interrupted keep their live release")
    failed = [outcome for outcome in outcomes if outcome.state in {"failed", "unknown"}]
    if len(outcomes) == 1 and failed:
        raise DeviceError(failed[0].error, hint=failed[0].hint)
    if failed:
        skipped = sum(outcome.state == "skipped" for outcome in outcomes)
        rest = f", {skipped} skipped" if skipped else ""
        raise DeviceError(
            f"{len(failed)} of {len(outcomes)} devices failed{rest}; {failed[0].error}",
            hint=f"{failed[0].hint}; then repeat the command to continue",
        )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout at its natural width."""
    widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
    for row in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
