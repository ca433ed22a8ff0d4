"""Generate the reference of the Python API: one directive for each public name, rendered by mkdocstrings."""

from __future__ import annotations

from collections.abc import Iterator

import edgeship
from docs.generators import page

SHOWN = ("root_heading", "docstring_parameters", "docstring_returns", "docstring_raises")
OPTIONS = "    options:\n      heading_level: 2\n      members: true" + "".join(
    f"\n      show_{part}: true" for part in SHOWN
)


def pages() -> Iterator[tuple[str, str]]:
    """Yield the page of the public API."""
    names = [name for name in edgeship.__all__ if not name.startswith("_")]
    text = "`import edgeship` loads no SDK; each name is imported on its first use."
    yield (
        "reference/python.md",
        page("Python API", text, *(f"::: edgeship.{name}\n{OPTIONS}" for name in names)),
    )
