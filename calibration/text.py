"""Format lists of names for messages."""

from __future__ import annotations

from collections.abc import Sequence

from edgeship.toolkit.core.text import printable

_SHOWN = 3
_LONGEST = 200  # characters of a name


def first_names(names: Sequence[str]) -> str:
    """Return the first names of a list and the number of the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name, _LONGEST) for name in names[:_SHOWN]) + more
