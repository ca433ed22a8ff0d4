"""`edgeship status`: list the releases on devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._devices import device_options, inventory_path, monitored, print_table
from edgeship.toolkit.cli._options import JSON

if TYPE_CHECKING:
    from edgeship.toolkit.deploy.inventory import Device


@click.command(epilog="\b\nExamples:\n  edgeship status\n  edgeship status --tag shop --json")
@device_options
@JSON
def command(inventory: Path | None, devices: tuple[str, ...], tags: tuple[str, ...], as_json: bool) -> None:
    """List the releases on devices.

    Shows the live, previous and other installed releases, and deployments in progress. Without --device and
    --tag, all devices of the inventory are listed. What the monitor of the application saw is shown below the
    releases, see `edgeship watch`. Exit code 1: a device could not be reached.
    """
    import json
    from concurrent.futures import ThreadPoolExecutor

    from edgeship.toolkit.core.errors import DeviceError
    from edgeship.toolkit.deploy.inventory import choose, load

    entries = load(inventory_path(inventory))
    names = entries if not (devices or tags) else devices
    chosen = choose(entries, names, tags)
    with ThreadPoolExecutor(8) as pool:
        statuses = dict(zip((entry.name for entry in chosen), pool.map(query, chosen), strict=True))
    if as_json:
        click.echo(json.dumps(statuses, indent=1))
    else:
        rows = [row for name, status in statuses.items() for row in _rows(name, status)]
        print_table(("device", "release", "state", "variant", "top-1", "p50 latency"), rows)
        live = next((entry for entry in chosen if statuses[entry.name].get("current")), None)
        if live is not None:
            click.echo(f"\nuse:     python3 {live.root}/current/classify.py IMAGE   (on {live.name})")
    failed = [status for status in statuses.values() if "error" in status]
    if failed:
        raise DeviceError(failed[0]["error"], hint=failed[0]["hint"])


def query(entry: Device) -> dict[str, Any]:
    """Return the status of a device, or its error and hint."""
    from edgeship.toolkit.core.errors import DeviceError
    from edgeship.toolkit.deploy.release import status

    try:
        return status(entry)
    except DeviceError as error:
        return {"error": str(error), "hint": error.hint}


def _rows(name: str, status: dict[str, Any]) -> list[tuple[str, ...]]:
    from edgeship.toolkit.deploy.checks import latency

    if "error" in status:
        return [(name, "", "unreachable", "", "", "")]
    rows: list[tuple[str, ...]] = []
    for release, record in status["releases"].items():
        states = ["bad"] if release in status["bad"] else []
        if release == status["current"]:
            states.append("live, not verified yet" if status["pending"] else "live")
        if release == status["previous"]:
            states.append("previous")
        top1 = ((record or {}).get("accuracy") or {}).get("top1")
        rows.append(
            (
                name,
                release,
                ", ".join(states) or "installed",
                (record["variant"] + (" (fake)" if record["fake"] else ""))
                if record
                else "record is damaged",
                "" if top1 is None else f"{100 * top1:.2f} %",
                latency(record) if record else "",
            )
        )
    if (monitor := status.get("monitor")) is not None:
        rows.append((name, "", monitored(monitor), "", "", ""))
    if status["locked_by"]:
        rows.append((name, "", f"locked by {status['locked_by']}", "", "", ""))
    return rows or [(name, "", "nothing installed", "", "", "")]
