"""Digests of the outside files that a stage's result depends on, independent of their paths."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.artifact import (
    canonical_json,
    read_sealed,
    sha256_bytes,
    sha256_file,
    write_sealed,
)
from edgeship.toolkit.core.errors import DataError, missing, nearest
from edgeship.toolkit.core.options import declared
from edgeship.toolkit.core.paths import siblings, user_path
from edgeship.toolkit.core.progress import track

FOLDER_LIMIT_BYTES = 16 << 30  # of a larger folder, names, sizes and times are hashed: reading takes minutes
SETTLED_SECONDS = 2.0  # a file changed this recently may change again within one tick of its clock
WORDS = ("auto", "train", "none")  # values of path options that are never paths
PREFIXES = ("digits", "torchvision:")


def key_values(recipe: Any, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the values of options for a cache key, and the outside files that they name.

    Args:
        recipe: The recipe.
        names: Sections, and options (`section.key`).

    Returns:
        Dotted name -> value, but of an existing path only the part inside an archive, and without options
        marked `not_in_key`; dotted name -> existing path.
    """
    values: dict[str, Any] = {}
    paths: dict[str, Path] = {}

    def add(name: str, value: Any, rules: Mapping[str, Any]) -> None:
        if is_dataclass(value):
            for key, each in declared(value).items():
                add(f"{name}.{key}", getattr(value, key), each.metadata)
        elif names_path(rules, value) and (place := existing(value)):
            paths[name], values[name] = place
        elif not rules.get("not_in_key"):
            values[name] = value

    for name in names:
        section, _, key = name.partition(".")
        options = getattr(recipe, section)
        if key:
            add(name, getattr(options, key), declared(options)[key].metadata)
        else:
            add(section, options, {})
    return values, paths


def check_exist(options: Any, section: str) -> None:
    """Check that the files and folders that options name exist.

    Raises:
        DataError: One is missing; the hint is the nearest name in its folder.
    """
    for each in fields(options):
        value = getattr(options, each.name)
        if is_dataclass(value):
            check_exist(value, f"{section}.{each.name}")
        elif names_path(each.metadata, value) and not existing(value):
            near = siblings(user_path(value))
            hint = nearest(Path(value).name, near) if near else "check the path"
            raise missing(DataError(f"{section}.{each.name}: no such file or folder: {value}", hint=hint))


def names_path(rules: Mapping[str, Any], value: Any) -> bool:
    """Return True if the value of an option with these rules may be a path (see `core.options.option`)."""
    if not rules.get("path") or not isinstance(value, str) or value in WORDS or value.startswith(PREFIXES):
        return False
    return bool(value) and (rules["path"] is True or value.endswith(rules["path"]))


def existing(value: str) -> tuple[Path, str] | None:
    """Return the file or folder of a path, and the rest: a path inside an archive, a part of a split.

    None if there is none.

    Raises:
        DataError: The path cannot be looked at.
    """
    from edgeship.calibration.sets import split_part

    if part := split_part(value):
        whole = existing(value.removesuffix(f":{part}"))
        return None if whole is None else (whole[0], f"{whole[1]}:{part}")
    path = user_path(value)
    try:
        for outer in (path, *path.parents):
            if outer.is_file() or (outer == path and outer.is_dir()):
                return outer, path.relative_to(outer).as_posix()
    except OSError as error:
        raise DataError(f"cannot read {value}: {error.strerror}", hint="check the path") from error
    return None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """State of a file or a folder.

    Attributes:
        content: Digest of names and contents, independent of the path.
        stamps: Digest of sizes, times and inodes: it differs after a change that was undone.
    """

    content: str
    stamps: str


def check_unchanged(outside: Mapping[str, Path], before: Mapping[str, Fingerprint]) -> None:
    """Check that no outside file changed since its fingerprint was taken.

    Args:
        outside: Option name -> file or folder.
        before: Option name -> its fingerprint.

    Raises:
        DataError: One changed, so that a result cannot be attributed to its content.
    """
    for name, path in outside.items():
        try:
            after = _stamps(dict(_files(path)))
        except OSError:
            after = ""
        if after != before[name].stamps:
            raise DataError(
                f"{name}: {path} changed while it was read; the result was discarded",
                hint="run again when no program writes to it",
            )


def fingerprint(path: Path, memory: Path) -> Fingerprint:
    """Return the fingerprint of a file or a folder.

    The files of a list of images count too, as do external data files of an ONNX file. Contents are read
    once; afterwards a file counts as unchanged while its size, times and inode are.

    Args:
        path: An existing file or folder.
        memory: Folder of cached digests.

    Raises:
        DataError: A file cannot be read.
    """
    try:
        status = dict(_files(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    stamps = _stamps(status)
    if path.is_dir() and sum(stat.st_size for stat in status.values()) > FOLDER_LIMIT_BYTES:
        listing = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in status.items()}
        return Fingerprint(_digest(listing), stamps)
    return Fingerprint(_digest(_digests(path, status, memory)), stamps)


def _stamps(status: Mapping[str, os.stat_result]) -> str:
    return _digest({name: _mark(each) for name, each in status.items()})


def _mark(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _digest(value: object) -> str:
    return sha256_bytes(canonical_json(value).encode())


def _digests(path: Path, status: dict[str, os.stat_result], memory: Path) -> dict[str, str]:
    """Return relative name -> digest; only changed files are read."""
    stored = memory / f"{sha256_bytes(os.fsencode(path.absolute()))}.json"
    try:
        cached: dict[str, list[Any]] = read_sealed(stored)
    except DataError:
        cached = {}
    marks = {name: _mark(each) for name, each in status.items()}
    digests = {name: cached[name][-1] for name, mark in marks.items() if cached.get(name, [])[:-1] == mark}
    unread = [name for name in status if name not in digests]
    if not unread:
        return digests
    folder = path if path.is_dir() else path.parent
    try:
        for name in track(unread, f"reading {path.name}"):
            digests[name] = sha256_file(folder / name if name else path)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}", hint="check the file") from error
    settled = time.time() - SETTLED_SECONDS
    write_sealed(
        stored, {name: [*marks[name], digests[name]] for name in status if status[name].st_mtime < settled}
    )
    return digests


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield name and status of every file that counts; a single file has the empty name."""
    from edgeship.calibration import csv_list

    if path.is_dir():
        yield from _files_below(path)
        return
    yield "", path.stat()
    if path.suffix.lower() == ".onnx":
        from edgeship.toolkit.graph.load import external_files

        companions = {each for each in path.parent.glob(f"{path.name}*") if each != path}
        for each in sorted(companions.union(external_files(path))):
            if each.is_file():
                yield each.relative_to(path.parent).as_posix(), each.stat()
    if path.suffix.lower() in csv_list.SUFFIXES:
        for name in csv_list.listed_files(path):
            yield name, (path.parent / name).stat()


def _files_below(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    folders, visited = [""], {(root.stat().st_dev, root.stat().st_ino)}
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as items:
            for item in items:
                name = f"{folder}/{item.name}" if folder else item.name
                if item.is_dir():
                    place = (item.stat().st_dev, item.stat().st_ino)
                    if place not in visited:  # a link may lead back up
                        visited.add(place)
                        folders.append(name)
                elif item.is_file():
                    yield name, item.stat()
