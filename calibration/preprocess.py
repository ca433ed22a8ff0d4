"""Preprocess decoded images to network inputs, identically for calibration, evaluation and device.

1. Resize so that the shorter side has `resize` pixels; the longer one is truncated:
   int(resize * long / short). A `resize` of (height, width) sets both sides, whatever the aspect ratio.
   Pillow's filters: antialiased when shrinking, rounded to uint8.
2. Centre crop, `crop` x `crop` or (height, width): left = round((image width - width) / 2), ties to even;
   top likewise.
3. (pixel / 255 - mean) / std per channel, each step in float32.

Bit-identical to torchvision's Resize, CenterCrop, ToTensor and Normalize on a Pillow image, except that an
image smaller than the crop is an error here; torchvision pads it with black.
Steps 1 and 2 return uint8, so a device that receives `pixels` needs step 3 only.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess, Size, sides, size_text

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
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
    elif preprocess.interpolation not in _FILTERS:
        problem = f"no interpolation named '{preprocess.interpolation}' (known: {', '.join(_FILTERS)})"
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
    if len(preprocess.mean) == 1:
        image = image.convert("L")
    crop_height, crop_width = preprocess.sides
    height, width = _resized(image.height, image.width, preprocess.resize)
    if (width, height) != image.size:
        _check_enlarged(name, image.size, width * height)
        image = image.resize((width, height), _FILTERS[preprocess.interpolation])
    if height < crop_height or width < crop_width:
        size = size_text(preprocess.crop)
        raise DataError(
            f"{name} is {width} x {height}, smaller than the crop of "
            + (f"{size} pixels" if crop_height == crop_width else f"{size} pixels (height x width)"),
            hint=f"set resize to {size} "
            + ("or more " if crop_height == crop_width else "")
            + "in load.preprocess",
        )
    if (height, width) != (crop_height, crop_width):
        left, top = round((width - crop_width) / 2), round((height - crop_height) / 2)
        image = image.crop((left, top, left + crop_width, top + crop_height))
    return np.asarray(image).reshape(crop_height, crop_width, len(preprocess.mean))


def _resized(height: int, width: int, resize: Size | None) -> tuple[int, int]:
    """Return height and width after the resize: shorter side of `resize` pixels, or both sides set."""
    if resize is None:
        return height, width
    if not isinstance(resize, int):
        return resize
    longer = int(resize * max(height, width) / min(height, width))
    return (longer, resize) if width <= height else (resize, longer)


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
    scaled = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    scaled /= np.float32(255)
    scaled -= np.asarray(preprocess.mean, np.float32)[:, None, None]
    scaled /= np.asarray(preprocess.std, np.float32)[:, None, None]
    return scaled


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
