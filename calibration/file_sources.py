"""Read image files from folders, archives (in place) and the embedded digits."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol, cast

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import PixelArray
from edgeship.toolkit.core.text import printable

MAX_FILE_BYTES = 1 << 28  # a larger file is not a photograph, or an attack on the memory
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_FREE_BYTES = 1 << 28  # no limit on the ratio up to this unpacked size
_MOST_EXPANSION = 100  # unpacked over packed bytes; photographs reach 2
_MOST_HEADER_BYTES = 1 << 20  # of a tar member: long names and PAX records
_UNPACKERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZ": bz2.open,
    b"\xfd7": lzma.open,
}
_MACOS_FORKS = "__MACOSX"
HIDDEN = "hidden"  # reason of a skipped member
_DIGIT_LEVELS = 16  # of scikit-learn's digits: 0 is white paper, 16 full ink


@dataclass(frozen=True, slots=True)
class Member:
    """One name in a store.

    Attributes:
        name: Path with forward slashes, relative to the store.
        kind: "file" can be read; "skipped" is ignored.
        reason: Reason for skipping.
    """

    name: str
    kind: Literal["file", "folder", "skipped"] = "file"
    reason: str = ""


class Store(Protocol):
    """Collection of named files, readable from any thread."""

    def members(self) -> Iterable[Member]:
        """Return all files and folders, in any order; a hidden folder is one member."""
        ...

    def read(self, name: str) -> bytes:
        """Return the bytes of one file.

        Raises:
            DataError: The file cannot be read.
        """
        ...

    def size_bytes(self, name: str) -> int:
        """Return the size of one file without reading it."""
        ...

    def stamp(self, name: str) -> str:
        """Return a text that changes with the file (size and checksum or time), without reading it."""
        ...


class FolderStore:
    """Files below a folder. Links to folders are followed; each folder is listed once, under its own name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def members(self) -> Iterator[Member]:
        """Return files and folders relative to the root; hidden folders are not entered."""
        visited: set[tuple[int, int]] = set()  # a link to a parent folder would loop
        folders, links = [""], list[str]()
        while folders or links:
            prefix = folders.pop() if folders else links.pop(0)
            try:
                here = (self._root / prefix).stat()
                if (here.st_dev, here.st_ino) in visited:
                    yield Member(prefix, "skipped", "a link to a folder that is listed already")
                    continue
                visited.add((here.st_dev, here.st_ino))
                with os.scandir(self._root / prefix) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        member = _member(entry, prefix)
                        if member.kind == "folder":
                            (links if entry.is_symlink() else folders).append(f"{member.name}/")
                        yield member
            except OSError as error:
                raise _unreadable(self._root / prefix, error) from error

    def read(self, name: str) -> bytes:
        """Return the bytes of one file."""
        try:
            _check_size(self._root, name, self.size_bytes(name))
            return (self._root / name).read_bytes()
        except OSError as error:
            raise _unreadable(self._root / name, error) from error

    def size_bytes(self, name: str) -> int:
        """Return the size of one file."""
        return self._stat(name).st_size

    def stamp(self, name: str) -> str:
        """Return size and modification time."""
        status = self._stat(name)
        return f"{status.st_size}:{status.st_mtime_ns}"

    def _stat(self, name: str) -> os.stat_result:
        try:
            return (self._root / name).stat()
        except OSError as error:
            raise _unreadable(self._root / name, error) from error


