"""Text from files, as a terminal and a report can show it."""

from __future__ import annotations


def printable(text: str, most: int | None = None) -> str:
    """Escape what a terminal or a UTF-8 file cannot show: control characters and undecodable bytes.

    Args:
        text: Of any origin.
        most: Characters after which it is cut, with "..." in their place; None keeps all.
    """
    if most is not None and len(text) > most:
        text = text[:most] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
