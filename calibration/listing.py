"""A CSV of file and label, as the flat ImageNet validation folder needs it."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from calibration.images import SUFFIXES
from calibration.words import some
from toolkit.core.errors import DataError


def read(path: Path) -> tuple[tuple[str, ...], list[tuple[str, int | None]]]:
    """Read which images a CSV lists, in its order, and check that they exist.

    Each line is `file,label`, or `file` alone for images without labels; the file is relative to the
    CSV's folder. A first line whose file does not end like an image is the header. Labels that are all
    whole numbers are class indices (the class names are these numbers); otherwise they are names, and
    the classes are sorted by name.

    Returns:
        The class names, and (file, label) of every image; a label is None where there are none.

    Raises:
        DataError: The CSV cannot be read, is empty, or names a file that is missing or listed twice.
    """
    rows = _rows(path)
    labels = [label for _, label in rows]
    unlabelled = [file for file, label in rows if not label]
    if unlabelled and len(unlabelled) < len(rows):
        raise DataError(f"{path}: no label for {some(unlabelled)}", hint="give every file a label, or none")
    _check_files(path, [file for file, _ in rows])
    classes: tuple[str, ...] = ()
    values: list[int | None] = [None] * len(rows)
    if not unlabelled and all(label.isdecimal() for label in labels):
        values = [int(label) for label in labels]
        classes = tuple(str(index) for index in range(max(map(int, labels)) + 1))
    elif not unlabelled:
        classes = tuple(sorted(set(labels)))
        index = {name: label for label, name in enumerate(classes)}
        values = [index[label] for label in labels]
    return classes, [(file, value) for (file, _), value in zip(rows, values, strict=True)]


def _rows(path: Path) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            for cells in csv.reader(stream):
                values = [cell.strip() for cell in cells]
                if any(values):
                    rows.append((values[0], values[1] if len(values) > 1 else ""))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", hint="check the path and its permissions"
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not a CSV in UTF-8: {error}", hint="save it as file,label lines"
        ) from error
    if rows and not rows[0][0].lower().endswith(SUFFIXES):
        rows = rows[1:]  # the header
    if not rows:
        raise DataError(f"{path} lists no images", hint="each line is file,label")
    return rows


def _check_files(path: Path, files: list[str]) -> None:
    unknown = [file for file in files if not (path.parent / file).is_file()]
    if unknown:
        raise DataError(
            f"{path} lists {len(unknown)} unknown file(s): {some(unknown)}",
            hint=f"files are relative to {path.parent}; correct the list or bring the files",
        )
    if twice := [file for file, times in Counter(files).items() if times > 1]:
        raise DataError(f"{path} lists {some(twice)} twice", hint="keep one line a file")
