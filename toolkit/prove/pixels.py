"""Decode, resize and convert images as other libraries and faulty applications do."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, JpegImagePlugin

from edgeship.targets.runner import imaging
from edgeship.toolkit.core.quant import PixelArray
from edgeship.toolkit.core.tensors import Preprocess, Size, sides

_ORIENTATION = 0x0112  # EXIF tag
GREY = 114  # padding of letterboxes in detection networks
_HALVED = 2  # Pillow's code of 4:2:0, chroma halved on both axes
_BT601, _BT709 = (0.299, 0.114), (0.2126, 0.0722)  # luma weights of red and blue


def decoded(data: bytes) -> Image.Image:
    """Decode a file as the calibration does."""
    image: Image.Image = imaging.decode(data)
    return image


def unrotated(data: bytes) -> Image.Image:
    """Decode a file without its EXIF orientation."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB") if image.getexif().get(_ORIENTATION, 1) != 1 else decoded(data)


def repeated_chroma(data: bytes) -> Image.Image:
    """Decode a JPEG of 4:2:0 with its chroma samples repeated, as decoders without "fancy" upsampling do.

    At half the scale libjpeg returns the chroma planes as they are stored (jdmaster.c: chroma components are
    scaled by their IDCT where that replaces the upsampling).
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.format != "JPEG" or image.mode != "RGB" or JpegImagePlugin.get_sampling(image) != _HALVED:
            return decoded(data)
        width, height = image.size
        turn, planes = image.getexif().get(_ORIENTATION, 1), []
        for side in ((width, height), (max(width // 2, 1), max(height // 2, 1))):
            with Image.open(io.BytesIO(data)) as part:
                part.draft("YCbCr", side)
                planes.append(np.asarray(part.copy() if part.mode == "YCbCr" else part.convert("YCbCr")))
    luma, chroma = planes
    if chroma.shape[:2] != ((height + 1) // 2, (width + 1) // 2):
        return decoded(data)
    chroma = chroma.repeat(2, 0).repeat(2, 1)[:height, :width, 1:]
    merged = Image.fromarray(np.concatenate([luma[..., :1], chroma], 2), "YCbCr").convert("RGB")
    merged.getexif()[_ORIENTATION] = turn
    return ImageOps.exif_transpose(merged)


def reduced(data: bytes) -> Image.Image:
    """Decode a JPEG at half its size, as thumbnail modes of decoders do; small images stay."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format != "JPEG" or image.mode != "RGB" or min(image.size) < 2:
            return decoded(data)
        image.draft("RGB", (image.width // 2, image.height // 2))
        return ImageOps.exif_transpose(image)


def bgr(pixels: PixelArray) -> PixelArray:
    """Exchange red and blue."""
    return np.ascontiguousarray(pixels[..., ::-1])


def limited_as_full(pixels: PixelArray) -> PixelArray:
    """Return video of limited range (16..235, chroma 16..240) that is shown as full range."""
    y, chroma = _to_yuv(pixels, _BT601)
    return _to_rgb(16 + y * (219 / 255), chroma * (224 / 255), _BT601)


def full_as_limited(pixels: PixelArray) -> PixelArray:
    """Return video of full range that is expanded as if it were of limited range."""
    y, chroma = _to_yuv(pixels, _BT601)
    return _to_rgb((y - 16) * (255 / 219), chroma * (255 / 224), _BT601)


def bt709_for_bt601(pixels: PixelArray) -> PixelArray:
    """Return colours of BT.601 that are converted by the matrix of BT.709."""
    return _to_rgb(*_to_yuv(pixels, _BT601), _BT709)


def _to_yuv(pixels: PixelArray, weights: tuple[float, float]) -> tuple[Any, Any]:
    """Return luma (H, W) in 0..255 and the colour differences (H, W, 2) in -128..128."""
    red, blue = weights
    values = pixels.astype(np.float32)
    y = red * values[..., 0] + (1 - red - blue) * values[..., 1] + blue * values[..., 2]
    return y, np.stack([(values[..., 2] - y) / (2 - 2 * blue), (values[..., 0] - y) / (2 - 2 * red)], -1)


def _to_rgb(y: Any, chroma: Any, weights: tuple[float, float]) -> PixelArray:
    red, blue = weights
    b, r = y + chroma[..., 0] * (2 - 2 * blue), y + chroma[..., 1] * (2 - 2 * red)
    g = (y - red * r - blue * b) / (1 - red - blue)
    return _levels(np.stack([r, g, b], -1))


def resized(image: Image.Image, side: tuple[int, int], how: str) -> Image.Image:
    """Resize an image to (height, width).

    Args:
        image: RGB or grey.
        side: Height and width of the result.
        how: A filter of Pillow (antialiased when it shrinks); or `linear`, `linear-corners`, `cubic` (two or
            four taps at any scale; corner pixels aligned) or `floor` (nearest pixel by floor(x * scale)), as
            OpenCV's and PyTorch's resizes without antialias do.
    """
    if how in imaging.FILTERS:
        return image.resize(side[::-1], Image.Resampling[how.upper()])
    values = np.asarray(image).astype(np.float32)
    for axis in (0, 1):
        taps, weights = _taps(values.shape[axis], side[axis], how)
        moved = np.moveaxis(values, axis, 0)[taps]  # (new, taps, ...)
        values = np.moveaxis(np.einsum("nt...,nt->n...", moved, weights.astype(np.float32)), 0, axis)
    return Image.fromarray(_levels(values))


def _taps(old: int, new: int, how: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return source positions and weights (new, taps)."""
    places = np.arange(new)
    if how == "floor":
        return (places * old // new)[:, None], np.ones((new, 1))
    if how == "linear-corners":
        centre = places * ((old - 1) / max(new - 1, 1))
    else:
        centre = (places + 0.5) * (old / new) - 0.5
    first = np.floor(centre).astype(np.int64)
    part = centre - first
    if how == "cubic":
        a = -0.75  # of OpenCV and PyTorch; Pillow's is -0.5
        distance = np.abs(np.stack([part + 1, part, 1 - part, 2 - part], 1))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weights, offsets = np.where(distance <= 1, near, far), np.arange(-1, 3)
    else:
        weights, offsets = np.stack([1 - part, part], 1), np.arange(2)
    return (first[:, None] + offsets).clip(0, old - 1), weights


def prepared(
    image: Image.Image, how: Preprocess, *, filter_: str = "", resize: Size | None = 0,
    shift: tuple[int, int] = (0, 0),
) -> PixelArray:  # fmt: skip
    """Resize and crop as the calibration does, but for one thing.

    Args:
        image: RGB, or grey.
        how: The calibration's preprocessing.
        filter_: Another filter, see `resized`; empty: the calibration's.
        resize: Another resize; None: none; 0: the calibration's. Images below the crop are padded with black.
        shift: Rows and columns by which the crop is moved, as far as the image has them.

    Returns:
        (height, width, C) uint8.
    """
    height, width = how.sides
    side = imaging.resized_sides(image.height, image.width, how.resize if resize == 0 else resize)
    if side != (image.height, image.width):
        image = resized(image, side, filter_ or how.interpolation)
    return _cropped(image, (height, width), shift)


def squashed(image: Image.Image, how: Preprocess) -> PixelArray:
    """Resize both sides to the calibration's resize, whatever the aspect ratio, and crop."""
    resize = how.resize if how.resize is not None else how.crop
    return prepared(image, how, resize=sides(resize))


def letterboxed(image: Image.Image, how: Preprocess, fill: int = 0) -> PixelArray:
    """Resize so that the longer side fits the input, and pad the shorter one."""
    height, width = how.sides
    scale = min(height / image.height, width / image.width)
    side = (max(round(image.height * scale), 1), max(round(image.width * scale), 1))
    return _cropped(resized(image, side, how.interpolation), (height, width), (0, 0), fill)


def _cropped(image: Image.Image, side: tuple[int, int], shift: tuple[int, int], fill: int = 0) -> PixelArray:
    """Crop the centre, or pad what is smaller."""
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    pads = [(max(new - old, 0) // 2, max(new - old, 0) - max(new - old, 0) // 2)
            for old, new in zip(array.shape, side, strict=False)]  # fmt: skip
    array = np.pad(array, (*pads, (0, 0)), constant_values=fill)
    slices = []
    for old, new, moved in zip(array.shape, side, shift, strict=False):
        first = min(max(round((old - new) / 2) + moved, 0), old - new)
        slices.append(slice(first, first + new))
    return np.ascontiguousarray(array[tuple(slices)])


def _levels(values: Any) -> PixelArray:
    result: PixelArray = np.rint(values).clip(0, 255).astype(np.uint8)
    return result