class ZipStore:
    """Members of a zip archive.

    Raises:
        DataError: The file is not a zip, a member is a link or lies outside the archive's folder, or the
            expansion exceeds `check_expansion`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        except Exception as error:  # damaged files make zipfile raise many types
            raise _damaged(path, error) from error
        infos = self._zip.infolist()
        check_expansion(path, sum(info.file_size for info in infos))
        self._folders: set[str] = set()
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.filename.replace("\\", "/")  # some Windows programs write backslashes
            _check_member(path, name, regular=not stat.S_ISLNK(info.external_attr >> 16))
            if name.endswith("/"):
                self._folders.add(_normal(name))
            else:
                _add(self._members, _normal(name), info, path)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._path,)  # a worker process opens the archive again

    def members(self) -> Iterator[Member]:
        """Return files and folders; implicit folders are not listed."""
        return _listed(self._members, self._folders)

    def read(self, name: str) -> bytes:
        """Return the bytes of one member, with verified checksum."""
        info, size = self._members[name], self.size_bytes(name)
        _check_size(self._path, name, size)
        try:
            with open_member(self._zip, info) as stream:
                return stream.read(size + 1)  # bounded: the member may unpack to more than its stated size
        except OSError as error:
            raise _unreadable(self._path, error) from error
        except Exception as error:
            raise DataError(
                f"cannot read {printable(name)} in {self._path}: {printable(str(error), 200)}",
                hint="the archive is damaged or encrypted; copy it again, or unpack it and name the folder",
            ) from error

    def size_bytes(self, name: str) -> int:
        """Return the unpacked size of one member."""
        return self._members[name].file_size

    def stamp(self, name: str) -> str:
        """Return size and CRC-32."""
        info = self._members[name]
        return f"{info.file_size}:{info.CRC:08x}"


class TarStore:
    """Members of a tar archive.

    A compressed tar has no random access, so it is unpacked once into an unnamed temporary file, which the
    system frees with the process; members are never written under their names.

    Raises:
        DataError: The file is not a tar, or a member is a link or lies outside the archive's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._folders: set[str] = set()
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._stream = _plain_stream(path)
            headers = cast("IO[bytes]", _HeaderStream(self._stream))
            with tarfile.open(fileobj=headers, mode="r:") as archive:
                self._list(archive)
                self._stream.seek(archive.offset)  # the end mark has to be here
                if self._stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise _damaged(path, tarfile.ReadError("the end mark is missing"))
        except DataError:
            raise
        except OSError as error:
            raise _unreadable(path, error) from error
        except Exception as error:  # damaged files make tarfile raise many types
            raise _damaged(path, error) from error

    def _list(self, archive: tarfile.TarFile) -> None:
        before = -1
        for info in archive:
            if info.offset_data <= before or info.size < 0:
                raise tarfile.ReadError("a length leads backwards")  # would loop forever
            before = info.offset_data
            name = info.name
            _check_member(self._path, name, regular=info.isdir() or (info.isreg() and not info.issparse()))
            if info.isdir():
                self._folders.add(_normal(name))
            else:
                _add(self._members, _normal(name), info, self._path)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._path,)

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close()

    def members(self) -> Iterator[Member]:
        """Return files and folders; implicit folders are not listed."""
        return _listed(self._members, self._folders)

    def read(self, name: str) -> bytes:
        """Return the bytes of one member."""
        info = self._members[name]
        _check_size(self._path, name, info.size)
        try:
            with self._lock:  # the file position is shared by all threads
                self._stream.seek(info.offset_data)
                data = self._stream.read(info.size)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if len(data) < info.size:
            raise DataError(
                f"{self._path} ends inside {printable(name)}", hint="the archive is truncated; copy it again"
            )
        return data

    def size_bytes(self, name: str) -> int:
        """Return the size of one member."""
        return self._members[name].size

    def stamp(self, name: str) -> str:
        """Return size and modification time."""
        info = self._members[name]
        return f"{info.size}:{info.mtime}"


class PixelStore:
    """Pixels (N, H, W, C) of 1, 3 or 4 channels as N binary PGM or PPM files, without alpha."""

    def __init__(self, values: PixelArray, digits: int, stamp: str) -> None:
        self._values, self._digits, self._stamp = values, digits, stamp

    def members(self) -> list[Member]:
        """Return the members 0000.ppm (.pgm for grey), 0001.ppm, ... in array order."""
        suffix = "pgm" if self._values.shape[3] == 1 else "ppm"
        return [Member(f"{index:0{self._digits}d}.{suffix}") for index in range(len(self._values))]

    def read(self, name: str) -> bytes:
        """Return one image as a binary PPM or PGM file; uncompressed, so the bytes are reproducible."""
        image = self._values[int(PurePosixPath(name).stem), ..., :3]
        return self._header() + image.tobytes()

    def size_bytes(self, name: str) -> int:  # noqa: ARG002
        """Return the bytes of the file that `read` returns."""
        height, width, channels = (int(length) for length in self._values.shape[1:])
        return len(self._header()) + height * width * min(channels, 3)

    def stamp(self, name: str) -> str:  # noqa: ARG002
        """Return size and modification time of the whole array."""
        return self._stamp

    def _header(self) -> bytes:
        height, width, channels = self._values.shape[1:]
        return f"P{5 if channels == 1 else 6} {width} {height} 255\n".encode()


class DigitsStore(PixelStore):
    """The 1,797 handwritten digits of scikit-learn as 8 x 8 PGM files, named by their index.

    Source:
        Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI repository.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        self.labels: tuple[int, ...] = tuple(digits.target.tolist())
        super().__init__((digits.images * 255 / _DIGIT_LEVELS).round().astype("uint8")[..., None], 4, "")


def archive_stem(path: Path) -> str:
    """Return the name of an archive without extension, or of a folder."""
    for suffix in ARCHIVES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def is_archive(path: Path) -> bool:
    """Return True if a file name has the extension of a zip or tar."""
    return path.name.lower().endswith(ARCHIVES)


def open_archive(path: Path) -> ZipStore | TarStore:
    """Open a zip or tar by its name's extension."""
    return ZipStore(path) if path.name.lower().endswith(".zip") else TarStore(path)


