"""Read lists of file and label, as used for the flat ImageNet validation folder."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgeship.calibration.class_names import index_labels, read_text
from edgeship.calibration.images import SUFFIXES as IMAGES
from edgeship.calibration.text import first_names
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.text import printable

SUFFIXES = (".csv", ".tsv", ".txt", ".lst", ".list")
_MOST_BYTES = 1 << 28  # of a list; a million images need a fifth of it
_DELIMITERS = "\t;,"
_SAMPLE = 20  # lines used to detect the delimiter
_FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "image", "image_path", "img", "name")
_LABEL_COLUMNS = ("label", "labels", "class", "classid", "class_id", "class_index", "target", "category", "y")
_SPACED = re.compile(
    rf'\s*(?:"([^"]+)"|(\S.*?(?:{"|".join(map(re.escape, IMAGES))})))(?:\s+(\S.*?))?\s*', re.IGNORECASE
)


def read(path: Path) -> tuple[tuple[str, ...], list[tuple[str, int | None]]]:
    """Read the images of a list, in its order, and check that they exist.

    Each line is a file and a label, or a file alone for images without labels, separated by comma,
    semicolon, tab or spaces; names that hold the separator are quoted. Files are absolute or relative to
    the list's folder. A first line without an image file is the header, with columns such as `file` and
    `label`. Labels that are all whole numbers are class indices (the class names are these numbers);
    other labels are names, and the classes are sorted by name.

    Returns:
        Class names, and (file, label) of every image; the label is None in a list without labels.

    Raises:
        DataError: The list cannot be read, is empty, has invalid labels, or a file that is missing or listed
            twice.
    """
    rows = read_rows(path)
    files = _existing(path, [file for file, _ in rows])
    unlabelled = [file for file, label in rows if not label]
    if unlabelled and len(unlabelled) < len(rows):
        raise DataError(f"{path}: no label for {first_names(unlabelled)}", hint="label every file, or none")
    if unlabelled:
        return (), [(file, None) for file in files]
    classes, values = index_labels([label for _, label in rows], str(path))
    return classes, list(zip(files, values, strict=True))


def listed_files(path: Path) -> list[str]:
    """Return the existing files of a list; empty if the text is not a list of images."""
    try:
        rows = read_rows(path)
    except DataError:
        return []
    return [name for file, _ in rows if (name := _existing_name(path.parent, file))]


def read_rows(path: Path) -> list[tuple[str, str]]:
    """Read file and label of every line as written; an absent label is empty.

    Raises:
        DataError: The list cannot be read, is empty, or its label column is ambiguous.
    """
    lines = [line for line in read_text(path, _MOST_BYTES).splitlines() if line.strip()]
    delimiter = _delimiter(lines[:_SAMPLE])
    try:
        rows = _spaced(lines) if delimiter is None else _delimited(lines, delimiter, path)
    except csv.Error as error:
        raise DataError(
            f"{path} is no list of files and labels: {printable(str(error), 200)}",
            hint="write one file,label a line",
        ) from error
    if not rows:
        raise DataError(
            f"{path} lists no images", hint=f"each line is file,label; files end in {', '.join(IMAGES)}"
        )
    return rows


def _is_image(cell: str) -> bool:
    return cell.lower().endswith(IMAGES)


def _cells(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return [cells for row in rows if any(cells := [cell.strip() for cell in row])]


def _delimiter(lines: Sequence[str]) -> str | None:
    """Return the delimiter that splits most lines into an image file and another cell; None: spaces."""

    def fitting(delimiter: str) -> int:
        try:
            return sum(len(row) > 1 and any(map(_is_image, row)) for row in _cells(lines, delimiter))
        except csv.Error:
            return 0

    best = max(_DELIMITERS, key=fitting)
    if fitting(best):
        return best
    return "," if any("," in line and not _SPACED.fullmatch(line) for line in lines[:1]) else None


def _spaced(lines: Sequence[str]) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(lines):
        match = _SPACED.fullmatch(line)
        if match:
            rows.append((match[1] or match[2], (match[3] or "").strip('"')))
        elif number:  # the first line is the header
            rows.append((line.strip(), ""))
    return rows


def _delimited(lines: Sequence[str], delimiter: str, path: Path) -> list[tuple[str, str]]:
    table = _cells(lines, delimiter)
    header: list[str] = []
    if table and not any(map(_is_image, table[0])):
        header = [cell.lower().lstrip("#").strip() for cell in table.pop(0)]
    if not table:
        return []
    file = _column(header, _FILE_COLUMNS)
    if file is None or file >= len(table[0]) or not _is_image(table[0][file]):
        file = next((place for place, cell in enumerate(table[0]) if _is_image(cell)), 0)
    label = _column(header, _LABEL_COLUMNS)
    if label is None or label == file:
        label = 1 - file if file < 2 else file + 1
        if len(header or table[0]) > 2 and (header or file):
            shown = ", ".join(map(printable, (header or table[0])[:10]))
            raise DataError(
                f"{path}: the label column is ambiguous: {shown}",
                hint="name the column 'label' in the first line",
            )
    return [tuple(row[place] if place < len(row) else "" for place in (file, label)) for row in table]  # type: ignore[misc]


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _existing(path: Path, files: Sequence[str]) -> list[str]:
    names = [_existing_name(path.parent, file) for file in files]
    unknown = [file for file, name in zip(files, names, strict=True) if not name]
    if unknown:
        raise DataError(
            f"{path} lists {len(unknown)} unknown file(s): {first_names(unknown)}",
            hint=f"correct the list; files are relative to {path.parent}",
        )
    counts = Counter(map(os.path.normpath, names))
    if repeated := [file for file, times in counts.items() if times > 1]:
        raise DataError(f"{path} lists {first_names(repeated)} twice", hint="keep one line a file")
    return names


def _existing_name(folder: Path, name: str) -> str:
    """Return the name of the file on disk, with backslashes replaced if necessary; empty if it is absent."""
    for candidate in dict.fromkeys((name, name.replace("\\", "/"))):
        try:
            if candidate and (folder / candidate).is_file():
                return candidate
        except (OSError, ValueError):  # not a file name: too long, or with NUL
            return ""
    return ""
