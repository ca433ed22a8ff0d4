"""Where image files lie: folders, archives that are read in place, the embedded digits."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from toolkit.core.errors import DataError

MAX_FILE_BYTES = 1 << 28  # a member that claims more is no photograph, or an attack on the memory
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_DIGIT_SIDE = 8
_DIGIT_LEVELS = 16  # of scikit-learn's digits: 0 is white paper, 16 full ink


class Store(Protocol):
    """Named files, read one at a time from any thread."""

    def names(self) -> Iterable[str]:
        """Names of all files, with forward slashes, in any order."""
        ...

    def read(self, name: str) -> bytes:
        """Bytes of one file.

        Raises:
            DataError: The file cannot be read.
        """
        ...

    def size_bytes(self, name: str) -> int:
        """Length of one file, without reading it."""
        ...

    def stamp(self, name: str) -> str:
        """What changes when the file does, without reading it (checksum or time of change)."""
        ...


class FolderStore:
    """Files below a folder; links to folders are followed, each folder once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> Iterable[str]:
        """Names relative to the folder; hidden folders are not entered."""
        seen: set[tuple[int, int]] = set()  # a link back up would never end
        pending = [""]
        while pending:
            prefix = pending.pop()
            try:
                here = (self._root / prefix).stat()
                if (here.st_dev, here.st_ino) in seen:
                    continue
                seen.add((here.st_dev, here.st_ino))
                with os.scandir(self._root / prefix) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir():
                            pending.append(f"{prefix}{entry.name}/")
                        elif entry.is_file():
                            yield prefix + entry.name
            except OSError as error:
                raise _unreadable(self._root / prefix, error) from error

    def read(self, name: str) -> bytes:
        """Bytes of one file."""
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise _unreadable(self._root / name, error) from error

    def size_bytes(self, name: str) -> int:
        """Length of one file."""
        return self._stat(name).st_size

    def stamp(self, name: str) -> str:
        """Length and time of change."""
        found = self._stat(name)
        return f"{found.st_size}:{found.st_mtime_ns}"

    def _stat(self, name: str) -> os.stat_result:
        try:
            return (self._root / name).stat()
        except OSError as error:
            raise _unreadable(self._root / name, error) from error


class ZipStore:
    """Members of a zip archive.

    Raises:
        DataError: Not a zip, or a member is a link or would lie outside the archive's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise _damaged(path, error) from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if not info.is_dir():
                _check_member(path, info.filename, regular=not stat.S_ISLNK(info.external_attr >> 16))
                _add(self._members, info.filename, info, path)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._path,)  # another process opens the archive itself

    def names(self) -> Iterable[str]:
        """Names of the members that are files."""
        return self._members

    def read(self, name: str) -> bytes:
        """Bytes of one member; its checksum is verified."""
        _check_size(self._path, name, self.size_bytes(name))
        try:
            return self._zip.read(self._members[name])
        except OSError as error:
            raise _unreadable(self._path, error) from error
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise DataError(
                f"cannot read {name} in {self._path}: {error}",
                hint="the archive is damaged or encrypted; copy it again, or unpack it and give the folder",
            ) from error

    def size_bytes(self, name: str) -> int:
        """Length of one member when unpacked."""
        return self._members[name].file_size

    def stamp(self, name: str) -> str:
        """Length and CRC-32."""
        info = self._members[name]
        return f"{info.file_size}:{info.CRC:08x}"


class TarStore:
    """Members of a tar archive.

    A compressed tar cannot be entered in the middle, so its stream is unpacked once into an unnamed
    temporary file, which the system frees with the process; members are never written by name.

    Raises:
        DataError: Not a tar, or a member is a link or would lie outside the archive's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._stream = _plain_stream(path)
            with tarfile.open(fileobj=self._stream, mode="r:") as archive:
                for info in archive:
                    if not info.isdir():
                        _check_member(path, info.name, regular=info.isreg() and not info.issparse())
                        _add(self._members, info.name.removeprefix("./"), info, path)
                self._stream.seek(
                    archive.offset
                )  # where the reader stopped: at the end mark, or for want of more
                if self._stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise _damaged(path, tarfile.ReadError("it ends without an end mark"))
        except OSError as error:
            raise _unreadable(path, error) from error
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise _damaged(path, error) from error

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._path,)

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close()

    def names(self) -> Iterable[str]:
        """Names of the members that are files."""
        return self._members

    def read(self, name: str) -> bytes:
        """Bytes of one member."""
        info = self._members[name]
        _check_size(self._path, name, info.size)
        try:
            with self._lock:  # one position for all threads
                self._stream.seek(info.offset_data)
                data = self._stream.read(info.size)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if len(data) < info.size:
            raise DataError(f"{self._path} ends inside {name}", hint="the archive was cut off; copy it again")
        return data

    def size_bytes(self, name: str) -> int:
        """Length of one member."""
        return self._members[name].size

    def stamp(self, name: str) -> str:
        """Length and time of change."""
        info = self._members[name]
        return f"{info.size}:{info.mtime}"


