"""From a decoded image to a network input: the same arithmetic for calibration, evaluation and device.

1. Resize so that the shorter side has `resize` pixels; the longer one is cut to a whole number:
   int(resize * long / short). Pillow's filters: antialiased when shrinking, rounded to uint8.
2. Cut the `crop` x `crop` centre: left = round((width - crop) / 2), ties to even, top alike.
3. (pixel / 255 - mean) / std per channel, each step in float32.

This is what torchvision's Resize, CenterCrop, ToTensor and Normalize do with a Pillow image, bit for bit,
with one difference: an image smaller than the crop is an error here, where torchvision pads it with black.
Steps 1 and 2 give uint8, so a device that stores or receives `pixels` needs step 3 only.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from toolkit.core.errors import DataError
from toolkit.core.quant import FloatArray, PixelArray
from toolkit.core.tensors import Preprocess

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MOST_PIXELS = 1 << 26  # of a resized image: 256 MiB in Pillow, an aspect ratio of 1,024 at 256 pixels


def check(preprocess: Preprocess) -> None:
    """Refuse a description that no image can follow.

    Raises:
        DataError: A size, mean, std or filter that cannot be.
    """
    problem = ""
    if preprocess.crop < 1:
        problem = f"crop is {preprocess.crop}"
    elif preprocess.resize is not None and preprocess.resize < preprocess.crop:
        problem = f"resize ({preprocess.resize}) is smaller than crop ({preprocess.crop})"
    elif (len(preprocess.mean), len(preprocess.std)) not in ((1, 1), (3, 3)):
        problem = f"mean {preprocess.mean} and std {preprocess.std} need 3 channels each, or 1 for grey"
    elif not np.isfinite([preprocess.mean, preprocess.std]).all() or min(preprocess.std) <= 0:
        problem = f"mean {preprocess.mean} and std {preprocess.std} must be finite, and std above 0"
    elif preprocess.interpolation not in _FILTERS:
        problem = f"no interpolation named '{preprocess.interpolation}' (known: {', '.join(_FILTERS)})"
    if problem:
        raise DataError(f"unusable preprocessing: {problem}", hint="correct load.preprocess in the recipe")


def pixels(image: Image.Image, preprocess: Preprocess, name: str = "image") -> PixelArray:
    """Resize and crop.

    Args:
        image: Decoded RGB image.
        preprocess: Sizes and filter.
        name: Name for messages.

    Returns:
        (crop, crop, C) uint8; C is the length of the mean: 3, RGB, or 1, grey by ITU-R 601 luma.

    Raises:
        DataError: The image is smaller than the crop.
    """
    if len(preprocess.mean) == 1:
        image = image.convert("L")
    side = preprocess.crop
    width, height = image.size
    if preprocess.resize is not None and min(width, height) != preprocess.resize:
        short, long = min(width, height), max(width, height)
        other = int(preprocess.resize * long / short)
        width, height = (preprocess.resize, other) if width <= height else (other, preprocess.resize)
        _check_enlarged(name, image.size, width * height)
        image = image.resize((width, height), _FILTERS[preprocess.interpolation])
    if min(width, height) < side:
        raise DataError(
            f"{name} is {width} x {height}, smaller than the crop of {side} pixels",
            hint=f"set resize to {side} or more in load.preprocess, so that images are enlarged",
        )
    if (width, height) != (side, side):
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image).reshape(side, side, len(preprocess.mean))


def _check_enlarged(name: str, size: tuple[int, int], resized: int) -> None:
    """Refuse an image so narrow that its resize, of which a crop alone is used, would fill the memory."""
    if resized > max(_MOST_PIXELS, size[0] * size[1]):
        raise DataError(
            f"{name} is {size[0]} x {size[1]}: resized, it has {resized:,} pixels, over {_MOST_PIXELS:,}",
            hint="its sides are too unequal for this resize: remove the image, or cut it",
        )


def normalize(images: PixelArray, preprocess: Preprocess) -> FloatArray:
    """Turn pixels into network inputs.

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


def apply(image: Image.Image, preprocess: Preprocess, name: str = "image") -> FloatArray:
    """Turn one decoded RGB image into one network input.

    Args:
        image: Decoded RGB image.
        preprocess: Sizes, filter, mean and std.
        name: Name for messages.

    Returns:
        (C, crop, crop) float32.

    Raises:
        DataError: The image is smaller than the crop.
    """
    result: FloatArray = normalize(pixels(image, preprocess, name)[None], preprocess)[0]
    return result
