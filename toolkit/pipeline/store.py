"""The store: a content-addressed cache of stage results.

    objects/<stage>-<digest>/      files of a stage, named by their content; never modified
    keys/<stage>-<key>.json        cache key -> object, with the duration of the stage
    tmp/<key>/, partial/<key>/     unfinished result; checkpoints of an interrupted stage
    digests/, locks/               digests of outside files; one lock per key

An object appears by rename and a key by replacement, so both are complete or absent. What is read is checked:
sizes and times at every use, content where these differ and every `VERIFY_DAYS`. The process with the lock of
a key owns `tmp/<key>`; runs take the lock of the store shared, `gc` and `clear` exclusively.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

from edgeship.toolkit.core.artifact import (
    canonical_json,
    read_sealed,
    sha256_bytes,
    sha256_tree,
    sync,
    write_sealed,
)
from edgeship.toolkit.core.errors import DataError, ToolkitError
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.core.progress import track

DIGEST_LENGTH = 24  # hexadecimal digits in a name: 96 bits
FOLDERS = ("objects", "keys", "digests", "locks", "partial", "tmp")
VERIFY_DAYS = 7.0  # a disk can lose bits without a change of size or time

_log = logging.getLogger("edgeship")


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished stage.

    Attributes:
        stage: Name of the stage.
        key: Cache key.
        digest: Content digest of the folder.
        seconds: Duration of the stage.
        made_at: End of the stage, in seconds since 1970.
        files: Relative file name -> size in bytes.
        folder: Folder of the files; read only.
    """

    stage: str
    key: str
    digest: str
    seconds: float
    made_at: float
    files: dict[str, int]
    folder: Path

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(self.files.values())


def default_root() -> Path:
    """Return `$EDGESHIP_STORE`, else `edgeship/store` in the user's cache folder."""
    if own := os.environ.get("EDGESHIP_STORE"):
        return user_path(own)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(cache) / "edgeship" / "store"


