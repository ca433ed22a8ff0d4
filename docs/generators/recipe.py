"""Generate the reference of recipe keys from the option declarations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, fields
from typing import Any, get_args, get_type_hints

from docs.generators import code, page, summary, table
from edgeship.toolkit.core.artifact import canonical_json
from edgeship.toolkit.core.tensors import Size
from edgeship.toolkit.pipeline import recipe
from edgeship.toolkit.pipeline.recipe import Recipe

HEADER = ("key", "type", "default", "meaning")


def pages() -> Iterator[tuple[str, str]]:
    """Yield the page of recipe keys and the page of bundled recipes."""
    parts = [
        "A recipe is a TOML file with one table for each stage. `--set section.key=value` overrides a key on "
        "the command line. Every key has a default but those marked *required*."
    ]
    former = []
    for each in fields(Recipe):
        options = each.default
        if not hasattr(options, "__dataclass_fields__"):
            continue
        parts += [f"## {each.name}", summary(options), table(HEADER, _rows(each.name, options))]
        former += list(_former(each.name, options))
    parts += ["## Former names", "Accepted, with a warning:", table(("former", "now"), former)]
    yield "reference/recipe.md", page("Recipe keys", *parts)
    yield "reference/recipes.md", page("Bundled recipes", *_bundled())


def _rows(section: str, options: Any) -> Iterator[tuple[str, ...]]:
    hints = get_type_hints(type(options))
    for each in fields(options):
        if each.metadata.get("derived"):
            continue
        if hasattr(each.default, "__dataclass_fields__"):
            yield from _rows(f"{section}.{each.name}", each.default)
            continue
        default = "*required*" if each.metadata.get("required") and not each.default else ""
        if each.default not in (None, "", ()):
            default = code(canonical_json(each.default))
        meaning = f"{each.metadata['help']}{_bounds(each)}"
        yield code(f"{section}.{each.name}"), _type(hints[each.name], each), default, meaning


def _type(hint: Any, each: Field[Any]) -> str:
    if known := each.metadata.get("known"):
        return ", ".join(code(name) for name in known())
    choices = get_args(hint)
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(code(choice) for choice in choices)
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
    if "path" in each.metadata:
        return "path"
    if hint == Size | None:
        return "N or HxW"
    text = re.sub(r"typing\.|Literal\[(.*?)\]|Optional", lambda m: m[1] or "", str(hint))
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("NoneType", "None").replace("'", "")
    text = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", text)
    words = [word for word in re.split(r" \| |, |Union\[|\]", text) if word and word != "None"]
    return " or ".join(re.sub(r"\b(str|int|float|bool)\b", lambda m: names[m[1]], word) for word in words)


def _bounds(each: Field[Any]) -> str:
    signs = {"above": ">", "least": "≥", "most": "≤"}
    found = [
        f"{sign} {each.metadata[rule]}"
        for rule, sign in signs.items()
        if rule in each.metadata and not callable(each.metadata[rule])
    ]
    return f" ({', '.join(found)})" if found else ""


def _former(section: str, options: Any) -> Iterator[tuple[str, str]]:
    for each in fields(options):
        key = f"{section}.{each.name}"
        if hasattr(each.default, "__dataclass_fields__"):
            yield from _former(key, each.default)
        if name := each.metadata.get("renamed_from"):
            yield code(f"{section}.{name}"), code(key)
        for before, now in each.metadata.get("renamed_values", {}).items():
            yield code(f"{key} = {before}"), code(f"{key} = {now}")


def _bundled() -> Iterator[str]:
    yield "`edgeship run NAME` runs them; a copy is a start for your own."
    for name in recipe.names():
        text = recipe.find(name).read_text(encoding="utf-8").strip()
        yield f"## {name}\n\n```toml\n{text}\n```"
