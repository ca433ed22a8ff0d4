"""Read images from NumPy files: one .npy array, or an .npz of images and labels."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgeship.calibration.file_sources import PixelStore, check_expansion, open_member
from edgeship.calibration.sets import Use, choose_set, set_of
from edgeship.calibration.text import first_names
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.text import printable

SUFFIXES = (".npy", ".npz")
_IMAGE_KEYS = ("x", "images", "image", "imgs", "data", "inputs", "arr")
_LABEL_KEYS = ("y", "labels", "label", "targets", "target", "classes", "arr")
_CHANNELS = (1, 3, 4)
_MOST_LABEL_BYTES = 1 << 28
npy_format: Any = np.lib.format  # untyped before NumPy 2.3


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a .npy file.

    Attributes:
        shape: Lengths of the axes.
        fortran: True for Fortran order.
        dtype: Type of the values.
        offset: Bytes before the values.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def text(self) -> str:
        """Return type and shape as text for messages."""
        return f"{self.dtype.name} {self.shape}"


class ArrayStore(PixelStore):
    """Images of a uint8 array (N, H, W[, C]) or (N, C, H, W).

    Args:
        path: A .npy or .npz file.
        key: Name of the array in the .npz; empty for a .npy.

    Raises:
        DataError: The array cannot be read, or its type or shape is not that of images.
    """

    def __init__(self, path: Path, key: str = "") -> None:
        self._path, self._key = path, key
        try:
            values = _nhwc(self._map(), f"{path}{f' ({key})' if key else ''}")
            status = path.stat()
        except DataError:
            raise
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror or error}", hint="check the path"
            ) from error
        except Exception as error:  # damaged files make zipfile raise many types
            raise _damaged(path, error) from error
        super().__init__(values, 6, f"{status.st_size}:{status.st_mtime_ns}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._path, self._key)  # a worker process maps the file again

    def _map(self) -> npt.NDArray[np.uint8]:
        """Map the array from the file; an .npz member is unpacked into an unnamed temporary file first."""
        with ExitStack() as stack:
            stream: IO[bytes] = stack.enter_context(self._path.open("rb"))
            if self._key:
                archive = stack.enter_context(zipfile.ZipFile(stream))
                check_expansion(self._path, sum(info.file_size for info in archive.infolist()))
                member = stack.enter_context(open_member(archive, archive.getinfo(f"{self._key}.npy")))
                stream = stack.enter_context(tempfile.TemporaryFile(prefix="edgeship-"))
                shutil.copyfileobj(member, stream, 1 << 20)
                stream.seek(0)
            header = read_header(stream)
            _check_pixels(self._path, header)
            order: Any = "F" if header.fortran else "C"
            return np.memmap(stream, np.uint8, "r", header.offset, header.shape, order)


@dataclass(frozen=True, slots=True)
class Arrays:
    """Images and labels of one .npy or .npz file.

    Attributes:
        store: Image store.
        labels: N labels as texts; empty without labels.
        part: Name of the image array if the file has several sets; else empty.
        unused: (array name, reason) of the arrays that are not used.
    """

    store: ArrayStore
    labels: list[str]
    part: str
    unused: list[tuple[str, str]]


def open_arrays(path: Path, use: Use | None) -> Arrays:
    """Open an image array and its labels.

    Args:
        path: A .npy of images, or an .npz of images and, for labels, N whole numbers or names.
        use: Set to choose if the array names contain several (x_train, x_test).

    Raises:
        DataError: The file cannot be read, has no image array or several, values that are not pixels, or
            labels of another length.
    """
    if path.suffix.lower() == ".npy":
        return Arrays(ArrayStore(path), [], "", [])
    headers = _headers(path)
    images = [key for key, header in headers.items() if len(header.shape) >= 3]
    if not images:
        shown = ", ".join(f"{printable(key)} {header.text()}" for key, header in headers.items())
        raise DataError(
            f"{path} holds no array of images: {shown[:200] or 'it is empty'}",
            hint="store uint8 images as x (N, H, W, C) and labels as y (N)",
        )
    sets = {set_of_key(key) for key in images}
    part = choose_set(str(path), sets, use) if len(sets) > 1 else next(iter(sets))
    chosen = [key for key in images if set_of_key(key) == part]
    chosen = _named(chosen, _IMAGE_KEYS) or chosen
    if len(chosen) > 1:
        raise DataError(
            f"{path} holds several arrays of images: {first_names(sorted(chosen))}",
            hint="name the one to use 'images'",
        )
    _check_pixels(path, headers[chosen[0]])
    count = headers[chosen[0]].shape[0]
    vectors = [key for key, header in headers.items() if header.shape in ((count,), (count, 1))]
    labels = _named([key for key in vectors if set_of_key(key) in (part, "")], _LABEL_KEYS)
    if len(labels) > 1:
        raise DataError(
            f"{path} holds several arrays of labels: {first_names(sorted(labels))}",
            hint="name the one to use 'labels'",
        )
    used = {chosen[0], *labels}
    reason = f"does not belong to the images used ({printable(chosen[0])})"
    return Arrays(
        ArrayStore(path, chosen[0]),
        _read_labels(path, labels[0], headers[labels[0]]) if labels else [],
        chosen[0] if len(sets) > 1 else "",
        [(key, reason) for key in headers if key not in used],
    )


def set_of_key(key: str) -> str:
    """Return the set in an array name (train_images, xTest); empty if there is none."""
    return next((part for part in _parts(key) if set_of(part)), "")


def _parts(key: str) -> list[str]:
    """Split an array name into words: the first word of x_train, xTrain and x1 is x."""
    return re.split(r"[_\W\d]+", re.sub(r"(?<=[a-zX])(?=[A-Z][a-z])", "_", key).lower())


def read_header(stream: IO[bytes]) -> Header:
    """Read the header of a .npy file.

    Raises:
        ValueError: The header is invalid or of an unknown version.
    """
    version = npy_format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = npy_format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = npy_format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"format version {version}; expected 1.0 or 2.0")
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    return Header(shape, fortran, dtype, stream.tell())


def _headers(path: Path) -> dict[str, Header]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_expansion(path, sum(info.file_size for info in archive.infolist()))
            headers = {}
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with open_member(archive, info) as stream:
                        header = read_header(stream)
                    if header.offset + header.size_bytes > info.file_size:
                        raise ValueError(f"{info.filename} is shorter than its shape {header.shape}")
                    headers[info.filename.removesuffix(".npy")] = header
            return headers
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    except Exception as error:
        raise _damaged(path, error) from error


def _named(keys: list[str], names: tuple[str, ...]) -> list[str]:
    """Return the keys that contain the first of the names found in any key; empty if none is."""
    parts = {key: _parts(key) for key in keys}
    for name in names:
        if matching := [key for key in keys if name in parts[key]]:
            return matching
    return []


def _read_labels(path: Path, key: str, header: Header) -> list[str]:
    if header.dtype.kind not in "iuUS" or header.size_bytes > _MOST_LABEL_BYTES:
        raise DataError(
            f"{path}: labels '{printable(key)}' are {header.text()}; expected whole numbers or names",
            hint=f"store them as int64 of shape ({header.shape[0]},)",
        )
    try:
        with zipfile.ZipFile(path) as archive, open_member(archive, archive.getinfo(f"{key}.npy")) as stream:
            values = npy_format.read_array(stream, allow_pickle=False).ravel()
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
    except Exception as error:
        raise _damaged(path, error) from error
    labels = [str(value).strip() for value in values.tolist()]
    if not all(labels):
        raise DataError(f"{path}: a label of '{printable(key)}' is empty", hint="label every image")
    return labels


def _nhwc(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8]:
    """Return a view of an image array as (N, H, W, C).

    Raises:
        DataError: The shape is not that of images, or the position of the channels is ambiguous.
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


def _check_pixels(path: Path, header: Header) -> None:
    if header.dtype == np.uint8 and 0 not in header.shape:
        return
    problem = "expected uint8 pixels of 0 to 255"
    if header.dtype.kind == "f":
        problem += "; range and normalization of floats are unknown"
    raise DataError(
        f"{path}: images are {header.text()}: {problem}",
        hint="store the pixels as uint8, before mean and std",
    )


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is no readable array: {printable(str(error), 200)}",
        hint="save it again with numpy.save or numpy.savez, without Python objects",
    )
