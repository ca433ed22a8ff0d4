"""Read class names from files and map labels to class indices."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeship.calibration.text import first_names
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.text import printable

MAX_CLASSES = 100_000  # ImageNet-21k has 21,843; a list of names up to a wrong label fills the memory
SUFFIXES = (".txt", ".json", ".csv", ".tsv", ".names")
_MOST_BYTES = 1 << 24
_INDEX = re.compile(r"[+-]?\d+(?:\.0+)?", re.ASCII)  # pandas writes 3 as 3.0 in a column with gaps
_NUMBERED = re.compile(r"\s*(\d{1,6})\s*[:,;=\s]\s*(.+)", re.ASCII)
_SYNSET = re.compile(r"(n\d{8})[\s,:]+(.+)", re.ASCII)


def read_class_aliases(path: Path) -> tuple[tuple[str, ...], ...]:
    """Read all names of every class, by index.

    Args:
        path: A text with one name a line (numbered or not; ImageNet's "n01440764 tench" is two names); a
            JSON list of names, or an object index -> name or list of names (ImageNet's class_index.json),
            or name -> index, or a model's config with id2label; a CSV with a name, or an index and names,
            a line, with and without a header.

    Raises:
        DataError: The file cannot be read, or its indices are not 0 to N - 1.
    """
    text = read_text(path, _MOST_BYTES)
    try:
        if path.suffix.lower() == ".json":
            classes = _from_json(json.loads(text))
        elif path.suffix.lower() in (".csv", ".tsv"):
            classes = _from_table(text)
        else:
            classes = _from_lines(text)
    except (ValueError, TypeError, csv.Error, RecursionError) as error:
        raise DataError(
            f"{path} is no list of class names: {printable(str(error), 200)}",
            hint='write one name a line in the order of the outputs, or JSON {"0": "name", ...}',
        ) from error
    if not classes:
        raise DataError(f"{path} holds no class names", hint="write one name a line")
    return classes


def index_labels(labels: Sequence[str], where: str) -> tuple[tuple[str, ...], list[int]]:
    """Map labels to class indices: whole numbers are indices, other texts are names, sorted.

    Args:
        labels: N labels as they are written; none is empty.
        where: Source of the labels, for the error.

    Returns:
        Class names (for numeric labels the numbers up to the largest), and N indices.

    Raises:
        DataError: A number is negative or too large.
    """
    if all(map(_INDEX.fullmatch, labels)):
        indices = {label: _class_index(label) for label in set(labels)}
        if wrong := sorted(label for label, index in indices.items() if index < 0):
            raise DataError(
                f"{where}: label {first_names(wrong)} is no class; expected 0 to {MAX_CLASSES - 1:,}",
                hint="labels are the network's output indices, from 0, or names",
            )
        return tuple(map(str, range(max(indices.values()) + 1))), [indices[label] for label in labels]
    names = tuple(sorted(set(labels)))
    if len(names) > MAX_CLASSES:
        raise DataError(
            f"{where} has {len(names):,} classes, more than {MAX_CLASSES:,}", hint="check its label column"
        )
    index = {name: place for place, name in enumerate(names)}
    return names, [index[label] for label in labels]


def read_text(path: Path, most_bytes: int) -> str:
    """Read a text in UTF-8, or in UTF-16 with a byte order mark as spreadsheets write it.

    Raises:
        DataError: The file cannot be read, is not a text, or has more than `most_bytes` bytes.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(most_bytes + 1)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", hint="check the path and its permissions"
        ) from error
    if len(data) > most_bytes:
        raise DataError(f"{path} is larger than {most_bytes >> 20} MiB, the limit of a list", hint="split it")
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a text in UTF-8: {printable(str(error), 200)}", hint="save it in UTF-8"
        ) from error


def _class_index(text: str) -> int:
    """Return the whole number in a text, or -1 if it is not one or too large for a class."""
    digits = text.partition(".")[0].lstrip("+").lstrip("0") or "0"
    if not _INDEX.fullmatch(text) or "-" in text or len(digits) > len(str(MAX_CLASSES)):
        return -1
    return int(digits) if int(digits) < MAX_CLASSES else -1


def _from_json(value: Any) -> tuple[tuple[str, ...], ...]:
    if isinstance(value, Mapping) and isinstance(value.get("id2label"), Mapping):
        value = value["id2label"]
    if isinstance(value, list):
        return tuple(map(_aliases, value))
    if not isinstance(value, Mapping):
        raise TypeError("the JSON is neither a list nor an object")
    if value and all(type(index) is int for index in value.values()):
        return _ordered((str(index), (str(name),)) for name, index in value.items())
    return _ordered((str(index), _aliases(name)) for index, name in value.items())


def _from_table(text: str) -> tuple[tuple[str, ...], ...]:
    lines = [line for line in text.splitlines() if line.strip()]
    delimiter = max("\t;,", key=lambda each: sum(each in line for line in lines))
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    for skip in (0, 1):  # below a header, the index column starts in the second row
        for place in (0, -1):
            column = [row[place] for row in rows[skip:]]
            if rows[skip:] and min(map(len, rows[skip:])) > 1 and all(map(_INDEX.fullmatch, column)):
                others = [tuple(row[1:] if place == 0 else row[:-1]) for row in rows[skip:]]
                return _ordered(zip(column, map(_aliases, others), strict=True))
    header = bool(rows) and rows[0][0].lower() in ("name", "names", "class", "classes", "label", "labels")
    return tuple(_aliases(row) for row in rows[header:])


def _from_lines(text: str) -> tuple[tuple[str, ...], ...]:
    lines = text.strip().splitlines()
    if not all(map(str.strip, lines)):
        raise ValueError("an empty line between names makes later indices uncertain")
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if all(numbered) and len(lines) > 1:
        numbers = [int(match[1]) for match in numbered if match]
        if sorted(numbers) == list(range(len(lines))):
            return _ordered((match[1], _aliases(match[2])) for match in numbered if match)
    return tuple(_aliases(match.groups() if (match := _SYNSET.fullmatch(line)) else line) for line in lines)


def _aliases(value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{printable(str(value))[:80]} is no name")
    cleaned = tuple(name.strip().strip("\"'") for name in names if name.strip())
    if not cleaned:
        raise ValueError("a name is empty")
    return cleaned


def _ordered(pairs: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[tuple[str, ...], ...]:
    """Return names sorted by index; raise unless each of 0 to N - 1 occurs once."""
    table: dict[int, tuple[str, ...]] = {}
    for text, names in pairs:
        index = _class_index(text)
        if index < 0 or index in table:
            raise ValueError(f"{printable(text)[:80]} is no index, or occurs twice")
        table[index] = names
    if sorted(table) != list(range(len(table))):
        raise ValueError(f"its {len(table)} indices are not 0 to {len(table) - 1}")
    return tuple(table[index] for index in range(len(table)))
