"""Content-addressed file store on the device: one file per SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Iterable  # noqa: UP035 (Python 3.8)

from edgeship.toolkit.deploy.agent.protocol import BLOCK, Client, RefusedError, disk_refusal

DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class ObjectStore:
    """Folder <root>/objects: one file per digest, with suffix `.part` while incomplete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fresh: set[str] = set()  # verified during this connection

    def have(self, digests: list[str]) -> dict[str, Any]:
        """Return the stored objects: {"whole": [digests], "part": {digest: bytes}}."""
        whole = [digest for digest in digests if self._whole(digest).exists()]
        parts = {digest: self._part(digest) for digest in digests if digest not in whole}
        return {"whole": whole, "part": {d: p.stat().st_size for d, p in parts.items() if p.exists()}}

    def receive(self, client: Client, digest: str, size: int, offset: int) -> None:
        """Receive bytes offset..size from the client; store the object if its digest matches."""
        whole, part = self._whole(digest), self._part(digest)
        sha = hashlib.sha256()
        try:
            self._folder.mkdir(exist_ok=True)
            with part.open("r+b" if offset else "wb") as stream:
                _hash_start(stream, offset, sha)
                stream.truncate()
                for block in client.read_exactly(size - offset):
                    stream.write(block)
                    sha.update(block)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if part.exists():
                part.unlink()  # free the space
            raise disk_refusal(error, "while receiving a file", fatal=True) from error
        if sha.hexdigest() != digest:
            part.unlink()
            raise RefusedError(
                f"a file was corrupted on the way: its SHA-256 is {sha.hexdigest()}, expected {digest}",
                "deploy again; if it recurs, check the network and the device's storage",
                "corrupt",
            )
        part.replace(whole)
        sync_folder(self._folder)
        self._fresh.add(digest)

    def remove_damaged(self, digests: Iterable[str]) -> list[str]:
        """Verify objects of earlier connections again; return those that were damaged or are absent."""
        damaged = []
        for digest in digests:
            whole = self._whole(digest)
            if digest in self._fresh:
                continue
            if whole.exists() and _sha256(whole) == digest:
                self._fresh.add(digest)
            else:
                damaged.append(digest)
                with suppress(FileNotFoundError):
                    whole.unlink()
        return damaged

    def link(self, digest: str, path: Path) -> None:
        """Hard-link a verified object into a release."""
        assert digest in self._fresh, digest
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(str(self._whole(digest)), str(path))

    def _whole(self, digest: str) -> Path:
        if not DIGEST.match(digest):
            raise RefusedError(f"{digest!r} is not a SHA-256", "`edgeship bundle RUN`")
        return self._folder / digest

    def _part(self, digest: str) -> Path:
        return self._whole(digest).with_name(f"{digest}.part")


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(BLOCK), b""):
            sha.update(block)
    return sha.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, safe against a power cut."""
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, safe against a power cut."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """Read JSON; return None if the file is absent or damaged, so that the status stays readable."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def sync_folder(folder: Path) -> None:
    """Flush created, renamed and removed entries of a folder to the disk."""
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_start(stream: IO[bytes], count: int, sha: Any) -> None:
    while stream.tell() < count:
        block = stream.read(min(BLOCK, count - stream.tell()))
        if not block:
            message = f"a partial file has {stream.tell()} bytes, expected {count}"
            raise RefusedError(message, "deploy again", fatal=True)
        sha.update(block)
