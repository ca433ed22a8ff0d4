"""Manifest of a bundle, read from a tar file that anyone may have made."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, TypeVar

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.typed_json import from_json
from edgeship.toolkit.deploy.answer_types import Count, Fraction
from edgeship.toolkit.deploy.layout import MANIFEST, SIGNATURE

SCHEMA = 1
LIMITS = {MANIFEST: 8 << 20, SIGNATURE: 1 << 16}  # bytes
MEMBERS = 10_000
HINT = "make the bundle again: `edgeship bundle RUN`"

T = TypeVar("T", bound="_Text")


class _Text(str):
    """Text of a form, for `typed_json`."""

    __slots__ = ()
    FORM: ClassVar[re.Pattern[str]]

    @classmethod
    def from_json(cls: type[T], value: object) -> T:
        """Convert a JSON text.

        Raises:
            ValueError: It has another form.
        """
        if not isinstance(value, str) or not cls.FORM.fullmatch(value) or not value.isprintable():
            raise ValueError(f"a text of the form {cls.FORM.pattern}")
        return cls(value)


class ModelName(_Text):
    """Name of a model: first part of the names of its releases."""

    FORM = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")


class Label(_Text):
    """Name to show: of a variant, a target, a precision."""

    FORM = re.compile(r"[^\s/][^/]{0,99}")


class FilePath(_Text):
    """Path inside a bundle; the agent has the same rule."""

    FORM = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){0,7}")


class Digest(_Text):
    """SHA-256."""

    FORM = re.compile(r"[0-9a-f]{64}")


class Day(_Text):
    """Date: 2027-01-31."""

    FORM = re.compile(r"\d{4}-\d\d-\d\d")

    @classmethod
    def from_json(cls, value: object) -> Day:
        """Convert a JSON text.

        Raises:
            ValueError: It is no date.
        """
        day = super().from_json(value)
        date.fromisoformat(day)
        return day


class Threads(Count):
    """CPU threads."""

    low, high = 1, 4096


class Limit(float):
    """Finite limit of a gate."""

    @classmethod
    def from_json(cls, value: object) -> Limit:
        """Convert a JSON number.

        Raises:
            ValueError: It is no number between -1 and 1e9.
        """
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1e9:
            raise ValueError("a number of -1 to 1e9")
        return cls(value)


@dataclass(frozen=True, slots=True)
class Terms:
    """Conditions of a release that devices with trusted signers check (see `agent.policy`).

    Attributes:
        version: A device refuses a version below one that was live there; 0: none.
        expires: First day (UTC) on which a device refuses it; None: never.
    """

    version: int = 0
    expires: Day | None = None


@dataclass(frozen=True)
class Simulated:
    """Accuracy in the simulation."""

    top1: Fraction | None
    images: Count


@dataclass(frozen=True)
class Guard:
    """Part of guard.json that the host reads; the device reads its own file."""

    reference: Label
    threshold: float
    rerun_share: Fraction
    bound: Fraction


@dataclass(frozen=True)
class Target:
    """Graph of a target."""

    variant: Label
    precision: Label
    simulated: Simulated | None
    int8_sums: Label | None = None
    guard: Guard | None = None


@dataclass(frozen=True)
class File:
    """File of the bundle."""

    sha256: Digest
    size_bytes: Count
    targets: list[Label]


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json."""

    schema: Literal[1]
    name: ModelName
    targets: dict[Label, Target]
    gates: dict[Label, Limit]
    provenance: dict[str, object]
    files: dict[FilePath, File]
    threads: Threads | None = None
    release: Terms = field(default_factory=Terms)


def read(path: Path) -> tuple[Mapping[str, Any], bytes, bytes | None]:
    """Read the manifest of a bundle, and compare every file with it.

    Returns:
        Manifest; its bytes; the signature or None.

    Raises:
        DataError: The file cannot be read, is no bundle, or was changed.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no bundle, but a folder or a device", hint=HINT)
    try:
        # Only plain tar: a compressed file can have any size.
        with tarfile.open(path, "r:") as archive:
            members = _members(archive, path.stat().st_size)
            raw = _content(archive, members[MANIFEST])
            signature = _content(archive, members[SIGNATURE]) if SIGNATURE in members else None
            manifest = json.loads(raw)
            _check(manifest, path)
            _compare(archive, members, manifest["files"], path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    except (
        tarfile.TarError, KeyError, ValueError, TypeError, RecursionError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise DataError(f"{path} is no bundle", hint="make one: `edgeship bundle RUN`") from error
    return manifest, raw, signature


def stream(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """Return the content of a member.

    Raises:
        KeyError: There is no such file.
    """
    content = archive.extractfile(name)
    if content is None:
        raise KeyError(name)  # a folder
    return content


def _members(archive: tarfile.TarFile, size: int) -> dict[str, tarfile.TarInfo]:
    """Return the files by name; only regular files, and links to those before them."""
    members: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
        target = members.get(member.linkname) if member.islnk() else None
        if len(members) >= MEMBERS or member.name in members or not (plain or target):
            raise ValueError(member.name)
        if not 0 <= member.size <= size - member.offset_data or member.pax_headers.keys() & {
            "GNU.sparse.major"
        }:
            raise ValueError(member.name)
        members[member.name] = target or member
    return members


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > LIMITS[member.name]:
        raise ValueError(member.name)
    return stream(archive, member.name).read()


def _check(manifest: Any, path: Path) -> None:
    schema = manifest["schema"]
    if schema != SCHEMA:
        raise DataError(
            f"{path} has bundle schema {str(schema)[:20]!r}, expected {SCHEMA}",
            hint="make it again with this version: `edgeship bundle RUN`",
        )
    try:
        from_json(manifest, Manifest, f"{path} is no bundle: {MANIFEST}")
    except DataError as error:
        raise DataError(str(error), hint=HINT) from error
    if not manifest["targets"]:
        raise DataError(f"{path}: the manifest has no target", hint=HINT)


def _compare(
    archive: tarfile.TarFile,
    members: Mapping[str, tarfile.TarInfo],
    files: Mapping[str, Mapping[str, Any]],
    path: Path,
) -> None:
    digests: dict[int, str] = {}  # by place: links are read once
    for name, file in files.items():
        member = members.get(name)
        if member is not None and member.offset_data not in digests:
            with stream(archive, member.name) as content:
                digest = hashlib.sha256()
                while block := content.read(1 << 20):
                    digest.update(block)
            digests[member.offset_data] = digest.hexdigest()
        if member is None or (digests[member.offset_data], member.size) != (
            file["sha256"],
            file["size_bytes"],
        ):
            raise DataError(f"{path}: the digest of {name} differs from the manifest", hint=HINT)
