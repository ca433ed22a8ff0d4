"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.core.tensors import Size, read_size, sides


class Command(click.Command):
    """A command that accepts former names of its options, with a warning, for one release."""

    def __init__(self, *arguments: Any, former: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._former = former or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, with the current names of renamed options."""
        renamed = []
        for index, argument in enumerate(args):
            if argument == "--":
                renamed += args[index:]
                break
            name, separator, value = argument.partition("=")
            current = self._former.get(name)
            if current:
                from edgeship.toolkit.core.options import warn_renamed

                warn_renamed(f"option {name}", current)
            renamed.append(f"{current or name}{separator}{value}")
        return super().parse_args(ctx, renamed)


class Resumable(Command):
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
