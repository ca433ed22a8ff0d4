"""Escape text from files for terminals and reports."""

from __future__ import annotations


def printable(text: str, most: int | None = None) -> str:
    """Escape control characters and undecodable bytes.

    Args:
        text: Any text.
        most: Maximum number of characters before "..."; None: no limit.
    """
    if most is not None and len(text) > most:
        text = text[:most] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
