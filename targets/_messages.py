"""Summaries of the warnings of a target."""

from __future__ import annotations

from collections.abc import Iterable

SEPARATE = 3  # places with the same warning that get a line each


def summed_up(warnings: Iterable[tuple[str, str, str]]) -> tuple[str, ...]:
    """Return one line per place, or per kind of warning with more than `SEPARATE` places.

    Args:
        warnings: Kind, place and text of each warning.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for kind, place, text in warnings:
        kinds.setdefault(kind, []).append((place, text))
    lines: list[str] = []
    for same in kinds.values():
        if len(same) <= SEPARATE:
            lines += [f"{place}: {text}" for place, text in same]
        else:
            (place, text), *rest = same
            lines.append(f"{place}: {text} (the same at {', '.join(other for other, _ in rest)})")
    return tuple(lines)
