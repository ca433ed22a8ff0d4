"""`edgeship store`: list and clean the cache of finished stages."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from edgeship.toolkit.cli._options import JSON, STORE, Number

UNITS = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  edgeship store
  edgeship store verify
  edgeship store gc --older-than 30
  edgeship store clear
""",
)
@STORE
@JSON
@click.pass_context
def command(context: click.Context, store_root: Path | None, as_json: bool) -> None:
    """List or clean the cache of finished stages.

    Without a subcommand, lists date, stage, size, duration in seconds and folder of every cached stage.
    """
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
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.made_at))
        click.echo(
            f"{date}  {entry.stage:<10} {_size(entry.size_bytes):>9}  {entry.seconds:7.1f} s  {entry.folder}"
        )
    click.echo(f"{len(entries)} stages, {_size(total)} in {store.root}")


@command.command(epilog="\b\nExample:\n  edgeship store gc --older-than 30")
@click.option(
    "--older-than", "days", type=Number(0, 36500), metavar="DAYS", help="Also remove stages that are older."
)
@STORE
@click.pass_context
def gc(context: click.Context, days: float | None, store_root: Path | None) -> None:
    """Remove unreachable results.

    Removes results that were replaced by a rerun, and temporary files of interrupted runs.
    """
    from edgeship.toolkit.pipeline.store import Store

    freed = Store(store_root or context.obj["store"]).gc(older_than_days=days)
    click.echo(f"freed {_size(freed)}")


@command.command(epilog="\b\nExample:\n  edgeship store verify")
@STORE
@click.pass_context
def verify(context: click.Context, store_root: Path | None) -> None:
    """Compare every cached stage with its digest.

    Damaged results are removed: the next run computes them again. Exit code 1: there were some.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.errors import ToolkitError
    from edgeship.toolkit.pipeline.store import Store

    with show_progress():
        intact, damaged = Store(store_root or context.obj["store"]).verify()
    click.echo(f"{intact} stages are intact")
    if damaged:
        raise ToolkitError(
            f"{damaged} of {intact + damaged} stages were damaged and were removed",
            hint="check the disk; the next run computes them again",
        )


@command.command(epilog="\b\nExample:\n  edgeship store clear")
@STORE
@click.pass_context
def clear(context: click.Context, store_root: Path | None) -> None:
    """Remove all cached stages.

    The next run computes every stage again.
    """
    from edgeship.toolkit.pipeline.store import Store

    click.echo(f"freed {_size(Store(store_root or context.obj['store']).clear())}")


def _size(size_bytes: int) -> str:
    for unit, name in UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"
