"""`edgeship store`: what finished stages take up, and how to get the room back."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from edgeship.toolkit.cli._options import JSON, STORE

UNITS = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  edgeship store
  edgeship store gc --older-than 30
  edgeship store clear
""",
)
@STORE
@JSON
@click.pass_context
def command(context: click.Context, store_root: Path | None, as_json: bool) -> None:
    """List the finished stages that are kept, and clean up."""
    from edgeship.toolkit.pipeline.store import Store, as_dict

    context.obj["store"] = store_root
    if context.invoked_subcommand is not None:
        return
    store = Store(store_root)
    entries = store.entries()
    total = store.size_bytes()
    if as_json:
        rows = [as_dict(entry) for entry in entries]
        click.echo(json.dumps({"root": str(store.root), "size_bytes": total, "stages": rows}, indent=1))
        return
    for entry in entries:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.made_at))
        click.echo(
            f"{made}  {entry.stage:<10} {_size(entry.size_bytes):>9}  {entry.seconds:7.1f} s  {entry.folder}"
        )
    click.echo(f"{len(entries)} stages, {_size(total)} in {store.root}")


@command.command(epilog="\b\nExample:\n  edgeship store gc --older-than 30")
@click.option("--older-than", "days", type=float, metavar="DAYS", help="Also remove stages older than this.")
@STORE
@click.pass_context
def gc(context: click.Context, days: float | None, store_root: Path | None) -> None:
    """Remove replaced results and left-overs.

    What no run can find again goes: results that were made anew, and what killed runs left.
    """
    from edgeship.toolkit.pipeline.store import Store

    freed = Store(store_root or context.obj["store"]).gc(older_than_days=days)
    click.echo(f"freed {_size(freed)}")


@command.command(epilog="\b\nExample:\n  edgeship store clear")
@STORE
@click.pass_context
def clear(context: click.Context, store_root: Path | None) -> None:
    """Remove everything; the next run starts from nothing."""
    from edgeship.toolkit.pipeline.store import Store

    click.echo(f"freed {_size(Store(store_root or context.obj['store']).clear())}")


def _size(size_bytes: int) -> str:
    for unit, name in UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"
