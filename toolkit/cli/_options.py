"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.core.tensors import Size, read_size, sides


class Resumable(click.Command):
    """A command that saves its progress: repeating it after an interruption continues."""


STORE = click.option(
    "--store",
    "store_root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Cache folder of finished stages.  [default: $EDGESHIP_STORE, else ~/.cache/edgeship/store]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
PREPROCESS = click.option(
    "--preprocess",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Preprocessing that the model file does not contain: resize, crop, mean, std or interpolation; "
    "repeatable. E.g. mean=0.5,0.5,0.5 (grey: mean=0.5), resize=96x128 (height x width, pixels).",
)


class SizeType(click.ParamType[Size]):
    """Parse an image size in pixels: N for a square, or HxW (height x width)."""

    name = "N|HxW"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """Return the size; call `fail` with the accepted forms if `value` is not one."""
        try:
            size = read_size(value)
        except ValueError:
            self.fail(
                f"'{value}' is not a size; expected pixels such as 224 or 96x128 (height x width)", param, ctx
            )
        if min(sides(size)) < 1:
            self.fail(f"'{value}' is below the minimum of 1 pixel", param, ctx)
        return size
