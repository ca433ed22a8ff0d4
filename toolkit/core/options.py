"""Declare options once, and convert values from TOML or a command line to them."""

from __future__ import annotations

import logging
import math
import operator
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edgeship.toolkit.core.errors import RecipeError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
LARGEST = 2**32 - 1  # number of an option that has no bound of its own
_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def option(default: T, explanation: str, **rules: Any) -> T:
    """Declare an option: default, one line of help, and rules for its value.

    Args:
        default: The value where nothing sets it.
        explanation: Meaning, with the unit.
        **rules: `path`: a file or folder that the result depends on (a text: only with this suffix);
            `required`: must not be empty; `above`, `least`, `most`: bounds, or functions that return them;
            `known`: function that returns the allowed names; `not_in_key`: not part of the cache key; `read`:
            parses the value, or raises ValueError; `renamed_from`: former name of the key, accepted with a
            warning; `renamed_values`: former value -> current value; `flag`: command-line option, where it is
            not the key; `former_flags`: its former names; `metavar`: its value in the help.
    """
    return field(default=default, metadata={"help": explanation, **rules})


def declared(options: Any) -> dict[str, Field[Any]]:
    """Return name -> field of the options, and of the sections of options, of a class or an instance."""
    hints = _hints(options if isinstance(options, type) else type(options))
    return {
        each.name: each
        for each in fields(options)
        if "help" in each.metadata or is_dataclass(hints[each.name])
    }


