"""`edgeship export-app`: generate an application of a run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from edgeship.toolkit.cli._options import JSON, Command
from edgeship.toolkit.cli._outputs import OutPath
from edgeship.toolkit.export_app import names


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  edgeship export-app runs/r18 --for http --out service
  edgeship export-app runs/r18 --for gstreamer-python --out camera
""",
)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--for", "kind", type=click.Choice(names()), required=True, help="Kind of application.")
@click.option("--out", required=True, type=OutPath(file_okay=False), help="Folder to write.")
@click.option(
    "--variant",
    metavar="NAME",
    help="Variant of the run.  [default: an INT8 engine that fits the application]",
)
@JSON
def command(*, run: Path, kind: str, out: Path, variant: str | None, as_json: bool) -> None:
    """Generate an application of a run: a service, a pipeline, a program.

    RUN is a folder written by `edgeship run --out`. The folder has the engine, its class names and
    preprocessing, all files of the application, and a README.md with the commands that start it and the
    checks that it passed.
    """
    from edgeship.toolkit.core.artifact import plain
    from edgeship.toolkit.export_app import write

    done = write(run, kind, out, variant)
    if as_json:
        click.echo(json.dumps(plain(done), indent=1))
        return
    for name in done.files:
        click.echo(f"  {name}")
    click.echo(f"wrote {done.folder} with {done.variant}; see README.md there")
    click.echo(f"next: cd {shlex.quote(str(done.folder))} && {done.start.splitlines()[0]}")
