"""Write files atomically, and hash content platform-independently."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.errors import DataError


def sha256_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_tree(folder: Path) -> str:
    """Return the SHA-256 over the relative names and contents of every file below a folder."""
    entries = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return sha256_bytes(canonical_json(entries).encode())


def canonical_json(value: Any) -> str:
    """Serialize to JSON with sorted keys and no spaces: equal values have equal text."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """Convert dataclasses, tuples, sets, paths and NumPy values to JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return plain(value.tolist())
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DataError: The file is absent or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON: {error}", hint="the file is truncated or edited: create it again"
        ) from error


def write_sealed(path: Path, value: Any) -> None:
    """Write a value as JSON together with its digest, so that damage is noticed; atomically."""
    write_json(path, {"sha256": sha256_bytes(canonical_json(value).encode()), "content": value})


def read_sealed(path: Path) -> Any:
    """Read a file of `write_sealed`.

    Raises:
        DataError: The file is absent, not JSON, or its content does not have its digest.
    """
    record = read_json(path)
    if not isinstance(record, dict) or record.keys() != {"sha256", "content"}:
        raise DataError(f"{path} has no digest", hint="delete the file: it is written again")
    if record["sha256"] != sha256_bytes(canonical_json(record["content"]).encode()):
        raise DataError(f"{path} is damaged: its digest differs", hint="delete the file: it is written again")
    return record["content"]


def write_text(path: Path, text: str) -> None:
    """Write text (UTF-8), atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that replaces `path`, on disk, if the block succeeds."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file, and is not replaced by one", hint="name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:24]}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Write a file's content or a folder's names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
