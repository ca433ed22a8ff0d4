"""Files of class names."""

from __future__ import annotations

from pathlib import Path

from toolkit.core.errors import DataError


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read the name of every class, by index: the readable one where there are several.

    Raises:
        DataError: The file cannot be read, or names no class.
    """
    return tuple(aliases[-1] for aliases in read_class_aliases(path))


def read_class_aliases(path: Path) -> tuple[tuple[str, ...], ...]:
    """Read all names of every class, by index: one a line.

    Raises:
        DataError: The file cannot be read, or names no class.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path}: {error}", hint="write one class name a line, in UTF-8"
        ) from error
    classes = tuple((line.strip(),) for line in lines if line.strip())
    if not classes:
        raise DataError(f"{path} names no class", hint="write one class name a line")
    return classes
