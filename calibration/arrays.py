"""Images in NumPy's files: one .npy array, or an .npz of images and labels."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgeship.calibration.file_sources import Member, check_expansion, open_member
from edgeship.calibration.sets import Use, choose_set, set_of
from edgeship.calibration.text import some
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.text import printable

SUFFIXES = (".npy", ".npz")
_IMAGE_KEYS = ("x", "images", "image", "imgs", "data", "inputs", "arr")
_LABEL_KEYS = ("y", "labels", "label", "targets", "target", "classes", "arr")
_CHANNELS = (1, 3, 4)
_MOST_LABEL_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Header:
    """What the head of a .npy states.

    Attributes:
        shape: Lengths of the axes.
        fortran: Whether the first axis runs fastest.
        dtype: Of the values.
        offset: Bytes before the values.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Length of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def text(self) -> str:
        """Type and shape, as a message shows them."""
        return f"{self.dtype.name} {self.shape}"


class ArrayStore:
    """Images of a (N, H, W[, C]) or (N, C, H, W) array of uint8, each as a binary PPM or PGM file.

    Args:
        path: A .npy or .npz file.
        key: Name of the array in the .npz; empty for a .npy.

    Raises:
        DataError: The array cannot be read, or is none of images.
    """

    def __init__(self, path: Path, key: str = "") -> None:
        self._path, self._key = path, key
        try:
            self._values = _nhwc(self._map(), f"{path}{f' ({key})' if key else ''}")
            found = path.stat()
        except DataError:
            raise
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror or error}", hint="check the path"
            ) from error
        except Exception as error:  # zipfile raises nearly anything for damaged files
            raise _damaged(path, error) from error
        self._stamp = f"{found.st_size}:{found.st_mtime_ns}"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._path, self._key)  # another process opens the file itself

    def _map(self) -> npt.NDArray[np.uint8]:
        """The array, in the file system's memory: of an .npz by way of an unnamed temporary file."""
        with ExitStack() as stack:
            stream: IO[bytes] = stack.enter_context(self._path.open("rb"))
            if self._key:
                archive = stack.enter_context(zipfile.ZipFile(stream))
                check_expansion(self._path, sum(info.file_size for info in archive.infolist()))
                packed = stack.enter_context(open_member(archive, archive.getinfo(f"{self._key}.npy")))
                stream = stack.enter_context(tempfile.TemporaryFile(prefix="edgeship-"))
                shutil.copyfileobj(packed, stream, 1 << 20)
                stream.seek(0)
            head = read_header(stream)
            _check_pixels(self._path, head)
            order: Any = "F" if head.fortran else "C"
            return np.memmap(stream, np.uint8, "r", head.offset, head.shape, order)

    def members(self) -> list[Member]:
        """000000.ppm (.pgm, if grey) and so on, in the order of the array."""
        count, suffix = len(self._values), "pgm" if self._values.shape[3] == 1 else "ppm"
        return [Member(f"{index:06d}.{suffix}") for index in range(count)]

    def read(self, name: str) -> bytes:
        """One image as a binary PPM or PGM file; transparency, the fourth channel, is left out."""
        image = self._values[int(PurePosixPath(name).stem), ..., :3]
        return self._head(image.shape[2]) + np.ascontiguousarray(image).tobytes()

    def size_bytes(self, name: str) -> int:  # noqa: ARG002
        """Length of the file that `read` gives."""
        height, width, channels = (int(length) for length in self._values.shape[1:])
        return len(self._head(channels)) + height * width * min(channels, 3)

    def stamp(self, name: str) -> str:  # noqa: ARG002
        """Length and time of change of the whole file."""
        return self._stamp

    def _head(self, channels: int) -> bytes:
        kind = "P5" if channels == 1 else "P6"
        return f"{kind} {self._values.shape[2]} {self._values.shape[1]} 255\n".encode()


@dataclass(frozen=True, slots=True)
class Arrays:
    """Images and labels of a file of arrays.

    Attributes:
        store: The images.
        labels: N labels as texts; empty without labels.
        part: Name of the images' array where there are several sets; empty otherwise.
        unused: Arrays that are not used, and why.
    """

    store: ArrayStore
    labels: list[str]
    part: str
    unused: list[tuple[str, str]]


