"""Check what a device sends: it may be broken or hostile, so that all is bounded, checked and printable."""

from __future__ import annotations

import json
import math
from typing import Any

from edgeship.toolkit.core.errors import DataError, DeviceError
from edgeship.toolkit.core.typed_json import from_json
from edgeship.toolkit.deploy.answer_types import Monitored, Record, Status

LINE_BYTES = 4 << 20  # the status of some hundred releases
TEXT = 5000  # characters of a text; the rest is cut off
DEPTH = 30


def check(device: str, name: str, value: object, kind: Any) -> Any:
    """Return an answer if it has its type; unknown fields stay.

    Args:
        device: Name of the device.
        name: Name of the command, for the message.
        value: Answer.
        kind: Type of `typed_json`.

    Raises:
        DeviceError: A field is absent or of another type.
    """
    try:
        from_json(value, kind, f"{device}: answer to {name}")
    except DataError as error:
        raise _untrusted(device, str(error)) from error
    if kind is Status and isinstance(value, dict):
        value["releases"] = {key: record_or_none(record) for key, record in value["releases"].items()}
        value["monitor"] = _or_none(value.get("monitor"), Monitored)
    return value


def record_or_none(record: object) -> Any:
    """Return a record of a release; None if it is damaged."""
    return _or_none(record, Record)


def _or_none(value: object, kind: Any) -> Any:
    try:
        from_json(value, kind, "record")
    except DataError:
        return None
    return value


def parse(device: str, line: bytes, *, strict: bool = True) -> dict[str, Any] | None:
    """Parse a line of the agent; None: it is noise.

    Args:
        device: Name of the device.
        line: The line.
        strict: Refuse noise; before the agent answers, a login may print it.

    Raises:
        DeviceError: It is no answer, a number is not finite, or the nesting is too deep.
    """
    try:
        message = json.loads(line.decode(), parse_int=_integer)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not {"ok", "error", "event"} & set(message):
        if not strict:
            return None
        shown = printable_text(line[:60].decode(errors="replace"))
        raise _untrusted(device, f"{device}: answer is {shown!r}, expected an object with ok, error or event")
    cleaned: dict[str, Any] = _clean(device, message, "", 0)
    return cleaned


def printable_text(text: str) -> str:
    """Return a text of a device on one line and without control characters."""
    text = text if len(text) <= TEXT else f"{text[: TEXT // 2]} ... {text[-TEXT // 2 :]}"
    if text.isprintable():
        return text
    lines = " | ".join(line.rstrip() for line in text.strip("\n").split("\n"))
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in lines)


def _integer(text: str) -> int | float:
    return int(text) if len(text) < 20 else float(text)


def _clean(device: str, value: object, field: str, depth: int) -> Any:
    """Make texts printable; refuse what is not finite."""
    if depth > DEPTH:
        raise _untrusted(device, f"{device}: field '{field[:60]}' is nested more than {DEPTH} times")
    if isinstance(value, str):
        return printable_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _untrusted(device, f"{device}: field '{field}' is {value}, expected a finite number")
    if isinstance(value, list):
        return [_clean(device, item, f"{field}.{place}", depth + 1) for place, item in enumerate(value)]
    if isinstance(value, dict):
        names = {printable_text(key)[:200]: item for key, item in value.items()}
        return {
            key: _clean(device, item, f"{field}.{key}".lstrip("."), depth + 1) for key, item in names.items()
        }
    return value


def _untrusted(device: str, message: str) -> DeviceError:
    return DeviceError(
        message, hint=f"check that {device} is the device you expect, and its storage; then deploy again"
    )
