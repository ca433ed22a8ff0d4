"""`edgeship watch`: show what the monitors of the applications on devices saw."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._devices import device_options, inventory_path, monitored, print_table
from edgeship.toolkit.cli._options import JSON
from edgeship.toolkit.cli.status import query


@click.command(epilog="\b\nExamples:\n  edgeship watch\n  edgeship watch --tag shop --json")
@device_options
@JSON
def command(inventory: Path | None, devices: tuple[str, ...], tags: tuple[str, ...], as_json: bool) -> None:
    """Show drift and faults that the monitors of applications on devices saw.

    A monitor in the library on the device (`classify.py`) compares the frames of an application with the
    evaluation images, by statistics of pixels, logits and classes; no image leaves the device. An alarm names
    its likely cause. Without a change there is one false alarm in a million independent frames, on average.
    Without --device and --tag, all devices of the inventory are listed.

    Exit code 3: a monitor raised an alarm. Exit code 1: a device could not be reached.
    """
    import json
    from concurrent.futures import ThreadPoolExecutor

    from edgeship.toolkit.core.errors import DeviceError, GateError
    from edgeship.toolkit.deploy.inventory import choose, load

    entries = load(inventory_path(inventory))
    chosen = choose(entries, entries if not (devices or tags) else devices, tags)
    names = [entry.name for entry in chosen]
    with ThreadPoolExecutor(8) as pool:
        statuses = dict(zip(names, pool.map(query, chosen), strict=True))
    states = {
        name: status if "error" in status else {"release": status["current"], "monitor": status["monitor"]}
        for name, status in statuses.items()
    }
    if as_json:
        click.echo(json.dumps(states, indent=1))
    else:
        print_table(
            ("device", "release", "monitor"), [(name, *_cells(state)) for name, state in states.items()]
        )
    alarms = [name for name, state in states.items() if (state.get("monitor") or {}).get("alarm")]
    if alarms:
        title = states[alarms[0]]["monitor"]["alarm"]["title"]
        raise GateError(
            f"{len(alarms)} of {len(names)} devices raised an alarm; {alarms[0]}: {title}",
            hint="correct the cause, then remove monitor.json in the root on the device",
        )
    failed = [state for state in states.values() if "error" in state]
    if failed:
        raise DeviceError(failed[0]["error"], hint=failed[0]["hint"])


def _cells(state: dict[str, object]) -> tuple[str, str]:
    if "error" in state:
        return "", "unreachable"
    monitor = state["monitor"]
    shown = monitored(monitor) if isinstance(monitor, dict) else "no frames watched yet"
    return str(state["release"] or ""), shown
