r"""Evaluation images as one file that a device reads with the standard library only (targets/runner).

Layout; integers are little-endian:

    offset  0   8 bytes   magic: b"ESPACK1\n"
    offset  8   uint32    H, the length of the header
    offset 12   H bytes   header: JSON, filled up with spaces so that the pixels start at a multiple of 64
    12 + H                labels: int32 (count,), a class index or -1 for unknown
    after these           pixels: uint8 (count, height, width, channels), resized and cropped already

Header: count, height, width, channels (3: RGB, 1: grey), mean and std (per channel, of pixels / 255), sha256
(hexadecimal, of all after the header); and for people: name, classes (names in the order of the labels, empty
without labels), resize, interpolation, source_digest, skipped (images left out, as they cannot be decoded).

The network's input is (pixel / 255 - mean) / std per channel, computed in double precision and rounded to
float32 once, as `calibration.preprocess` does it, so a device sees exactly the numbers seen in calibration.
With NumPy:

    with open(path, "rb") as stream:
        magic, length = stream.read(8), int.from_bytes(stream.read(4), "little")
        header = json.loads(stream.read(length))
    shape = tuple(header[key] for key in ("count", "height", "width", "channels"))
    labels = numpy.fromfile(path, "<i4", header["count"], offset=12 + length)
    pixels = numpy.memmap(path, numpy.uint8, "r", 12 + length + labels.nbytes, shape)

Equal inputs give equal files, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from calibration.datasets import Dataset
from calibration.loader import decode_each
from calibration.preprocess import PixelArray, check, pixels
from toolkit.core import progress
from toolkit.core.artifact import canonical_json, replacing
from toolkit.core.errors import DataError
from toolkit.core.quant import IntArray
from toolkit.core.tensors import Preprocess

MAGIC = b"ESPACK1\n"
_ALIGN = 64  # bytes of a cache line
_PREFIX = 12  # bytes of magic and length
_LABEL = 4  # bytes of a label


@dataclass(frozen=True, slots=True)
class PackedSet:
    """A packed evaluation set; the images stay on disk until they are touched.

    Attributes:
        name: Name of the data set.
        classes: Class names; empty without labels.
        preprocess: How the images were made, and what is left to do: mean and std.
        images: (N, H, W, C) uint8, mapped from the file.
        labels: N class indices; -1 is unknown.
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
    """Write images and labels as one file, which appears only when it is complete.

    Args:
        dataset: Where the images are.
        indices: Which of them, in which order.
        preprocess: Resizing and crop to apply; mean and std to record.
        out: The file to write.
        workers: Threads that decode.
        skip_bad: Leave out, and count, images that cannot be decoded.

    Returns:
        Names of the images left out.

    Raises:
        DataError: An image cannot be decoded (or, with `skip_bad`, none can), or is smaller than the crop.
    """
    check(preprocess)

    header: dict[str, Any] = {
        "name": dataset.name,
        "classes": dataset.classes,
        "count": len(indices),
        "height": preprocess.crop,
        "width": preprocess.crop,
        "channels": len(preprocess.mean),
        "mean": preprocess.mean,
        "std": preprocess.std,
        "resize": preprocess.resize,
        "interpolation": preprocess.interpolation,
        "source_digest": dataset.listing_digest(),
        "skipped": len(indices),
        "sha256": "0" * 64,
    }
    kept: list[int] = []
    skipped: list[str] = []

    def crop(image: Image.Image, name: str) -> PixelArray:
        return pixels(image, preprocess, name)

    with replacing(out) as temporary, temporary.open("w+b") as stream:
        # How many images can be decoded is known at the end only: the pixels come first, behind the most
        # room that header and labels can need, and the header's padding takes up what is left.
        room = _PREFIX + len(canonical_json(header).encode()) + _LABEL * len(indices)
        start = -(-room // _ALIGN) * _ALIGN
        stream.seek(start)
        decoded = decode_each(dataset, indices, crop, workers=workers, skip_bad=skip_bad)
        with closing(decoded):
            for index, image in progress.track(decoded, "packing images", len(indices)):
                if image is None:
                    skipped.append(dataset.items[index].name)
                else:
                    stream.write(image.tobytes())
                    kept.append(index)
        labels = dataset.labels[kept].astype("<i4").tobytes()
        stream.seek(start)
        header |= {"count": len(kept), "skipped": len(skipped), "sha256": _digest(labels, stream)}
        length = start - len(labels) - _PREFIX
        stream.seek(0)
        stream.write(MAGIC + length.to_bytes(4, "little") + canonical_json(header).encode().ljust(length))
        stream.write(labels)
    return tuple(skipped)


def read(path: Path) -> PackedSet:
    """Open a packed evaluation set and verify its digest.

    Raises:
        DataError: The file is absent, damaged, or of another kind.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise _damaged(path, "it is no packed evaluation set")
            length = int.from_bytes(stream.read(_PREFIX - len(MAGIC)), "little")
            header = json.loads(stream.read(min(length, path.stat().st_size)))
            if _digest(b"", stream) != header["sha256"]:
                raise _damaged(path, "its content does not fit its digest")
        shape = tuple(header[key] for key in ("count", "height", "width", "channels"))
        labels = np.fromfile(path, "<i4", header["count"], offset=_PREFIX + length)
        images = np.memmap(path, np.uint8, "r", _PREFIX + length + labels.nbytes, shape)
        preprocess = Preprocess(
            resize=header["resize"],
            crop=header["height"],
            mean=tuple(header["mean"]),
            std=tuple(header["std"]),
            interpolation=header["interpolation"],
        )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its header is broken ({error})") from error
    return PackedSet(header["name"], tuple(header["classes"]), preprocess, images, labels.astype(np.int64))


def _digest(first: bytes, rest: IO[bytes]) -> str:
    """SHA-256 of some bytes and all that a stream still holds."""
    digest = hashlib.sha256(first)
    while block := rest.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path} cannot be used: {problem}", hint="pack the images again, or copy the file again"
    )
