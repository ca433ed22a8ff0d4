"""Escape text from files for terminals and reports."""

from __future__ import annotations

from typing import Any

SPACES = "\u00a0\u2009\u202f"  # of numbers and units


def printable(text: str, most: int | None = None) -> str:
    """Escape control characters and undecodable bytes.

    Args:
        text: Any text.
        most: Maximum number of characters before "..."; None: no limit.
    """
    if most is not None and len(text) > most:
        text = text[:most] + "..."
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in SPACES else c.encode("unicode_escape").decode("ascii") for c in text
    )


def escaped(value: Any) -> Any:
    """Return a JSON value with the control characters of all its texts escaped."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): escaped(item) for key, item in value.items()}
    return list(map(escaped, value)) if isinstance(value, list) else value