def open_arrays(path: Path, use: Use | None) -> Arrays:
    """Open an array of images, and its labels.

    Args:
        path: A .npy of images, or an .npz of images and, for labels, N whole numbers or names.
        use: Which set, where the names of the arrays speak of several (x_train, x_test).

    Raises:
        DataError: It cannot be read, holds no images or several arrays of images, values that are no pixels,
            or labels that do not fit.
    """
    if path.suffix.lower() == ".npy":
        return Arrays(ArrayStore(path), [], "", [])
    heads = _heads(path)
    images = [key for key, head in heads.items() if len(head.shape) >= 3]
    if not images:
        shown = ", ".join(f"{printable(key)} {head.text()}" for key, head in heads.items())
        raise DataError(
            f"{path} holds no array of images: {shown[:200] or 'it is empty'}",
            hint="store uint8 images as x (N, H, W, C) and labels as y (N)",
        )
    sets = {set_of_key(key) for key in images}
    part = choose_set(str(path), sets, use) if len(sets) > 1 else next(iter(sets))
    ours = [key for key in images if set_of_key(key) == part]
    ours = _called(ours, _IMAGE_KEYS) or ours
    if len(ours) > 1:
        raise DataError(
            f"{path} holds several arrays of images: {some(sorted(ours))}", hint="call one of them 'images'"
        )
    _check_pixels(path, heads[ours[0]])
    count = heads[ours[0]].shape[0]
    flat = [key for key, head in heads.items() if head.shape in ((count,), (count, 1))]
    labels = _called([key for key in flat if set_of_key(key) in (part, "")], _LABEL_KEYS)
    if len(labels) > 1:
        raise DataError(
            f"{path} holds several arrays of labels: {some(sorted(labels))}", hint="call one of them 'labels'"
        )
    used = {ours[0], *labels}
    other = f"not of the images used ({printable(ours[0])})"
    return Arrays(
        ArrayStore(path, ours[0]),
        _read_labels(path, labels[0], heads[labels[0]]) if labels else [],
        ours[0] if len(sets) > 1 else "",
        [(key, other) for key in heads if key not in used],
    )


def set_of_key(key: str) -> str:
    """The set that a key speaks of (train_images, xTest); empty without."""
    return next((part for part in _parts(key) if set_of(part)), "")


def _parts(key: str) -> list[str]:
    """Words of a key: x_train, xTrain and x1 have x as their first."""
    return re.split(r"[_\W\d]+", re.sub(r"(?<=[a-zX])(?=[A-Z][a-z])", "_", key).lower())


def read_header(stream: IO[bytes]) -> Header:
    """Read the head of a .npy.

    Raises:
        ValueError: It is none.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of its format")
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    return Header(shape, fortran, dtype, stream.tell())


def _heads(path: Path) -> dict[str, Header]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_expansion(path, sum(info.file_size for info in archive.infolist()))
            heads = {}
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with open_member(archive, info) as stream:
                        head = read_header(stream)
                    if head.offset + head.size_bytes > info.file_size:
                        raise ValueError(f"{info.filename} is shorter than its shape {head.shape}")
                    heads[info.filename.removesuffix(".npy")] = head
            return heads
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    except Exception as error:
        raise _damaged(path, error) from error


def _called(keys: list[str], names: tuple[str, ...]) -> list[str]:
    """The keys of which a part is one of the names, the first name first; none where none is."""
    parts = {key: _parts(key) for key in keys}
    for name in names:
        if named := [key for key in keys if name in parts[key]]:
            return named
    return []


def _read_labels(path: Path, key: str, head: Header) -> list[str]:
    if head.dtype.kind not in "iuUS" or head.size_bytes > _MOST_LABEL_BYTES:
        raise DataError(
            f"{path}: labels '{printable(key)}' are {head.text()}; expected whole numbers or names",
            hint=f"store them as int64 of shape ({head.shape[0]},)",
        )
    try:
        with zipfile.ZipFile(path) as archive, open_member(archive, archive.getinfo(f"{key}.npy")) as stream:
            values = np.lib.format.read_array(stream, allow_pickle=False).ravel()
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
    except Exception as error:
        raise _damaged(path, error) from error
    labels = [str(value).strip() for value in values.tolist()]
    if not all(labels):
        raise DataError(f"{path}: a label of '{printable(key)}' is empty", hint="give every image a label")
    return labels


def _nhwc(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8]:
    """View an array of images as (N, H, W, C).

    Raises:
        DataError: It is empty, or its shape is none of images, or of two kinds.
    """
    shape = values.shape
    last, second = len(shape) == 4 and shape[3] in _CHANNELS, len(shape) == 4 and shape[1] in _CHANNELS
    problem = ""
    if len(shape) == 3 and shape[2] in _CHANNELS:
        problem = "is one image, or very narrow ones"
    elif last and second:
        problem = "may be (N, H, W, C) or (N, C, H, W)"
    elif len(shape) not in (3, 4) or (len(shape) == 4 and not (last or second)):
        problem = "is neither (N, H, W), (N, H, W, C) nor (N, C, H, W), with C of 1, 3 or 4"
    if problem:
        raise DataError(
            f"{where}: shape {shape} {problem}", hint="store the images as uint8 of shape (N, H, W, C)"
        )
    if len(shape) == 3:
        return values[..., None]
    return values.transpose(0, 2, 3, 1) if second else values


def _check_pixels(path: Path, head: Header) -> None:
    if head.dtype == np.uint8 and 0 not in head.shape:
        return
    why = "expected uint8 pixels of 0 to 255"
    if head.dtype.kind == "f":
        why += "; of floats the range and the normalization are unknown"
    raise DataError(
        f"{path}: images are {head.text()}: {why}", hint="store the pixels as uint8, before mean and std"
    )


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is no readable array: {printable(str(error), 200)}",
        hint="it is damaged, or holds Python objects; save it again with numpy.save or numpy.savez",
    )