def check_expansion(path: Path, unpacked: int) -> None:
    """Raise if an archive unpacks to far more than images do.

    Raises:
        DataError: The unpacked size is over 256 MiB and over 100 times the packed size.
    """
    if unpacked > max(_FREE_BYTES, _MOST_EXPANSION * path.stat().st_size):
        raise DataError(
            f"{path} unpacks to {unpacked >> 20:,} MiB or more, over {_MOST_EXPANSION} times its size",
            hint="do not trust this archive; if it is yours, unpack it and name the folder",
        )


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member that is stored or deflated, whose unpacking is bounded by the read size.

    Raises:
        ValueError: The member has another compression method.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"compression method {info.compress_type}; expected stored or deflated")
    return archive.open(info)


class _HeaderStream:
    """Stream that limits each read to the size of a tar header."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)


class _Unpacked:
    """Stream that raises when it unpacks to far more than images do."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream, self._count = path, stream, 0

    def read(self, size: int = -1, /) -> bytes:
        block = self._stream.read(size)
        self._count += len(block)
        check_expansion(self._path, self._count)
        return block


def _plain_stream(path: Path) -> IO[bytes]:
    with ExitStack() as closing:
        stream: IO[bytes] = closing.enter_context(path.open("rb"))
        unpacker = _UNPACKERS.get(stream.read(2))
        stream.seek(0)
        if unpacker:
            plain = closing.enter_context(tempfile.TemporaryFile(prefix="edgeship-"))
            with unpacker(stream) as unpacked:
                shutil.copyfileobj(_Unpacked(path, unpacked), plain, 1 << 20)
            stream.close()
            stream = plain
            stream.seek(0)
        closing.pop_all()  # the store closes the stream
    return stream


def _member(entry: os.DirEntry[str], prefix: str) -> Member:
    name = prefix + entry.name
    if hidden(entry.name):
        return Member(name + "/" * entry.is_dir(), "skipped", HIDDEN)
    if entry.is_dir():
        return Member(name, "folder")
    if entry.is_file():
        return Member(name)
    return Member(name, "skipped", "a broken link" if entry.is_symlink() else "a special file")


def _listed(files: Iterable[str], folders: Iterable[str]) -> Iterator[Member]:
    for name in files:
        is_hidden = any(map(hidden, name.split("/")))
        yield Member(name, "skipped", HIDDEN) if is_hidden else Member(name)
    for name in folders:
        if name and not any(map(hidden, name.split("/"))):
            yield Member(name, "folder")


def hidden(part: str) -> bool:
    """Return True if a path component is hidden: .name, or __MACOSX in archives."""
    return part.startswith(".") or part == _MACOS_FORKS


def _normal(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _check_member(archive: Path, name: str, *, regular: bool) -> None:
    parts = name.replace("\\", "/").split("/")
    outside = name.startswith(("/", "\\")) or ".." in parts or (len(name) > 1 and name[1] == ":")
    if outside or not regular:
        reason = "lies outside the archive's folder" if outside else "is a link or special file"
        raise DataError(
            f"{archive}: member '{printable(name)}' {reason}",
            hint="do not trust this archive; pack the images again as plain files in folders",
        )


def _check_size(archive: Path, name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{archive}: '{printable(name)}' has {size >> 20} MiB, more than any image may "
            f"have ({MAX_FILE_BYTES >> 20} MiB)",
            hint="remove the file",
        )


def _add(members: dict[str, Any], name: str, info: Any, archive: Path) -> None:
    if name in members:
        raise DataError(
            f"{archive} holds '{printable(name)}' twice", hint="pack the images again, each name once"
        )
    members[name] = info


def _unreadable(path: Path, error: OSError) -> DataError:
    hint = "check the path and its permissions"
    if error.errno is None:  # gzip on damaged data
        hint = "the archive is damaged; copy it again"
    elif error.errno == errno.ENOSPC:
        hint = "the disk for temporary files is full; set TMPDIR to a larger one, or unpack the .gz first"
    return DataError(f"cannot read {printable(str(path))}: {error.strerror or error}", hint=hint)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is not a readable archive: {printable(str(error), 200)}",
        hint="it is damaged or truncated; copy it again",
    )
