"""`edgeship doctor`: show hardware, runtimes and missing software of this machine."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from edgeship.toolkit.cli._options import JSON

# instruction set -> effect on INT8
MEANING = {
    "avx2": "INT8 products added in 16-bit pairs, which can overflow",
    "avx512f": "as avx2, with 64-byte vectors",
    "avx_vnni": "INT8 dot products, exact",
    "avx512_vnni": "INT8 dot products, exact, with 64-byte vectors",
    "amx_int8": "INT8 matrix tiles",
    "amx_bf16": "bfloat16 matrix tiles",
    "neon": "Arm vector instructions",
    "dotprod": "INT8 dot products",
    "i8mm": "INT8 matrix products",
}


@click.command(epilog="\b\nExamples:\n  edgeship doctor\n  edgeship doctor --json")
@JSON
def command(as_json: bool) -> None:
    """Show hardware, runtimes and missing software.

    Lists the processor with the instruction sets that matter for INT8, the version of each runtime or how to
    install it, and the cache folder. Exit code 0 also if a runtime is missing.
    """
    from edgeship.targets._device import this_cpu, this_device
    from edgeship.toolkit.core.artifact import plain
    from edgeship.toolkit.pipeline.store import default_root

    device = this_device()
    runtimes = _runtimes()
    if as_json:
        summary = {
            "device": plain(device),
            "python": sys.version.split()[0],
            "store": str(default_root()),
            "targets": runtimes,
        }
        click.echo(json.dumps(summary, indent=1))
        return
    memory = f"{device.memory_bytes / 2**30:.0f} GB memory"
    click.echo(f"{device.name}, {device.arch}, {device.cores} cores, {memory}")
    if device.power_mode:
        click.echo(f"power mode {device.power_mode}")
    for name in device.instruction_sets:
        click.echo(f"  {name:<14}{MEANING.get(name, '')}".rstrip())
    sums = this_cpu().int8_sums
    if sums == "pairs":
        click.echo(
            "  INT8 sums: pairs in 16 bits, which can overflow; weights are scaled down where a pair would"
        )
    elif sums == "exact":
        click.echo("  INT8 sums: exact, no overflow; all 8 bits of the weights are used")
    click.echo("\ntargets")
    for name, state in runtimes.items():
        if state["versions"]:
            click.echo(f"  {name:<14}{', '.join(f'{k} {v}' for k, v in state['versions'].items())}")
        else:
            click.echo(f"  {name:<14}{state['error']}\n{'':<16}hint: {state['hint']}")
    click.echo(
        f"\npython {sys.version.split()[0]}; " + ", ".join(f"{k} {v}" for k, v in device.versions.items())
    )
    click.echo(f"store {default_root()}")


def _runtimes() -> dict[str, dict[str, Any]]:
    """Return the SDK versions of every target, or the error and the installation hint."""
    from edgeship import targets
    from edgeship.toolkit.core.errors import ToolkitError

    states: dict[str, dict[str, Any]] = {}
    for name in targets.names():
        try:
            states[name] = {"versions": dict(targets.get(name).versions())}
        except ToolkitError as error:
            states[name] = {"versions": {}, "error": str(error), "hint": error.hint}
    return states
