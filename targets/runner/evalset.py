"""Packed evaluation set, golden inputs, and comparison of logits.

Packed set, one file: magic b"EDGESET1"; uint64 little-endian H; H bytes of JSON with "schema" 1, "images",
"height", "width", "channels", "preprocess" {"mean", "std", ...} and "sha256" of the rest; then
images x height x width x channels uint8 pixels; then an int32 little-endian label an image (-1: unknown).
"""

from __future__ import annotations

import array
import hashlib
import json
import math
import os
import random
import struct
import sys
from typing import Any, Iterator, NamedTuple

from .backend import Session
from .failures import Failure
from .guard_record import margin

MAGIC = b"EDGESET1"
_FLOAT_BYTES = _LABEL_BYTES = 4


class Packed:
    """A packed set, checked as a whole before the first image is used.

    Raises:
        Failure: It is no packed set, cut off, or its digest differs.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            magic, header_bytes = stream.read(8), int.from_bytes(stream.read(8), "little")
            self._start = 16 + header_bytes
            if magic != MAGIC or self._start > size:
                raise _bad(path, "is no packed image set")
            try:
                header = json.loads(stream.read(header_bytes))
                sizes = (_natural(header[key]) for key in ("images", "height", "width", "channels"))
                self.count, height, width, channels = sizes
                mean, std = ([_float32(value) for value in header["preprocess"][key]] for key in ("mean", "std"))
                schema, expected = header["schema"], header["sha256"]
            except (ValueError, KeyError, TypeError, OverflowError, struct.error, RecursionError) as error:
                raise _bad(path, f"has a damaged header ({error})") from error
            if schema != 1:
                raise _bad(path, f"has schema {schema}; this runner reads schema 1")
            if len(mean) != channels or len(std) != channels or not all(map(math.isfinite, mean)) or min(std) <= 0:
                raise _bad(path, "has no usable mean and deviation for each channel")
            self._pixels = height * width * channels
            length = self._start + self.count * (self._pixels + _LABEL_BYTES)
            if size != length:
                raise _bad(path, f"has {size} bytes instead of {length}")
            digest = hashlib.sha256()
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
            if digest.hexdigest() != expected:
                raise _bad(path, "does not match the digest in its header")
            stream.seek(self._start + self.count * self._pixels)
            self.labels = list(struct.unpack(f"<{self.count}i", stream.read()))
        self.image_shape, self._pixel_shape = (channels, height, width), (height, width, channels)
        self._numpy = numpy_or_none()
        # A pixel has 256 values, so a table does it, fast without numpy. Every step is rounded to float32,
        # as on the host: the device then computes on exactly the numbers calibration computed on.
        self._tables = [
            array.array("f", [_float32(_float32(_float32(pixel / 255) - m) / s) for pixel in range(256)])
            for m, s in zip(mean, std)
        ]

    def shape_for(self, session: Session) -> tuple[int, ...]:
        """Shape of one image in the form a session takes."""
        return self._pixel_shape if session.takes_pixels else self.image_shape

    def batches(self, size: int, limit: int, takes_pixels: bool = False) -> Iterator[tuple[bytes, int]]:
        """Yield batches of images, float32 NCHW or pixels, with their number of images; the last may be smaller."""
        with open(self._path, "rb") as stream:
            stream.seek(self._start)
            for first in range(0, limit, size):
                count = min(size, limit - first)
                if takes_pixels:
                    yield stream.read(count * self._pixels), count
                else:
                    yield b"".join(self._image(stream.read(self._pixels)) for _ in range(count)), count

    def _image(self, pixels: bytes) -> bytes:
        channels = len(self._tables)
        if self._numpy is not None:  # the same tables, ten times as fast
            numpy = self._numpy
            planes_hwc = numpy.frombuffer(pixels, numpy.uint8).reshape(-1, channels)
            return b"".join(
                numpy.frombuffer(table, numpy.float32)[planes_hwc[:, number]].astype("<f4").tobytes()
                for number, table in enumerate(self._tables)
            )
        planes = (
            array.array("f", map(table.__getitem__, pixels[number::channels]))
            for number, table in enumerate(self._tables)
        )
        return b"".join(_little(plane).tobytes() for plane in planes)


class Golden(NamedTuple):
    """Inputs with the logits they must give, and the image files of some by row."""

    images: bytes
    logits: list[array.array[float]]
    total: int
    image_shape: tuple[int, ...]
    are_pixels: bool
    files: dict[int, bytes]


def golden(folder: str) -> Golden:
    """Read golden inputs and logits, digests checked.

    Raises:
        Failure: A file is absent, or differs from golden.json.
    """
    path = os.path.join(folder, "golden.json")
    try:
        with open(path, encoding="utf-8") as stream:
            record = json.load(stream)
        count, *image_shape = (_natural(size) for size in record["shape"])
        classes, names, digests = _natural(record["classes"]), (record["inputs"], record["logits"]), record["sha256"]
        are_pixels = names[0].endswith(".u8")
        value_bytes = 1 if are_pixels else _FLOAT_BYTES
        sizes = (count * math.prod(image_shape) * value_bytes, count * classes * _FLOAT_BYTES)
        rows_of_files = {int(row): str(name) for row, name in record.get("files", {}).items()}
        if any(not 0 <= row < count for row in rows_of_files):
            raise ValueError("an image file of no row")
        contents = []
        for name, size in zip((*names, *rows_of_files.values()), (*sizes, *(None for _ in rows_of_files))):
            with open(os.path.join(folder, os.path.basename(name)), "rb") as stream:
                data = stream.read()
            if hashlib.sha256(data).hexdigest() != digests[name] or size not in (None, len(data)):
                raise _bad(name, "does not match golden.json")
            contents.append(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(path, f"is damaged ({error})") from error
    files = dict(zip(rows_of_files, contents[2:]))
    return Golden(contents[0], rows(contents[1], classes), count, tuple(image_shape), are_pixels, files)


def rows(data: bytes, classes: int) -> list[array.array[float]]:
    """Logits of each image from raw float32."""
    values = array.array("f")
    values.frombytes(data)
    _little(values)
    return [values[start : start + classes] for start in range(0, len(values), classes)]


def run(session: Session, images: bytes, count: int, batch: int) -> bytes:
    """Logits of `count` images; a last batch that is too small is filled up with zeros."""
    size = image_bytes(session)
    found = b""
    for first in range(0, count, batch):
        part = images[first * size : (first + batch) * size]
        session.load(part + bytes(batch * size - len(part)))
        session.step()
        found += session.logits()
    return found[: count * session.classes * _FLOAT_BYTES]


class SecondRuns:
    """Second runs of close images in the reference of a guard.

    Attributes:
        rerun: Images that ran again.
    """

    def __init__(self, threshold: float, session: Session, batch: int) -> None:
        self._threshold, self._session, self._batch = threshold, session, batch
        self.rerun = 0

    def corrected(self, images: bytes, logits: bytes, classes: int) -> bytes:
        """Return logits with those of the reference in the rows of close images."""
        size, row, result = image_bytes(self._session), _FLOAT_BYTES * classes, bytearray(logits)
        for place, each in enumerate(rows(logits, classes)):
            if margin(each) <= self._threshold:
                image = images[place * size : (place + 1) * size]
                result[place * row : (place + 1) * row] = run(self._session, image, 1, self._batch)
                self.rerun += 1
        return bytes(result)


def image_bytes(session: Session) -> int:
    """Size of one image in the form a session takes."""
    return math.prod(session.image_shape) * (1 if session.takes_pixels else _FLOAT_BYTES)


def type_name(are_pixels: bool) -> str:
    """Return the type of image values."""
    return "uint8" if are_pixels else "float32"


def noise(session: Session, count: int) -> bytes:
    """Images for timing: constant pseudo-random numbers (zeros would draw less power)."""
    random_numbers = random.Random(0)
    if session.takes_pixels:
        pattern = bytes(random_numbers.randrange(256) for _ in range(4096))
    else:
        pattern = _little(array.array("f", [random_numbers.gauss(0.0, 1.0) for _ in range(4096)])).tobytes()
    size = count * image_bytes(session)
    return (pattern * (size // len(pattern) + 1))[:size]


def batch_for(session: Session, wanted: int) -> int:
    """Return the batch of a session: its fixed one, else the requested one up to its maximum."""
    if session.batch is not None:
        return session.batch
    return min(wanted, session.batch_max or wanted)


def same_shape(session: Session, shape: tuple[int, ...], what: str, are_pixels: bool | None = None) -> None:
    """Raise if the images do not fit the engine; `are_pixels` None: they have its form.

    Raises:
        Failure: The shapes differ.
    """
    if session.image_shape != tuple(shape):
        raise Failure(
            "shape-mismatch", f"{what} has images of {tuple(shape)}, the engine takes {session.image_shape}",
            "engine and images come from different exports", "bundle both from one run",
        )  # fmt: skip
    if are_pixels is not None and are_pixels != session.takes_pixels:
        raise Failure(
            "shape-mismatch",
            f"{what} has {type_name(are_pixels)} images, the engine takes {type_name(session.takes_pixels)}",
            "engine and images come from different exports", "bundle both from one run",
        )  # fmt: skip


def cosine(a: array.array[float], b: array.array[float]) -> float:
    """Cosine of the angle between two rows; NaN where one is zero or not finite."""
    norm = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b)) / norm if norm > 0 else math.nan


def best(row: array.array[float], count: int = 1) -> list[int]:
    """Classes of the highest logits, the lower class first among equals."""
    if count == 1:
        return [row.index(max(row))]
    return sorted(range(len(row)), key=lambda index: (-row[index], index))[:count]


def finite(values: list[array.array[float]]) -> bool:
    """Return True if all logits are finite."""
    return all(math.isfinite(value) for row in values for value in row)


def compare(got: list[array.array[float]], expected: list[array.array[float]]) -> dict[str, float]:
    """Compare logits with expected ones.

    Returns:
        Lowest and mean cosine over the images, share of images with the same best class, and the
        largest difference of any logit.
    """
    cosines = [cosine(a, b) for a, b in zip(got, expected)]
    same = [best(a) == best(b) for a, b in zip(got, expected)]
    return {
        "cosine_min": min(cosines),
        "cosine_mean": math.fsum(cosines) / len(cosines),
        "top1_agreement": sum(same) / len(same),
        "largest_difference": max(abs(x - y) for a, b in zip(got, expected) for x, y in zip(a, b)),
    }


def sqnr_db(got: list[array.array[float]], expected: list[array.array[float]]) -> float | None:
    """Signal over difference of all logits together, in decibel; None when they are equal or zero."""
    signal = math.fsum(y * y for row in expected for y in row)
    noise = math.fsum((x - y) ** 2 for a, b in zip(got, expected) for x, y in zip(a, b))
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def accuracy(got: list[array.array[float]], labels: list[int]) -> dict[str, Any]:
    """Top-1 and top-5 as fractions of the labelled images; None without labels."""
    labelled = [(row, label) for row, label in zip(got, labels) if label >= 0]
    hits = [best(row, 5) for row, _ in labelled]
    total = len(labelled)
    return {
        "labelled": total,
        "top1": sum(hit[0] == label for hit, (_, label) in zip(hits, labelled)) / total if total else None,
        "top5": sum(label in hit for hit, (_, label) in zip(hits, labelled)) / total if total else None,
    }


def _little(values: array.array[float]) -> array.array[float]:
    """Swap in place between this machine's order of bytes and little-endian."""
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _float32(value: float) -> float:
    """The nearest float32."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def numpy_or_none() -> Any:
    """NumPy where it can be imported; the runner does without."""
    try:
        import numpy
    except Exception:  # absent, or built for another Python
        return None
    return numpy


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{value!r} is no positive whole number")
    return value


def _bad(path: str, what: str) -> Failure:
    return Failure("data-damaged", f"{path} {what}", "the file is damaged, or is something else",
                   "upload the bundle again; make the set again if that does not help")  # fmt: skip
