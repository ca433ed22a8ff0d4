"""`edgeship device`: manage the inventory of devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._devices import INVENTORY, WAIT, inventory_path, print_table, selected_devices
from edgeship.toolkit.cli._options import JSON

if TYPE_CHECKING:
    from edgeship.toolkit.deploy.inventory import Device


@click.group(
    epilog="\b\nExamples:\n"
    "  edgeship device add nano-1 --host 10.0.0.5 --target tensorrt --tag lab\n"
    "  edgeship device add here --host local --target openvino\n"
    "  edgeship device probe nano-1"
)
def command() -> None:
    """Manage the inventory of devices."""


@command.command(
    epilog="\b\nExamples:\n"
    "  edgeship device add nano-1 --host 10.0.0.5 --user nvidia --target tensorrt\n"
    "  edgeship device add shop-1 --host 10.0.0.11 --target openvino --tag shop\n"
    "  edgeship device add here --host local --target openvino"
)
@click.argument("name")
@click.option("--host", required=True, help="Host name, address or ssh alias; 'local' is this machine.")
@click.option("--target", required=True, help="Runtime of the device: openvino, onnxruntime or tensorrt.")
@click.option("--user", default="", help="Login name.  [default: that of ssh]")
@click.option("--port", default=0, help="Port of the SSH server.  [default: that of ssh]")
@click.option("--key", default="", help="SSH private key file.")
@click.option("--jump", default="", help="Jump hosts, as for `ssh -J`.")
@click.option("--tag", "tags", multiple=True, help="Tag to select devices by; repeatable.")
@click.option("--root", default="~/edgeship", show_default=True, help="Installation folder on the device.")
@click.option(
    "--health",
    default="",
    help="Shell command on the device that has to exit with 0 after a release is made live.",
)
@click.option(
    "--python",
    default="",
    help="Command of a Python 3.8 or later of the device that can import the runtime; may have arguments.  "
    "[default: python3]",
)
@click.option("--ssh-config", default="", help="SSH configuration file.  [default: ~/.ssh/config]")
@INVENTORY
def add(
    inventory: Path | None, name: str, host: str, python: str, tags: tuple[str, ...], **fields: Any
) -> None:
    """Add a device to the inventory.

    NAME is the name of the device in other commands; it is not checked that the device can be reached.
    """
    import shlex
    import sys

    from edgeship import targets
    from edgeship.toolkit.core.errors import RecipeError, nearest
    from edgeship.toolkit.deploy import inventory as inventories

    if fields["target"] not in targets.names():
        raise RecipeError(
            f"no target named '{fields['target']}'", hint=nearest(fields["target"], targets.names())
        )
    if not python:
        python = shlex.quote(sys.executable) if host == inventories.LOCAL else "python3"
    path = inventory_path(inventory)
    inventories.add(path, inventories.Device(name, host, tags=tags, python=python, **fields))
    click.echo(f"added {name} to {path}")


@command.command(name="list", epilog="\b\nExample:\n  edgeship device list --json")
@INVENTORY
@JSON
def list_(inventory: Path | None, as_json: bool) -> None:
    """List the devices of the inventory."""
    import dataclasses
    import json

    from edgeship.toolkit.deploy.inventory import load

    entries = load(inventory_path(inventory)).values()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=1))
    elif not entries:
        click.echo("no devices yet; add one with `edgeship device add`", err=True)
    else:
        rows = [(e.name, _address(e), e.target, " ".join(e.tags), e.root) for e in entries]
        print_table(("device", "host", "target", "tags", "root"), rows)


@command.command(epilog="\b\nExample:\n  edgeship device probe nano-1")
@click.argument("name")
@INVENTORY
@JSON
def probe(name: str, inventory: Path | None, as_json: bool) -> None:
    """Show hardware, runtimes and problems of a device.

    Lists the facts of the device NAME, its runtimes with their precisions, and every problem with its fix.
    The device is not changed.
    """
    import json

    from edgeship.toolkit.deploy.release import facts

    probed = facts(selected_devices(inventory, [name], ())[0])
    if as_json:
        click.echo(json.dumps(probed, indent=1))
        return
    rows = list(_facts(probed))
    print_table(("fact", "value"), rows)
    for problem in probed["problems"]:
        click.echo(f"problem: {problem['cause']}\n    fix: {problem['cure']}")


@command.command(
    epilog="\b\nExamples:\n"
    "  edgeship device trust shop-1 signers\n"
    "  edgeship device trust shop-1 signers --model resnet18 --version-floor 4"
)
@click.argument("name")
@click.argument("signers", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Name of the only model that the device takes.  [default: as before]")
@click.option(
    "--version-floor",
    "floor",
    default=0,
    type=click.IntRange(0, 2**53),
    help="Lowest version of a bundle that the device takes; it is never lowered.",
)
@INVENTORY
@WAIT
def trust(
    name: str, signers: Path, *, model: str | None, floor: int, inventory: Path | None, wait_s: float
) -> None:
    """Require signed bundles on a device.

    The device NAME then accepts only bundles signed by one of SIGNERS, an "allowed signers" file of
    ssh-keygen(1): one line per signer, with a name and a public key. It refuses bundles that are expired, and
    older than the latest that was live there.
    """
    from edgeship.toolkit.deploy.release import DeployOptions
    from edgeship.toolkit.deploy.release import trust as set_trust

    entry = selected_devices(inventory, [name], ())[0]
    options = DeployOptions(wait_s=wait_s)
    set_trust(entry, signers.read_text(encoding="utf-8"), options, model=model, floor=floor)
    click.echo(f"{name} accepts only bundles signed by {signers}")


@command.command(epilog="\b\nExample:\n  edgeship device remove nano-1")
@click.argument("name")
@INVENTORY
def remove(name: str, inventory: Path | None) -> None:
    """Remove a device from the inventory.

    NAME is removed from the inventory file; the device itself is not changed.
    """
    from edgeship.toolkit.deploy import inventory as inventories

    path = inventory_path(inventory)
    inventories.remove(path, name)
    click.echo(f"removed {name} from {path}")


def _address(entry: Device) -> str:
    """Return the address as user@host:port, without the parts that are not set."""
    return f"{entry.user}@{entry.host}".lstrip("@") + (f":{entry.port}" if entry.port else "")


def _facts(probed: dict[str, Any]) -> list[tuple[str, str]]:
    facts, status = probed["facts"], probed["status"]
    board, memory = facts["jetson"] or {}, facts["memory"]["total_bytes"]
    rows = [
        ("host", status["hostname"]),
        ("system", f"{facts['os']}, {facts['arch']}"),
        ("module", board.get("module")),
        ("JetPack", f"{board['jetpack'] or 'unknown'} (L4T {board['l4t']})" if board else None),
        ("GPU", _gpu(board, facts["clocks"]["gpu"]) if board else None),
        ("CUDA", facts["sdk"]["cuda"]),
        ("processor", f"{facts['cpu']['name']} ({', '.join(facts['cpu']['instruction_sets'])})"),
        ("memory", None if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("power mode", facts["power"]["mode"]),
        ("power", _power(facts["rails"])),
        ("temperature", _hottest(facts["thermal"]["temperatures_c"]) if board else None),
        ("python", facts["python"]["version"]),
        ("root", f"{status['root']} ({status['free_bytes'] / 2**30:.1f} GiB free)"),
        ("live release", status["current"] or "none"),
    ]
    for name, offer in probed["backends"].items():
        support = (
            f"{offer['version']}: {', '.join(offer['precisions'])}"
            if offer["available"]
            else f"no: {offer['cause']}"
        )
        rows.append((name, support))
    return [(name, str(value)) for name, value in rows if value is not None]


def _gpu(board: dict[str, Any], clock: dict[str, Any] | None) -> str:
    parts = [f"SM {board['sm']}", "no INT8" if board["gpu_int8"] is False else "", _dla(board["dla_cores"])]
    if clock and clock["max_hz"]:
        locked = {True: "locked", False: "not locked", None: "lock unknown"}[clock["locked"]]
        parts.append(f"up to {clock['max_hz'] / 1e6:.0f} MHz, {locked}")
    return ", ".join(part for part in parts if part)


def _dla(cores: int | None) -> str:
    return "" if cores is None else f"{cores or 'no'} DLA core{'' if cores == 1 else 's'}"


def _power(rails: dict[str, Any]) -> str | None:
    return None if rails["total_mw"] is None else f"{rails['total_mw'] / 1000:.2f} W ({rails['total_from']})"


def _hottest(temperatures_c: dict[str, float]) -> str | None:
    name = max(temperatures_c, key=temperatures_c.__getitem__, default=None)
    return None if name is None else f"{temperatures_c[name]:.0f} C ({name})"
