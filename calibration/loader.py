"""Stream decoded, preprocessed batches; memory does not depend on the number of images.

Decoding uses threads: Pillow releases the interpreter lock while decoding and resizing, and threads start
fast, share the open archive and end with the loop that reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from edgeship.calibration.datasets import Dataset
from edgeship.calibration.preprocess import check, normalize, pixels
from edgeship.toolkit.core import progress
from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.core.quant import FloatArray, IntArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.core.text import printable
from edgeship.toolkit.core.threads import ordered_map

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Batch:
    """Preprocessed images, in the requested order.

    Attributes:
        images: (N, C, H, W) float32.
        labels: (N,) class indices; -1 is unknown.
        indices: (N,) positions in the data set.
        pixels: (N, H, W, C) uint8: the same images before mean and std.
    """

    images: FloatArray
    labels: IntArray
    indices: IntArray
    pixels: PixelArray


class Batches(Iterator[Batch]):
    """Iterator of batches; `skipped` lists the images that could not be decoded so far."""

    def __init__(self, batches: Generator[Batch, None, None], skipped: list[str]) -> None:
        self.skipped = skipped
        self._batches = batches

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """End the threads before the last batch; `contextlib.closing` calls it."""
        self._batches.close()


def batches(
    dataset: Dataset,
    indices: Sequence[int],
    preprocess: Preprocess,
    *,
    batch: int,
    workers: int | None = None,
    skip_bad: bool = False,
    part: bool = False,
    label: str = "",
) -> Batches:
    """Decode and preprocess images in worker threads, in order.

    Args:
        dataset: Source of the images.
        indices: Images to decode, in order.
        preprocess: Sizes, filter, mean and std.
        batch: Images per batch; the last batch may be smaller.
        workers: Threads; None: one per available core, at most 8.
        skip_bad: Leave out undecodable images (listed in `Batches.skipped`) instead of raising.
        part: True if `indices` is a part of the images, which may all be undecodable.
        label: Label of the progress reports; empty: no reports.

    Raises:
        DataError: An image cannot be decoded (or, with `skip_bad`, none can), or is smaller than the crop.
        RecipeError: The batch is below 1.
    """
    if batch < 1:
        raise RecipeError(f"a batch of {batch} images is impossible", hint="set the batch to 1 or more")
    check(preprocess)
    skipped: list[str] = []

    def prepare(image: Image.Image, name: str) -> tuple[FloatArray, PixelArray]:
        cropped = pixels(image, preprocess, name)
        return normalize(cropped[None], preprocess)[0], cropped

    def assemble() -> Generator[Batch, None, None]:
        prepared: list[tuple[FloatArray, PixelArray]] = []
        positions: list[int] = []
        decoded = decode_each(dataset, indices, prepare, workers=workers, skip_bad=skip_bad, part=part)
        with closing(decoded):
            for done, (index, image) in enumerate(decoded, 1):
                if image is None:
                    skipped.append(dataset.items[index].name)
                else:
                    prepared.append(image)
                    positions.append(index)
                if len(positions) == batch or (positions and done == len(indices)):
                    yield _batch(dataset, prepared, positions)
                    prepared, positions = [], []
                    if label:
                        progress.report_progress(label, done, len(indices))

    return Batches(assemble(), skipped)


def decode_each(
    dataset: Dataset,
    indices: Sequence[int],
    work: Callable[[Image.Image, str], Result],
    *,
    workers: int | None = None,
    skip_bad: bool = False,
    part: bool = False,
) -> Generator[tuple[int, Result | None], None, None]:
    """Decode images and apply a function in worker threads; yield the results in order.

    Args:
        dataset: Source of the images.
        indices: Images to decode, in order.
        work: Function of a decoded RGB image and its name.
        workers: Threads; None: one per available core, at most 8.
        skip_bad: Yield None for undecodable images instead of raising.
        part: True if `indices` is a part of the images, which may all be undecodable.

    Raises:
        DataError: An image cannot be decoded (or, with `skip_bad`, none can).
    """

    def load(index: int) -> Result | None:
        try:
            image = dataset.image(index)
        except DataError:
            if skip_bad:
                return None
            raise
        return work(image, printable(dataset.items[index].name))

    undecodable = 0
    with closing(ordered_map(load, indices, workers=workers)) as results:
        for index, result in zip(indices, results, strict=True):
            undecodable += result is None
            yield index, result
    if undecodable and undecodable == len(indices) and not part:
        raise none_readable(dataset.name, undecodable)


def none_readable(name: str, count: int) -> DataError:
    """Return the error for a data set without decodable images."""
    return DataError(
        f"none of the {count} images of {name} can be decoded",
        hint="check that the files are images, and copy them again",
    )


def _batch(dataset: Dataset, prepared: list[tuple[FloatArray, PixelArray]], indices: list[int]) -> Batch:
    labels = [dataset.items[index].label for index in indices]
    classes = np.array([-1 if label is None else label for label in labels], np.int64)
    images, cropped = zip(*prepared, strict=True)
    return Batch(np.stack(images), classes, np.array(indices, np.int64), np.stack(cropped))