def check_bounds(options: Any) -> None:
    """Check the numbers of an options object, which may be built in Python, against their bounds.

    Raises:
        RecipeError: One is out of bounds.
    """
    for each in fields(options):
        value = getattr(options, each.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _check(value, each.name, each.metadata)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        RecipeError: The file cannot be read, or is not TOML; the message has line and column.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except ValueError as error:
        raise RecipeError(
            f"{path} is not TOML: {error}", hint="write one `key = value` per line, with texts in quotes"
        ) from error


def _parsed(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: The text is not TOML, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("its tables or lists are nested too deeply") from error


def parse_override(text: str, options: type) -> tuple[str, Any]:
    """Split `section.key=value` into the dotted name and the value.

    Texts need no quotes and lists may be separated by commas; any TOML value is accepted too.

    Raises:
        RecipeError: There is no `=`.
    """
    name, separator, value = text.partition("=")
    if not separator or "." not in name:
        raise RecipeError(
            f"cannot read '{text}'", hint="write section.key=value, e.g. report.min_speedup=1.5"
        )
    name = name.strip()
    return name, from_text(value.strip(), _annotation(options, current_name(name, options)))


def current_name(name: str, options: Any) -> str:
    """Return the current dotted name of an option that may be given by its former name."""
    section, _, rest = name.partition(".")
    if not is_dataclass(options):
        return name
    section = next(
        (each.name for each in fields(options) if each.metadata.get("renamed_from") == section), section
    )
    return f"{section}.{current_name(rest, _hints(options).get(section))}" if rest else section


def with_current_names(table: Mapping[str, Any], options: Any, where: str = "") -> dict[str, Any]:
    """Return a table with every renamed key under its current name, and log a warning for each.

    Raises:
        RecipeError: A key is given under both names.
    """
    result: dict[str, Any] = {}
    hints = _hints(options)
    for key, value in table.items():
        name = current_name(key, options)
        if name != key:
            warn_renamed(f"option {where}{key}", f"{where}{name}")
            if name in table:
                raise RecipeError(
                    f"{where}{key} and {where}{name} are both set", hint=f"delete {key}: {name} replaces it"
                )
        section = isinstance(value, Mapping) and is_dataclass(hints.get(name))
        result[name] = with_current_names(value, hints[name], f"{where}{name}.") if section else value
    return result


def with_overrides(
    table: Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any], options: Any
) -> dict[str, Any]:
    """Return a table of sections with overrides, all under current names.

    Args:
        table: Section -> key -> value.
        overrides: `section.key=value` texts, or a mapping from `section.key` to a value.
        options: Options class of the table.

    Raises:
        RecipeError: A text cannot be read, or a key is given under both names.
    """
    changed = with_current_names(table, options)
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        pairs = [parse_override(text, options) for text in overrides]
    used_names: dict[str, str] = {}
    for name, value in pairs:
        current = current_name(name, options)
        if name != current:
            warn_renamed(f"option {name}", current)
        if used_names.setdefault(current, name) != name:
            raise RecipeError(f"{used_names[current]} and {name} are both set", hint=f"set only {current}")
        merge(changed, current, value)
    return with_current_names(changed, options)


@cache  # once per name
def warn_renamed(former: str, current: str) -> None:
    """Log that an option or a value has another name now."""
    logging.getLogger("edgeship").warning("%s is called %s now", former, current)


def merge(table: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested tables."""
    *sections, key = name.split(".")
    for section in sections:
        inner = table.get(section)
        table[section] = dict(inner) if isinstance(inner, Mapping) else {}
        table = table[section]
    table[key] = value


def convert(
    value: Any, annotation: Any, where: str, rules: Mapping[str, Any] = types.MappingProxyType({})
) -> Any:
    """Check a value against a type and its rules.

    Args:
        value: Value from TOML.
        annotation: int, float, bool, str, a Literal, a tuple, or a union of these.
        where: Dotted name, for messages.
        rules: Bounds and known names, see `option`.

    Returns:
        The value in that type: lists become tuples.

    Raises:
        RecipeError: The value has another type or is out of bounds.
    """
    if "read" in rules and value is not None:
        try:
            parsed = rules["read"](value)
        except ValueError as error:
            raise RecipeError(f"{where} cannot be {_shown(value)}", hint=str(rules["help"])) from error
        for number in parsed if isinstance(parsed, tuple) else (parsed,):
            _check(number, where, rules)
        return parsed
    origin, choices = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _union(value, annotation, where, rules)
    if origin is Literal:
        if isinstance(value, str) and value in (renamed := rules.get("renamed_values", {})):
            warn_renamed(f"{where} = {value}", renamed[value])
            value = renamed[value]
        if value not in choices:
            raise RecipeError(
                f"{where} cannot be {_shown(value)}", hint=nearest(str(value), map(str, choices))
            )
        return value
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, (int, float)):  # one number is a list of one
            parts = (parts,)
        if not isinstance(parts, (list, tuple)):
            raise _wrong(value, annotation, where)
        items = [from_text(part.strip(), choices[0]) if isinstance(part, str) else part for part in parts]
        if any(_misfit(part, choices[0]) for part in items):
            raise _wrong(value, annotation, where)
        return tuple(convert(part, choices[0], where, rules) for part in items)
    if _misfit(value, annotation):
        raise _wrong(value, annotation, where)
    if annotation is float and abs(value) <= LARGEST:  # of a larger int there may be no float
        value = float(value)
    _check(value, where, rules)
    return value


def _misfit(value: Any, annotation: Any) -> bool:
    """Return True if a value does not have a plain type; an int is a float, a bool is neither."""
    kinds = (int, float) if annotation is float else str if get_origin(annotation) is Literal else annotation
    return not isinstance(value, kinds) or (isinstance(value, bool) and annotation is not bool)


def with_values(options: T, values: Any, where: str = "") -> T:
    """Return options with the values of a table; the others stay.

    Args:
        options: An object of an options class, with defaults.
        values: Key -> value from TOML; a section has a table.
        where: Dotted name of the section, for messages.

    Raises:
        RecipeError: A key is unknown, or a value has another type or is out of bounds.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where} must be a section", hint=f"write [{where}] and its keys below")
    hints, known = _hints(type(options)), declared(options)
    unknown = [key for key in values if key not in known]
    if unknown:
        what = f"'{where}.{unknown[0]}'" if where else f"section '{unknown[0]}'"
        raise RecipeError(f"unknown {what}", hint=nearest(unknown[0], known))
    dot = f"{where}." if where else ""
    changes = {
        key: with_values(getattr(options, key), value, f"{dot}{key}")
        if is_dataclass(hints[key])
        else convert(value, hints[key], f"{dot}{key}", known[key].metadata)
        for key, value in values.items()
    }
    return cast("T", replace(cast("Any", options), **changes))


def _union(value: Any, annotation: Any, where: str, rules: Mapping[str, Any]) -> Any:
    if value is None:
        return None
    kinds = members(annotation)
    for member in kinds:
        words = get_origin(member) is Literal
        if (words and value in get_args(member)) or (len(kinds) == 1):
            return convert(value, member, where, rules)
    for member in kinds:
        if get_origin(member) is not Literal and isinstance(value, member) and not isinstance(value, bool):
            return convert(value, member, where, rules)
    raise _wrong(value, annotation, where)


def _check(value: Any, where: str, rules: Mapping[str, Any]) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise RecipeError(f"{where} is not a number", hint="write a number")
    if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise RecipeError(
            f"{where} = '{value}' is not a text in UTF-8", hint="rename the file, or edit the value"
        )
    if isinstance(value, (int, float)):
        rules = {"least": -LARGEST, "most": LARGEST, **rules}
    for rule, holds in (("above", operator.gt), ("least", operator.ge), ("most", operator.le)):
        if rule not in rules:
            continue
        bound = rules[rule]() if callable(rules[rule]) else rules[rule]
        if not holds(value, bound):
            words = {"above": "above", "least": "at least", "most": "at most"}[rule]
            raise RecipeError(f"{where} = {value} must be {words} {bound}", hint=str(rules["help"]))
    if "known" in rules and value not in rules["known"]():
        raise RecipeError(f"{where} cannot be '{value}'", hint=nearest(value, rules["known"]()))


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """Declaration of an option: key, type, default and rules (see `option`)."""

    name: str
    annotation: Any
    default: Any
    rules: Mapping[str, Any]

    def choices(self) -> tuple[str, ...]:
        """Return the allowed words; empty if any value is allowed."""
        if "known" in self.rules:
            return tuple(self.rules["known"]())
        words = (word for kind in members(self.annotation) for word in get_args(kind))
        return tuple(word for word in words if isinstance(word, str))


def field_of(options: Any, name: str) -> FieldInfo:
    """Return the declaration of an option, with its value in `options` as default.

    Args:
        options: An object of an options class.
        name: Dotted name.
    """
    *sections, key = name.split(".")
    for section in sections:
        options = getattr(options, section)
    each = declared(options)[key]
    return FieldInfo(key, _hints(type(options))[key], getattr(options, key), each.metadata)


def members(annotation: Any) -> list[Any]:
    """Return the members of a union without None; of another type, the type."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation]
    return [member for member in get_args(annotation) if member is not types.NoneType]


def _annotation(options: Any, name: str) -> Any:
    """Return the type of a dotted name; None for an unknown option, which `convert` reports."""
    for part in name.split("."):
        options = _hints(options).get(part) if is_dataclass(options) else None
    return options


def from_text(text: str, annotation: Any) -> Any:
    """Parse a value of a command line: as TOML where possible, else as text; a str option is text."""
    none_or_text = None if text in ("none", "None") and _optional(annotation) else text
    if members(annotation) == [str] and not text.startswith(('"', "'")):
        return none_or_text
    try:
        return _parsed(f"value = {text}")["value"]
    except ValueError:
        return none_or_text


def _optional(annotation: Any) -> bool:
    return types.NoneType in get_args(annotation)


def _wrong(value: Any, annotation: Any, where: str) -> RecipeError:
    words = _words(annotation)
    if "a list" in words:
        key = where.rsplit(".", 1)[-1]
        words += f", separated by commas: {key}=0.5,0.25" if "number" in words else f": {key}=one,two"
    return RecipeError(f"{where} cannot be {_shown(value)}", hint=f"it takes {words}")


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _words(annotation: Any) -> str:
    """Describe a type in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if annotation in names:
        return names[annotation]
    if get_origin(annotation) is tuple:
        return f"a list, each {_words(get_args(annotation)[0])}"
    if get_origin(annotation) is Literal:
        return ", ".join(str(member) for member in get_args(annotation))
    return " or ".join(_words(member) for member in members(annotation))
