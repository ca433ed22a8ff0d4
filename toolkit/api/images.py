"""Read the images of a user of the Python API: a source by path, or arrays, tensors and PIL images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgeship.calibration import images as decoding
from edgeship.calibration.preprocess import apply
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.pipeline.evaluation import Arrays

Images: TypeAlias = "str | os.PathLike[str] | Iterable[Any]"
Shape: TypeAlias = tuple[int, int, int]  # channels, height, width

CHANNELS = (1, 3)
FORMS = (
    "float32 (C, H, W) or (N, C, H, W), preprocessed; uint8 (H, W, C) or (N, H, W, C), decoded; PIL images; "
    "image files; or pairs of these and their labels"
)


@dataclass(frozen=True, slots=True)
class Image:
    """One image and its label: a preprocessed array (C, H, W), or decoded pixels (H, W, C)."""

    values: FloatArray | PixelArray
    label: int
    place: int

    @property
    def decoded(self) -> bool:
        """Return True for uint8 pixels, which are still to be preprocessed."""
        return self.values.dtype == np.uint8


class ImageStream:
    """Images of an iterable, read as far as needed.

    Args:
        images: Arrays, tensors, PIL images, image files, or pairs of one of these and a label, single or in
            batches.

    Attributes:
        shape: Channels, height and width of preprocessed images; None for decoded ones.

    Raises:
        DataError: There is no image, or the first is none.
    """

    def __init__(self, images: Iterable[Any]) -> None:
        self._stream = _numbered(_evenly(images))
        first = next(self._stream, None)
        if first is None:
            raise DataError(
                "there are no images: the iterable is empty", hint="a generator yields only once; pass a list"
            )
        self._stream = chain([first], self._stream)
        self.decoded = first.decoded
        self.shape: Shape | None = None if first.decoded else _shape(first.values)

    def take(self, count: int | None, preprocess: Preprocess | None, expected: Shape) -> Arrays:
        """Return the first images, preprocessed.

        Args:
            count: Number of images; fewer if there are no more. None: all.
            preprocess: Preprocessing of decoded images; None: unknown.
            expected: Channels, height and width of the network.

        Raises:
            DataError: An image has another size or type than expected, or NaN; or decoded images have no
                known preprocessing.
        """
        taken = list(islice(self._stream, count))
        images = [_prepared(each, preprocess, expected) for each in taken]
        return Arrays(np.stack(images), np.array([each.label for each in taken], np.int64))


def as_source(images: Images) -> str | ImageStream:
    """Return the text of a path, or a stream of any other images."""
    if isinstance(images, (str, os.PathLike)):
        return os.fspath(images)
    if isinstance(images, Mapping) or not (isinstance(images, Iterable) or hasattr(images, "__getitem__")):
        raise DataError(
            f"images is a {type(images).__name__}, expected a path or an iterable", hint=f"pass {FORMS}"
        )
    if isinstance(images, tuple) and len(images) == 2 and getattr(images[0], "ndim", 0) == 4:
        images = [images]  # one batch and its labels
    return ImageStream(images)


def _evenly(images: Iterable[Any]) -> Iterable[Any]:
    """Return the items of a sequence in an order whose every beginning is spread evenly over it."""
    if isinstance(images, Sized) and hasattr(images, "__getitem__"):
        steps = np.arange(len(images)) * ((5**0.5 - 1) / 2) % 1  # golden ratio: low discrepancy
        return (images[int(index)] for index in np.argsort(steps, kind="stable"))
    return images


def _numbered(items: Iterable[Any]) -> Iterator[Image]:
    place = 0
    for item in items:
        for values, label in _singles(item, place):
            yield Image(values, label, place)
            place += 1


def _singles(item: Any, place: int) -> Iterator[tuple[FloatArray | PixelArray, int]]:
    """Yield the images of one item of an iterable, and their labels; -1 is unknown."""
    labels: Any = None
    if isinstance(item, (tuple, list)) and len(item) == 2:
        item, labels = item
    values = _array(item, place)
    if values.ndim == 3:
        yield values, _label(labels, 1, place)[0]
    elif values.ndim == 4:
        yield from zip(values, _label(labels, len(values), place), strict=True)
    else:
        raise _unusable(place, f"is an array of shape {values.shape}")


def _array(item: Any, place: int) -> FloatArray | PixelArray:
    """Return an image or a batch as float32 (..., C, H, W) or uint8 (..., H, W, C)."""
    if isinstance(item, (str, os.PathLike)):
        try:
            item = decoding.decode(Path(item).read_bytes(), str(item))
        except OSError as error:
            raise DataError(f"cannot read {item}: {error.strerror}", hint="check the path") from error
    if hasattr(item, "convert") and hasattr(item, "mode"):  # a PIL image
        item = np.asarray(item if item.mode in ("L", "RGB") else item.convert("RGB"))
        item = item[..., None] if item.ndim == 2 else item
    if hasattr(item, "detach"):  # a tensor
        item = item.detach().cpu().numpy()
    if not isinstance(item, np.ndarray):
        raise _unusable(place, f"is a {type(item).__name__}")
    if item.dtype == np.uint8:
        last, first = item.shape[-1] in CHANNELS, item.ndim > 2 and item.shape[-3] in CHANNELS
        return np.moveaxis(item, -3, -1) if first and not last else item
    if item.dtype.kind != "f":
        raise _unusable(place, f"has the type {item.dtype}")
    return item.astype(np.float32)


def _label(labels: Any, count: int, place: int) -> list[int]:
    if labels is None:
        return [-1] * count
    values = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels).reshape(-1)
    if len(values) != count or values.dtype.kind not in "iu":
        raise DataError(
            f"image {place}: labels of shape {np.shape(labels)} and type {values.dtype}, expected {count} "
            "whole number(s)",
            hint="give the class index of each image",
        )
    return [int(value) for value in values]


def _prepared(image: Image, preprocess: Preprocess | None, expected: Shape) -> FloatArray:
    from PIL import Image as Pillow

    name = f"image {image.place}"
    if image.decoded:
        if preprocess is None:
            raise DataError(
                f"{name} is decoded pixels (uint8), and the preprocessing of the network is unknown",
                hint="pass preprocess={'mean': ..., 'std': ...}, or preprocessed float32 arrays",
            )
        if image.values.ndim != 3 or image.values.shape[2] not in CHANNELS:
            raise _unusable(image.place, f"is uint8 of shape {image.values.shape}")
        grey = image.values.shape[2] == 1
        pixels = Pillow.fromarray(image.values[..., 0] if grey else image.values)
        return apply(
            pixels if grey and len(preprocess.mean) == 1 else pixels.convert("RGB"), preprocess, name
        )
    if image.values.shape != expected:
        raise DataError(
            f"{name} has the shape {image.values.shape}, the network takes {expected} (C, H, W)",
            hint="preprocess all images to the input of the network",
        )
    if not np.isfinite(image.values).all():
        raise DataError(f"{name} has NaN or infinite values", hint="remove it, or correct the preprocessing")
    return image.values  # type: ignore[return-value]


def _shape(values: FloatArray | PixelArray) -> Shape:
    channels, height, width = values.shape
    return channels, height, width


def _unusable(place: int, problem: str) -> DataError:
    return DataError(f"image {place} {problem}, which is no image", hint=f"expected {FORMS}")
