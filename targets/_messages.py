"""What a target warns of, short enough to be read."""

from __future__ import annotations

from collections.abc import Iterable

APART = 3  # places with the same trouble that are told one by one


def summed_up(found: Iterable[tuple[str, str, str]]) -> tuple[str, ...]:
    """One line for every place, or for every kind of trouble that more than a few places have.

    Args:
        found: Kind, place and text of every trouble.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for kind, place, text in found:
        kinds.setdefault(kind, []).append((place, text))
    lines: list[str] = []
    for troubles in kinds.values():
        if len(troubles) <= APART:
            lines += [f"{place}: {text}" for place, text in troubles]
        else:
            (place, text), *rest = troubles
            lines.append(f"{place}: {text} (the same at {', '.join(other for other, _ in rest)})")
    return tuple(lines)
