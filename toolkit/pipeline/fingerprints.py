"""Outside files that a stage's result depends on: the same content has the same digest, wherever it lies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.artifact import canonical_json, read_json, sha256_bytes, sha256_file, write_json
from edgeship.toolkit.core.errors import DataError, nearest
from edgeship.toolkit.core.progress import track

FOLDER_LIMIT_BYTES = 16 << 30  # a larger folder is known by names, sizes and times: reading it takes minutes
SETTLED_SECONDS = 2.0  # a file changed this recently may change again within one tick of its clock
MOST_NAMES = 1000  # looked at for a hint
WORDS = ("auto", "train", "none")  # values of path options that are never paths
PREFIXES = ("digits", "torchvision:")


def outside_files(options: Any) -> tuple[Any, dict[str, Path]]:
    """Find the files and folders that options name.

    Args:
        options: The options of a stage; those marked `path` are looked at, nested ones too.

    Returns:
        The options without the names of these and without those marked `not_in_key`, and dotted option
        name -> existing path.
    """
    blank: dict[str, Any] = {}
    found: dict[str, Path] = {}
    for each in fields(options):
        value = getattr(options, each.name)
        if each.metadata.get("not_in_key"):
            blank[each.name] = each.default
        elif is_dataclass(value):
            blank[each.name], inner = outside_files(value)
            found |= {f"{each.name}.{name}": path for name, path in inner.items()}
        elif names_path(each.metadata, value) and (place := existing(value)):
            found[each.name], blank[each.name] = place
    return replace(options, **blank), found


def check_exist(options: Any, section: str) -> None:
    """Check that the files and folders that options name are there, before any work is done.

    Raises:
        DataError: One is not; the hint gives the nearest name beside it.
    """
    for each in fields(options):
        value = getattr(options, each.name)
        if is_dataclass(value):
            check_exist(value, f"{section}.{each.name}")
        elif names_path(each.metadata, value) and not existing(value):
            folder = Path(value).expanduser().parent
            beside = [item.name for item in islice(folder.iterdir(), MOST_NAMES)] if folder.is_dir() else []
            raise DataError(
                f"{section}.{each.name}: no such file or folder: {value}",
                hint=nearest(Path(value).name, beside) if beside else "check the path",
            )


def names_path(rules: Mapping[str, Any], value: Any) -> bool:
    """Whether the value of an option with these rules may be a path (see `recipe.option`)."""
    if not rules.get("path") or not isinstance(value, str) or value in WORDS or value.startswith(PREFIXES):
        return False
    return bool(value) and (rules["path"] is True or value.endswith(rules["path"]))


def existing(value: str) -> tuple[Path, str] | None:
    """The file or folder that a text names, and what it names inside an archive; None if nothing is there."""
    path = Path(value).expanduser()
    for outer in (path, *path.parents):
        if outer.is_file() or (outer == path and outer.is_dir()):
            return outer, path.relative_to(outer).as_posix()
    return None


def fingerprint(path: Path, memory: Path) -> str:
    """Digest of what a file or a folder holds; its own name does not matter.

    Of a list of images the files it names count too, of an ONNX file those with weights beside it. Contents
    are read once; afterwards a file counts as unchanged while its size, times and inode are.

    Args:
        path: An existing file or folder.
        memory: Folder that remembers digests.

    Raises:
        DataError: A file cannot be read.
    """
    try:
        found = dict(_files(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    if path.is_dir() and sum(stat.st_size for stat in found.values()) > FOLDER_LIMIT_BYTES:
        listing = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
        return sha256_bytes(canonical_json(listing).encode())
    return sha256_bytes(canonical_json(_digests(path, found, memory)).encode())


def _digests(path: Path, found: dict[str, os.stat_result], memory: Path) -> dict[str, str]:
    """Relative name -> digest, reading only files that changed since the last time."""
    remembered = memory / f"{sha256_bytes(os.fsencode(path.absolute()))}.json"
    try:
        known: dict[str, list[Any]] = read_json(remembered)
    except DataError:
        known = {}
    marks = {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in found.items()}
    digests = {name: known[name][-1] for name, mark in marks.items() if known.get(name, [])[:-1] == mark}
    unread = [name for name in found if name not in digests]
    if not unread:
        return digests
    folder = path if path.is_dir() else path.parent
    try:
        for name in track(unread, f"reading {path.name}"):
            digests[name] = sha256_file(folder / name if name else path)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}", hint="check the file") from error
    settled = time.time() - SETTLED_SECONDS
    write_json(
        remembered, {name: [*marks[name], digests[name]] for name in found if found[name].st_mtime < settled}
    )
    return digests


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Name and status of every file that counts; the file that was named has the empty name."""
    from edgeship.calibration import csv_list

    if path.is_dir():
        yield from _files_below(path)
        return
    yield "", path.stat()
    if path.suffix.lower() == ".onnx":
        from edgeship.toolkit.graph.load import external_files

        beside = {each for each in path.parent.glob(f"{path.name}*") if each != path}
        for each in sorted(beside.union(external_files(path))):
            if each.is_file():
                yield each.relative_to(path.parent).as_posix(), each.stat()
    if path.suffix.lower() in csv_list.SUFFIXES:
        for name in csv_list.listed_files(path):
            yield name, (path.parent / name).stat()


def _files_below(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    folders, seen = [""], {(root.stat().st_dev, root.stat().st_ino)}
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as items:
            for item in items:
                name = f"{folder}/{item.name}" if folder else item.name
                if item.is_dir():
                    place = (item.stat().st_dev, item.stat().st_ino)
                    if place not in seen:  # a link may lead back up
                        seen.add(place)
                        folders.append(name)
                elif item.is_file():
                    yield name, item.stat()
