"""Generate the schema of report.json from the result types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from docs.generators import code, page, section, summary, table
from edgeship.toolkit.core.results import RunReport

OUTSIDE = "# outside schema 1"


def pages() -> Iterator[tuple[str, str]]:
    """Yield the page of report.json."""
    parts = [
        "`report.json` of a run, schema 1. Keys marked *stable* keep their name, type and meaning within "
        "schema 1; the others may change. A figure that does not exist is `null`, never a guess. Accuracies "
        "and agreements are fractions in [0, 1]; names end in their unit where they have one."
    ]
    for kind in types(RunReport):
        rows = [
            (code(name), _type(hint), "stable" if name in stable(kind) else "", text)
            for name, hint, text in keys(kind)
        ]
        parts += [f"## {kind.__name__}", summary(kind), table(("key", "type", "status", "meaning"), rows)]
    yield "reference/report.md", page("report.json", *parts)


def types(root: type) -> list[type]:
    """Return the dataclasses reachable from one, each once, in order."""
    found = [root]
    for kind in found:
        for hint in get_type_hints(kind).values():
            found += [each for each in _dataclasses(hint) if each not in found]
    return found


def keys(kind: type) -> Iterator[tuple[str, Any, str]]:
    """Yield name, annotation and meaning of the keys of a type."""
    hints, texts = get_type_hints(kind), section(kind, "Attributes")
    for each in fields(kind):
        yield each.name, hints[each.name], texts.get(each.name, "")


def stable(kind: type) -> frozenset[str]:
    """Return the keys that schema 1 promises: those above the line `# outside schema 1`."""
    public = inspect.getsource(kind).split(OUTSIDE)[0]
    return frozenset(re.findall(r"^    (\w+):", public, re.M)) & {each.name for each in fields(kind)}


def _dataclasses(hint: Any) -> list[type]:
    if is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [kind for inner in get_args(hint) for kind in _dataclasses(inner)]


def _type(hint: Any) -> str:
    if is_dataclass(hint) and isinstance(hint, type):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    arguments = get_args(hint)
    origin = str(getattr(hint, "__origin__", ""))
    if arguments and all(isinstance(each, str) for each in arguments):
        return ", ".join(code(each) for each in arguments)
    if "tuple" in origin:
        inner = [each for each in arguments if each is not Ellipsis]
        return f"list of {_type(inner[0])}" if Ellipsis in arguments else f"[{', '.join(map(_type, inner))}]"
    if "dict" in origin:
        return f"object of {_type(arguments[1])}"
    if arguments:
        return " or ".join(_type(each) for each in arguments)
    names = {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