class Store:
    """A folder of stage results that concurrent runs may share."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (user_path(root) if root else default_root()).absolute()
        self._lock_file = self.root / "locks" / "store"

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Lock the store against clearing during a run, after removal of abandoned temporary folders.

        Raises:
            ToolkitError: The folder cannot be written to, or holds something else.
        """
        try:
            self._check_own()
            self._lock_file.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file.touch()  # from now on it is a store
            for name in FOLDERS:
                (self.root / name).mkdir(exist_ok=True)
            tag = self.root / "CACHEDIR.TAG"  # back-up programs skip such folders
            if not tag.exists():
                tag.write_text("Signature: 8a477f597d28d172789f06886806bc55\n", encoding="ascii")
            lock = self._lock_file.open("a")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ToolkitError(
                f"cannot keep results in {self.root}: {error.strerror}",
                hint="name another folder with --store or EDGESHIP_STORE",
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._remove_left_overs()
            yield

    def find(self, stage: str, key: str, *, read_content: bool = False) -> Entry | None:
        """Return the verified result of a stage; None if the key is unknown or the files are damaged.

        Args:
            stage: Name of the stage.
            key: Cache key.
            read_content: Compare the content with its digest even if sizes and times are as recorded.
        """
        if (record := self._read(stage, key)) is None:
            return None
        entry, stamps, verified_at = record
        current = _stamps(entry.folder)
        old = time.time() - verified_at > VERIFY_DAYS * 86_400
        if current == stamps and entry.folder.is_dir() and not old and not read_content:
            return entry
        if _damaged(entry):
            with self._locked(entry.folder.name, lambda: None):
                if _damaged(entry):  # and no other run has replaced it
                    _log.warning("the stored result of stage %s is damaged: removed %s", stage, entry.folder)
                    _remove(entry.folder)
                    _remove(self._record(stage, key))
            return None
        with suppress(OSError):  # a store that is read only
            self._write_record(entry)
        return entry

    def make(
        self,
        stage: str,
        key: str,
        work: Callable[[Path, Path], None],
        *,
        redo: bool = False,
        waiting: Callable[[], None] = lambda: None,
    ) -> tuple[Entry, bool]:
        """Return the stored result of a stage, or compute it in a temporary folder and store it.

        Args:
            stage: Name of the stage.
            key: Cache key.
            work: Function of an empty folder for the result and a folder for checkpoints, which outlives a
                failure and is removed on success.
            redo: Compute it even if there is a result.
            waiting: Called once if another process computes the same key; its result is then used.

        Returns:
            The entry, and True if it was computed now.
        """
        if not redo and (entry := self.find(stage, key)):
            return entry, False
        with self._locked(key, waiting):
            if not redo and (entry := self.find(stage, key)):
                return entry, False
            temporary, partial = self.root / "tmp" / key, self.root / "partial" / key
            _remove(temporary)  # of a killed run: the lock is ours
            temporary.mkdir()
            partial.mkdir(exist_ok=True)
            try:
                started = time.perf_counter()
                work(temporary, partial)
                entry = self._keep(stage, key, temporary, time.perf_counter() - started)
                _remove(partial)
                return entry, True
            finally:
                _remove(temporary)
                with suppress(OSError):  # absent, or it has checkpoints
                    partial.rmdir()

    def entries(self) -> list[Entry]:
        """Return all stage results, newest first."""
        entries = []
        for path in self._records():
            stage, _, key = path.stem.rpartition("-")
            record = self._read(stage, key)
            if record and _sizes(record[0].folder) == record[0].files:
                entries.append(record[0])
        return sorted(entries, key=lambda entry: -entry.made_at)

    def verify(self) -> tuple[int, int]:
        """Compare every result with its digest, and remove damaged ones.

        Returns:
            Number of results that are intact, and of damaged ones.

        Raises:
            ToolkitError: The folder is not a store.
        """
        if not (self.root / "keys").is_dir():
            raise self._no_store()
        damaged = 0
        records = self._records()
        with self.in_use():
            for path in track(records, "verifying"):
                stage, _, key = path.stem.rpartition("-")
                if self.find(stage, key, read_content=True) is None:
                    _remove(path)
                    damaged += 1
        return len(records) - damaged, damaged

    def gc(self, *, older_than_days: float | None = None) -> int:
        """Remove unreferenced objects and results older than a number of days.

        Returns:
            Freed bytes.

        Raises:
            ToolkitError: A run is using the store.
        """
        oldest = time.time() - older_than_days * 86_400 if older_than_days is not None else 0.0
        with self._alone():
            before = self.size_bytes()
            recent = [entry for entry in self.entries() if entry.made_at >= oldest]
            referenced = {entry.folder for entry in recent} | {
                self._record(entry.stage, entry.key) for entry in recent
            }
            for folder in ("keys", "objects", "partial", "tmp"):
                for path in (self.root / folder).iterdir():
                    if path not in referenced:
                        _remove(path)
            return before - self.size_bytes()

    def clear(self) -> int:
        """Remove everything.

        Returns:
            Freed bytes.

        Raises:
            ToolkitError: A run is using the store, or the folder is not a store.
        """
        with self._alone():
            freed = self.size_bytes()
            for name in ("keys", "objects", "partial", "tmp", "digests"):
                _remove(self.root / name)
                (self.root / name).mkdir(exist_ok=True)  # a run that waits for the lock may have made it
        return freed

    def size_bytes(self) -> int:
        """Return the size of all files in the store."""
        return sum(_sizes(self.root).values()) if self.root.is_dir() else 0

    def _keep(self, stage: str, key: str, temporary: Path, seconds: float) -> Entry:
        digest = sha256_tree(temporary)
        folder = self._object(stage, digest)
        now = round(time.time(), 3)
        entry = Entry(stage, key, digest, round(seconds, 3), now, _sizes(temporary), folder)
        for path in (*temporary.rglob("*"), temporary):
            if not path.is_symlink():
                sync(path)
        with self._locked(folder.name, lambda: None):  # another key may have the same content
            if not folder.is_dir() or sha256_tree(folder) != digest:  # absent, or damaged since
                _remove(folder)
                temporary.rename(folder)
                sync(folder.parent)
            self._write_record(entry)
        return entry

    def _read(self, stage: str, key: str) -> tuple[Entry, dict[str, list[int]], float] | None:
        """Return a result, unverified, with the stamps of its files and the time of the last verification."""
        try:
            record = read_sealed(self._record(stage, key))
            stamps, verified_at = record.pop("stamps"), record.pop("verified_at")
            return Entry(**record, folder=self._object(stage, record["digest"])), stamps, verified_at
        except (DataError, TypeError, KeyError, AttributeError):
            return None  # absent, damaged, or written by another version

    def _write_record(self, entry: Entry) -> None:
        record = {each.name: getattr(entry, each.name) for each in fields(entry) if each.name != "folder"}
        stamps = {"stamps": _stamps(entry.folder), "verified_at": round(time.time(), 3)}
        write_sealed(self._record(entry.stage, entry.key), {**record, **stamps})

    def _record(self, stage: str, key: str) -> Path:
        return self.root / "keys" / f"{stage}-{key}.json"

    def _records(self) -> list[Path]:
        return list((self.root / "keys").glob("[!.]*.json"))  # others are being written

    def _object(self, stage: str, digest: str) -> Path:
        return self.root / "objects" / f"{stage}-{digest[:DIGEST_LENGTH]}"

    @contextmanager
    def _locked(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        with (self.root / "locks" / key).open("a") as stream:
            if not _try_lock(stream):
                waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _remove_left_overs(self) -> None:
        """Remove temporary folders of ended runs, whose keys are not locked."""
        for path in (self.root / "tmp").iterdir():
            with (self.root / "locks" / path.name).open("a") as stream:
                if _try_lock(stream):
                    _remove(path)

    def _check_own(self) -> None:
        """Raise unless the folder is a store, or empty: what is below it is removed without a question.

        Raises:
            ToolkitError: It holds something else, or a folder of the store is a link.
        """
        entries = {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()
        links = [name for name in FOLDERS if (self.root / name).is_symlink()]
        if links or (entries - {"locks"} and not self._lock_file.is_file()):
            reason = f"{links[0]} is a link" if links else "it holds other files"
            raise ToolkitError(
                f"{self.root} is not a store: {reason}",
                hint="name an empty folder with --store or EDGESHIP_STORE",
            )

    def _no_store(self) -> ToolkitError:
        hint = "name the folder with --store or EDGESHIP_STORE"
        return ToolkitError(f"{self.root} is not a store", hint=hint)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not (self.root / "keys").is_dir():
            raise self._no_store()
        self._check_own()
        with self._lock_file.open("a") as stream:
            if not _try_lock(stream):
                raise ToolkitError(f"a run is using {self.root}", hint="wait until it has finished")
            yield


def key_of(**parts: object) -> str:
    """Return the cache key: a short digest of everything that a result depends on."""
    return sha256_bytes(canonical_json(parts).encode())[:DIGEST_LENGTH]


def as_dict(entry: Entry) -> dict[str, object]:
    """Convert an entry to plain values, with its size."""
    return {**asdict(entry), "folder": str(entry.folder), "size_bytes": entry.size_bytes}


def _try_lock(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _damaged(entry: Entry) -> bool:
    try:
        return _sizes(entry.folder) != entry.files or sha256_tree(entry.folder) != entry.digest
    except FileNotFoundError:  # another run removes it
        return True


def _sizes(folder: Path) -> dict[str, int]:
    return {name: status.st_size for name, status in _files(folder)}


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return relative file name -> times of the last change of content and of status, in ns."""
    return {name: [status.st_mtime_ns, status.st_ctime_ns] for name, status in _files(folder)}


def _files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return the sorted relative names of all files below a folder, without those that other runs remove."""
    found = []
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with suppress(FileNotFoundError):
                if stat.S_ISREG((status := path.stat()).st_mode):
                    found.append((path.relative_to(folder).as_posix(), status))
    return sorted(found, key=lambda each: each[0])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