class DigitsStore:
    """The 1,797 handwritten digits of scikit-learn as 8 x 8 PGM files, named by their index.

    Source:
        Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI repository.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        self.labels: tuple[int, ...] = tuple(digits.target.tolist())
        self._grey = (digits.images * 255 / _DIGIT_LEVELS).round().astype("uint8")

    def names(self) -> Iterable[str]:
        """0000.pgm and so on, in scikit-learn's order."""
        return [f"{index:04d}.pgm" for index in range(len(self.labels))]

    def read(self, name: str) -> bytes:
        """One digit as a binary PGM file: no compression, so the bytes are the same everywhere."""
        header = f"P5 {_DIGIT_SIDE} {_DIGIT_SIDE} 255\n".encode()
        data: bytes = self._grey[int(PurePosixPath(name).stem)].tobytes()
        return header + data

    def size_bytes(self, name: str) -> int:
        """Length of the PGM file."""
        return len(self.read(name))

    def stamp(self, name: str) -> str:
        """The digits never change."""
        return name


def archive_stem(path: Path) -> str:
    """Name of an archive without its extension, or of a folder."""
    for suffix in ARCHIVES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def is_archive(path: Path) -> bool:
    """Whether a file name says zip or tar."""
    return path.name.lower().endswith(ARCHIVES)


def open_archive(path: Path) -> ZipStore | TarStore:
    """Open a zip or tar by its name's extension."""
    return ZipStore(path) if path.name.lower().endswith(".zip") else TarStore(path)


def _plain_stream(path: Path) -> IO[bytes]:
    with ExitStack() as closing:
        stream: IO[bytes] = closing.enter_context(path.open("rb"))
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        if packed:
            plain = closing.enter_context(tempfile.TemporaryFile(prefix="edgeship-"))
            with gzip.open(stream) as unpacked:
                shutil.copyfileobj(unpacked, plain, 1 << 20)
            stream.close()
            stream = plain
            stream.seek(0)
        closing.pop_all()  # the store closes what is left
    return stream


def _check_member(archive: Path, name: str, *, regular: bool) -> None:
    parts = name.replace("\\", "/").split("/")
    outside = name.startswith(("/", "\\")) or ".." in parts or (len(name) > 1 and name[1] == ":")
    if outside or not regular:
        reason = "lies outside the archive's folder" if outside else "is a link or special file"
        raise DataError(
            f"{archive}: member '{name}' {reason}",
            hint="do not trust this archive; pack the images again as plain files in folders",
        )


def _check_size(archive: Path, name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{archive}: '{name}' unpacks to {size >> 20} MiB, more than any image may",
            hint="do not trust this archive, or remove that member",
        )


def _add(members: dict[str, Any], name: str, info: Any, archive: Path) -> None:
    if name in members:
        raise DataError(f"{archive} holds '{name}' twice", hint="pack the images again, each name once")
    members[name] = info


def _unreadable(path: Path, error: OSError) -> DataError:
    hint = "check the path and its permissions"
    if error.errno is None:  # gzip says so of damaged data
        hint = "the archive is damaged; copy it again"
    elif error.errno == errno.ENOSPC:
        hint = "the disk for temporary files is full; set TMPDIR to a larger one, or unpack the .gz first"
    return DataError(f"cannot read {path}: {error.strerror or error}", hint=hint)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is not a readable archive: {error}", hint="it is damaged or cut off; copy it again"
    )
