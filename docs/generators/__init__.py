"""Generators of reference pages; each module has `pages()`, which yields (path below pages/, Markdown)."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args

from edgeship.toolkit.core.tensors import Size

ROOT = Path(__file__).parent.parent.parent
NOTE = "<!-- Generated from the code by `make docs`: edit the code, not this page. -->\n"


def page(title: str, *parts: str) -> str:
    """Return a page of parts separated by empty lines."""
    return "\n\n".join((f"# {title}", NOTE.strip(), *(part.strip() for part in parts if part.strip()))) + "\n"


def cell(text: object) -> str:
    """Return a text as one cell of a table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("<", "&lt;").strip()


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; columns whose name begins with # are aligned to the right."""
    names = [name.removeprefix("#") for name in header]
    rule = ["--:" if name.startswith("#") else "---" for name in header]
    lines = [names, rule, *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: object) -> str:
    """Return inline code; empty for an empty text."""
    return f"`{text}`" if str(text) else ""


def summary(described: object) -> str:
    """Return the docstring's text before its first section such as "Args:", as one paragraph each."""
    text = inspect.getdoc(described) or ""
    return re.split(r"\n\n(?:Args|Attributes|Raises|Returns|Source|Yields):\n", text)[0].strip()


def section(described: object, name: str) -> dict[str, str]:
    """Return the entries of a docstring section of Google style: name -> text."""
    text = inspect.getdoc(described) or ""
    match = re.search(rf"^{name}:\n((?:[ ]+.*\n|\n)*)", text + "\n", re.M)
    body = textwrap.dedent(match[1]) if match else ""
    entries = re.findall(r"^(\w+): ((?:.*\n?)(?:(?:[ ]+.*|\s*)\n?)*)", body, re.M)
    return {key: " ".join(value.split()) for key, value in entries}


def type_name(hint: Any) -> str:
    """Return the name of an annotated type in TOML and JSON; a dataclass is a link to its heading."""
    if is_dataclass(hint) and isinstance(hint, type):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if hint in (Size, Size | None):
        return "N or HxW"
    arguments = [each for each in get_args(hint) if each is not Ellipsis]
    origin = str(getattr(hint, "__origin__", ""))
    if arguments and all(isinstance(each, str) for each in arguments):
        return ", ".join(code(each) for each in arguments)
    if "tuple" in origin and len(arguments) == 1:
        return f"list of {type_name(arguments[0])}"
    if "tuple" in origin:
        return f"[{', '.join(map(type_name, arguments))}]"
    if "dict" in origin:
        return f"object of {type_name(arguments[1])}"
    if arguments:
        return " or ".join(type_name(each) for each in arguments)
    if isinstance(hint, str):
        return code(hint)
    names = {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
