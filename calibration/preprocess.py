"""Preprocess decoded images to network inputs by `targets.runner.imaging`, which also runs on devices."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgeship.targets.runner import imaging
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess, Size, sides, size_text

_MOST_PIXELS = 1 << 26  # of a resized image: 256 MiB in Pillow, an aspect ratio of 1,024 at 256 pixels


def check(preprocess: Preprocess) -> None:
    """Raise if a preprocessing is invalid.

    Raises:
        DataError: A size, mean, std or filter is invalid.
    """
    problem = ""
    if min(preprocess.sides) < 1:
        problem = f"crop is {size_text(preprocess.crop)}"
    elif preprocess.resize is not None and not _covers(preprocess.resize, preprocess.crop):
        problem = (
            f"resize ({size_text(preprocess.resize)}) is smaller than crop ({size_text(preprocess.crop)})"
        )
    elif (len(preprocess.mean), len(preprocess.std)) not in ((1, 1), (3, 3)):
        problem = f"mean {preprocess.mean} and std {preprocess.std} need 3 channels each, or 1 for grey"
    elif not np.isfinite([preprocess.mean, preprocess.std]).all() or min(preprocess.std) <= 0:
        problem = f"mean {preprocess.mean} and std {preprocess.std} must be finite, and std above 0"
    elif preprocess.interpolation not in imaging.FILTERS:
        problem = f"no interpolation named '{preprocess.interpolation}' (known: {', '.join(imaging.FILTERS)})"
    if problem:
        raise DataError(f"unusable preprocessing: {problem}", hint="correct load.preprocess in the recipe")


def pixels(image: Image.Image, preprocess: Preprocess, name: str = "image") -> PixelArray:
    """Resize and crop an image.

    Args:
        image: Decoded RGB image.
        preprocess: Sizes and filter.
        name: Name for messages.

    Returns:
        (height, width, C) uint8; C is the length of the mean: 3, RGB, or 1, grey by ITU-R 601 luma.

    Raises:
        DataError: The image is smaller than the crop.
    """
    resized = imaging.resized_sides(image.height, image.width, preprocess.resize)
    _check_enlarged(name, image.size, resized[0] * resized[1])
    if resized[0] < preprocess.sides[0] or resized[1] < preprocess.sides[1]:
        square = preprocess.sides[0] == preprocess.sides[1]
        size = size_text(preprocess.crop)
        raise DataError(
            f"{name} is {resized[1]} x {resized[0]}, smaller than the crop of {size} pixels"
            + ("" if square else " (height x width)"),
            hint=f"set resize to {size} {'or more ' if square else ''}in load.preprocess",
        )
    result: PixelArray = imaging.pixels(
        image, preprocess.resize, preprocess.sides, preprocess.interpolation, len(preprocess.mean)
    )
    return result


def _covers(resize: Size, crop: Size) -> bool:
    """Return True if a resized image can cover the crop, at the best aspect ratio."""
    if isinstance(resize, int):
        return resize >= min(sides(crop))
    return all(side >= crop_side for side, crop_side in zip(resize, sides(crop), strict=True))


def _check_enlarged(name: str, size: tuple[int, int], resized: int) -> None:
    """Raise if an image is so narrow that the resized image would fill the memory."""
    if resized > max(_MOST_PIXELS, size[0] * size[1]):
        raise DataError(
            f"{name} is {size[0]} x {size[1]}: resized, it has {resized:,} pixels, over {_MOST_PIXELS:,}",
            hint="its sides are too unequal for this resize: remove or crop the image",
        )


def normalize(images: PixelArray, preprocess: Preprocess) -> FloatArray:
    """Convert pixels to network inputs.

    Args:
        images: (N, H, W, C) uint8.
        preprocess: Mean and std.

    Returns:
        (N, C, H, W) float32, contiguous.
    """
    result: FloatArray = imaging.normalize(images, preprocess.mean, preprocess.std)
    return result


def denormalize(images: FloatArray, preprocess: Preprocess) -> PixelArray:
    """Return the pixels (N, H, W, C) of network inputs (N, C, H, W): the inverse of `normalize`."""
    mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (preprocess.mean, preprocess.std))
    levels = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def apply(image: Image.Image, preprocess: Preprocess, name: str = "image") -> FloatArray:
    """Preprocess one decoded RGB image to one network input.

    Args:
        image: Decoded RGB image.
        preprocess: Sizes, filter, mean and std.
        name: Name for messages.

    Returns:
        (C, height, width) float32.

    Raises:
        DataError: The image is smaller than the crop.
    """
    result: FloatArray = normalize(pixels(image, preprocess, name)[None], preprocess)[0]
    return result
