"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click


class Resumable(click.Command):
    """A command that keeps what it has finished: interrupted and given again, it goes on."""


STORE = click.option(
    "--store",
    "store_root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps finished stages.  [default: $EDGESHIP_STORE, else ~/.cache/edgeship/store]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
PREPROCESS = click.option(
    "--preprocess",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="resize, crop, mean, std or interpolation, where the file does not say it; e.g. mean=0.5,0.5,0.5 "
    "(grey: mean=0.5).",
)
