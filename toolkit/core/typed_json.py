"""Read JSON files into dataclasses, with every value checked against its type annotation."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edgeship.toolkit.core.artifact import read_json, write_json
from edgeship.toolkit.core.errors import DataError

T = TypeVar("T")
F = TypeVar("F", bound="JsonFile")
_NAMES = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


class JsonFile:
    """Base of a dataclass that is the content of one file, `FILE`."""

    __slots__ = ()
    FILE: ClassVar[str]

    @classmethod
    def read(cls: type[F], folder: Path) -> F:
        """Read the file of a folder.

        Raises:
            DataError: The file is absent, damaged, or of another form.
        """
        return read_as(folder / cls.FILE, cls)

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        write_json(folder / self.FILE, self)


def read_as(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a type: a dataclass, or a dict, list or tuple of such.

    Raises:
        DataError: The file is absent or not JSON, or a field has another type; unknown fields are ignored.
    """
    return from_json(read_json(path), kind, str(path))


def from_json(value: object, kind: type[T], source: str) -> T:
    """Convert JSON to a type.

    Args:
        value: The JSON.
        kind: A dataclass, a class with a method `from_json`, a plain type, a Literal, or a union, tuple,
            list or dict of these.
        source: File of the JSON, for messages.

    Raises:
        DataError: A field is missing or has another type.
    """
    try:
        return cast(T, _convert(value, kind, ""))
    except _MismatchError as error:
        raise DataError(
            f"{source}: {error}",
            hint="run the recipe again: the file is damaged, or another version of edgeship wrote it",
        ) from error


class _MismatchError(Exception):
    """A field with another type than its annotation."""

    def __init__(self, where: str, value: object, expected: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        super().__init__(
            f"field '{where}' is {shown}, expected {expected}"
            if where
            else f"is {shown}, expected {expected}"
        )


def _convert(value: Any, kind: Any, where: str) -> Any:  # Any: a JSON value, a type annotation
    if kind in (Any, object):
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        if not any(value == each and type(value) is type(each) for each in arguments):
            raise _MismatchError(where, value, " or ".join(map(repr, arguments)))
        return value
    if origin is tuple:
        return _convert_tuple(value, arguments, where)
    if origin is list:
        return list(_convert_tuple(value, (arguments[0], ...), where))
    if origin is dict:
        if not isinstance(value, dict):
            raise _MismatchError(where, value, "an object")
        return {
            _convert(key, arguments[0], where): _convert(item, arguments[1], _join(where, key))
            for key, item in value.items()
        }
    if kind is Path:
        return Path(_convert(value, str, where))
    if hasattr(kind, "from_json"):
        try:
            return kind.from_json(value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _MismatchError(where, value, f"a {kind.__name__}: {error}") from error
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(value, kind, where)
    if kind in _NAMES:
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool) or _infinite(value):
            raise _MismatchError(where, value, _NAMES[kind])
        return value
    raise TypeError(f"{kind!r} has no JSON form")


def _convert_dataclass(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _MismatchError(where, value, "an object")
    converted = {}
    for each, annotation in _fields(kind):
        if each.name in value:
            converted[each.name] = _convert(value[each.name], annotation, _join(where, each.name))
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise _MismatchError(_join(where, each.name), None, "a value: it is missing")
    return kind(**converted)


@functools.cache
def _fields(kind: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(kind)
    return [(each, hints[each.name]) for each in dataclasses.fields(kind)]


def _convert_union(value: Any, members: tuple[Any, ...], where: str) -> Any:
    if value is None and types.NoneType in members:
        return None
    *others, last = (member for member in members if member is not types.NoneType)
    for member in others:
        try:
            return _convert(value, member, where)
        except _MismatchError:
            continue
    return _convert(value, last, where)


def _convert_tuple(value: Any, members: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _MismatchError(where, value, "a list")
    if len(members) == 2 and members[1] is ...:
        members = (members[0],) * len(value)
    if len(value) != len(members):
        raise _MismatchError(where, value, f"a list of {len(members)}")
    pairs = enumerate(zip(value, members, strict=True))
    return tuple(_convert(item, member, _join(where, str(place))) for place, (item, member) in pairs)


def _infinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
