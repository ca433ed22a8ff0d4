"""Write and read evaluation images as one file that targets/runner reads without dependencies.

Layout; integers are little-endian:

    offset  0   8 bytes   magic: b"EDGESET1"
    offset  8   uint64    H, the length of the header, padding included
    offset 16   H bytes   header: UTF-8 JSON, filled up with spaces; 16 + H is a multiple of 64
    16 + H                images: uint8 (images, height, width, channels), resized and cropped already
    after these           labels: int32 (images,), a class index or -1 for unknown

Header: schema (1), name, classes [name of class 0, ...] (empty without labels), images, height, width,
channels (3: RGB, 1: grey), preprocess {resize, crop, mean, std, interpolation}, source_digest, skipped
(number of undecodable images left out), sha256 (hexadecimal, of all bytes after the header).

The network's input is (pixel / 255 - mean) / std per channel, each step rounded to float32, as NCHW: the
same numbers as in calibration and evaluation. With NumPy:

    with open(path, "rb") as stream:
        magic, length = stream.read(8), int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    shape = tuple(header[key] for key in ("images", "height", "width", "channels"))
    images = numpy.memmap(path, numpy.uint8, "r", 16 + length, shape)
    labels = numpy.fromfile(path, "<i4", header["images"], offset=16 + length + images.size)

Equal inputs give equal files, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeship.calibration.datasets import Dataset
from edgeship.calibration.loader import decode_each
from edgeship.calibration.preprocess import check, pixels
from edgeship.toolkit.core import progress
from edgeship.toolkit.core.artifact import canonical_json, replacing
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import IntArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess

MAGIC = b"EDGESET1"
_SCHEMA = 1
_ALIGN = 64  # bytes; the images start on a cache line
_PREFIX = 16  # bytes of magic and length


@dataclass(frozen=True, slots=True)
class PackedSet:
    """A packed evaluation set; the images are memory-mapped.

    Attributes:
        name: Name of the data set.
        classes: Class names; empty without labels.
        preprocess: Preprocessing; resize and crop are applied already, mean and std are not.
        images: (N, H, W, C) uint8, memory-mapped.
        labels: (N,) class indices; -1 is unknown.
    """

    name: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    images: PixelArray
    labels: IntArray


def pack(
    dataset: Dataset,
    indices: Sequence[int],
    preprocess: Preprocess,
    out: Path,
    *,
    workers: int | None = None,
    skip_bad: bool = False,
) -> tuple[str, ...]:
    """Write images and labels as one file, atomically.

    Args:
        dataset: Source of the images.
        indices: Images to write, in order.
        preprocess: Resize and crop to apply; mean and std to record.
        out: File to write.
        workers: Decoding threads.
        skip_bad: Leave out and count images that cannot be decoded.

    Returns:
        Names of the images left out.

    Raises:
        DataError: An image cannot be decoded (or, with `skip_bad`, none can), or is smaller than the crop.
    """
    check(preprocess)

    header: dict[str, Any] = {
        "schema": _SCHEMA,
        "name": dataset.name,
        "classes": dataset.classes,
        "images": len(indices),
        "height": preprocess.sides[0],
        "width": preprocess.sides[1],
        "channels": len(preprocess.mean),
        "preprocess": preprocess,
        "source_digest": dataset.listing_digest(),
        "skipped": len(indices),
        "sha256": "0" * 64,
    }
    written: list[int] = []
    skipped: list[str] = []
    digest = hashlib.sha256()

    def crop(image: Image.Image, name: str) -> PixelArray:
        return pixels(image, preprocess, name)

    with replacing(out) as temporary, temporary.open("wb") as stream:
        # Counts and digest are known only at the end: the header is written last.
        length = _header_bytes(header)
        stream.seek(_PREFIX + length)
        decoded = decode_each(dataset, indices, crop, workers=workers, skip_bad=skip_bad)
        with closing(decoded):
            for index, image in progress.track(decoded, "packing images", len(indices)):
                if image is None:
                    skipped.append(dataset.items[index].name)
                    continue
                stream.write(image.tobytes())
                digest.update(image.tobytes())
                written.append(index)
        labels = dataset.labels[written].astype("<i4").tobytes()
        stream.write(labels)
        digest.update(labels)
        header |= {"images": len(written), "skipped": len(skipped), "sha256": digest.hexdigest()}
        stream.seek(0)
        stream.write(MAGIC + length.to_bytes(8, "little") + canonical_json(header).encode().ljust(length))
    return tuple(skipped)


def read(path: Path) -> PackedSet:
    """Open a packed evaluation set and verify its digest.

    Raises:
        DataError: The file is absent, damaged, not a packed evaluation set, or of another schema.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise _damaged(path, "it is no packed evaluation set")
            start = _PREFIX + int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(start, path.stat().st_size) - _PREFIX))
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
        if header["schema"] != _SCHEMA:
            raise _damaged(path, f"schema is {header['schema']}, expected {_SCHEMA}")
        if digest.hexdigest() != header["sha256"]:
            raise _damaged(path, "its content does not match its digest")
        shape = tuple(header[key] for key in ("images", "height", "width", "channels"))
        images = np.memmap(path, np.uint8, "r", start, shape)
        labels = np.fromfile(path, "<i4", header["images"], offset=start + images.size).astype(np.int64)
        preprocess = Preprocess.from_json(header["preprocess"])
        return PackedSet(header["name"], tuple(header["classes"]), preprocess, images, labels)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its header is broken ({error})") from error


def _header_bytes(header: dict[str, Any]) -> int:
    """Return the padded length of a header in bytes, so that the images start on a cache line."""
    return -(-(_PREFIX + len(canonical_json(header).encode())) // _ALIGN) * _ALIGN - _PREFIX


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path} cannot be used: {problem}", hint="pack the images again, or copy the file again"
    )
