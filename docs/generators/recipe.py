"""Generate the reference of recipe keys from the option declarations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, is_dataclass
from typing import Any, get_type_hints

from docs.generators import code, page, summary, table, type_name
from edgeship.toolkit.core.artifact import canonical_json
from edgeship.toolkit.core.options import declared
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
    for name in declared(Recipe()):
        options = getattr(Recipe(), name)
        parts += [f"## {name}", summary(options), table(HEADER, _rows(name, options))]
        former += list(_former(name, options))
    parts += ["## Former names", "Accepted, with a warning:", table(("former", "now"), former)]
    yield "reference/recipe.md", page("Recipe keys", *parts)
    yield "reference/recipes.md", page("Bundled recipes", *_bundled())


def _rows(section: str, options: Any) -> Iterator[tuple[str, ...]]:
    hints = get_type_hints(type(options))
    for name, each in declared(options).items():
        value = getattr(options, name)
        if is_dataclass(value):
            yield from _rows(f"{section}.{name}", value)
            continue
        default = "*required*" if each.metadata.get("required") and not value else ""
        if value not in (None, "", ()):
            default = code(canonical_json(value))
        meaning = f"{each.metadata['help']}{_bounds(each)}"
        yield code(f"{section}.{name}"), _type(hints[name], each), default, meaning


def _type(hint: Any, each: Field[Any]) -> str:
    if known := each.metadata.get("known"):
        return ", ".join(code(name) for name in known())
    return "path" if "path" in each.metadata else type_name(hint).removesuffix(" or null")


def _bounds(each: Field[Any]) -> str:
    signs = {"above": ">", "least": "≥", "most": "≤"}
    found = [
        f"{sign} {each.metadata[rule]}"
        for rule, sign in signs.items()
        if rule in each.metadata and not callable(each.metadata[rule])
    ]
    return f" ({', '.join(found)})" if found else ""


def _former(section: str, options: Any) -> Iterator[tuple[str, str]]:
    for name, each in declared(options).items():
        key, value = f"{section}.{name}", getattr(options, name)
        if is_dataclass(value):
            yield from _former(key, value)
        if former := each.metadata.get("renamed_from"):
            yield code(f"{section}.{former}"), code(key)
        for before, now in each.metadata.get("renamed_values", {}).items():
            yield code(f"{key} = {before}"), code(f"{key} = {now}")


def _bundled() -> Iterator[str]:
    yield "`edgeship run NAME` runs them; a copy is a start for your own."
    for name in recipe.names():
        text = recipe.find(name).read_text(encoding="utf-8").strip()
        yield f"## {name}\n\n```toml\n{text}\n```"
