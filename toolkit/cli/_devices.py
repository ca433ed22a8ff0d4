"""What the commands for devices share: choosing devices, showing their states, telling outcomes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.table import Table

    from edgeship.toolkit.deploy.inventory import Entry
    from edgeship.toolkit.deploy.release import Outcome

Command = TypeVar("Command", bound=Callable[..., Any])

COLOURS = {"live": "green", "unchanged": "green", "planned": "cyan", "failed": "red", "interrupted": "red"}

INVENTORY = click.option(
    "--inventory",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of devices.  [default: ~/.config/edgeship/devices.toml]",
)
WAIT = click.option(
    "--wait",
    "wait_s",
    default=60.0,
    show_default=True,
    help="Seconds to wait while someone else deploys there.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only print what would be done.")


def choice(command: Command) -> Command:
    """Options that choose devices."""
    command = click.option("--tag", "tags", multiple=True, help="Devices with this tag; may be repeated.")(
        command
    )
    command = click.option("--device", "devices", multiple=True, help="A device's name; may be repeated.")(
        command
    )
    return INVENTORY(command)


def inventory_path(inventory: Path | None) -> Path:
    """The inventory that is meant."""
    from edgeship.toolkit.deploy.inventory import default_path

    return inventory or default_path()


def chosen(inventory: Path | None, devices: Sequence[str], tags: Sequence[str]) -> list[Entry]:
    """The devices that are meant."""
    from edgeship.toolkit.deploy.inventory import choose, load

    return choose(load(inventory_path(inventory)), devices, tags)


class States:
    """The state of every device; a live table in a terminal, lines elsewhere."""

    def __init__(self, names: Sequence[str]) -> None:
        self._states = dict.fromkeys(names, ("waiting for its turn", ""))
        self._said: dict[str, str] = {}
        self.lines = True

    def tell(self, device: str, state: str, detail: str) -> None:
        """Note a change; called from several threads."""
        self._states[device] = (state, detail)
        if self.lines and self._said.get(device) != state:
            self._said[device] = state
            click.echo(f"{device}: {state}{f' ({detail})' if detail else ''}", err=True)

    def __rich__(self) -> Table:
        """The table, as it is now."""
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
    shown = States(names)
    if not sys.stderr.isatty():
        yield shown
        return
    from rich.console import Console
    from rich.live import Live

    shown.lines = False
    with Live(shown, console=Console(stderr=True), refresh_per_second=8):
        yield shown


def finish(outcomes: Sequence[Outcome]) -> None:
    """End a command as its outcomes say.

    Raises:
        DeviceError: A device failed.
        KeyboardInterrupt: The work was interrupted.
    """
    from edgeship.toolkit.core.errors import DeviceError

    if any(outcome.state == "interrupted" for outcome in outcomes):
        raise KeyboardInterrupt("interrupted; what was live on the devices still is")
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if len(outcomes) == 1 and failed:
        raise DeviceError(failed[0].error, hint=failed[0].hint)
    if failed:
        skipped = sum(outcome.state == "skipped" for outcome in outcomes)
        rest = f", {skipped} were left alone" if skipped else ""
        raise DeviceError(
            f"{len(failed)} of {len(outcomes)} devices failed{rest}; {failed[0].error}",
            hint=f"{failed[0].hint}; then the same command goes on from there",
        )


def as_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout, as wide as it needs to be."""
    widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
    for row in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
