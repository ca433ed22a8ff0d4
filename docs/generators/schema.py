"""Generate the schema of report.json from the result types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from docs.generators import code, page, section, summary, table, type_name
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
            (code(name), type_name(hint), "stable" if name in stable(kind) else "", text)
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
