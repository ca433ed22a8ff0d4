"""From the bytes of an image file to 8-bit RGB."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from toolkit.core.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
_ORIENTATION = 0x0112  # EXIF tag


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an image file to RGB as a person sees it.

    Grey is repeated over the channels, palettes are looked up, transparency is dropped (its colours
    stay, as training pipelines do it), CMYK is converted, 16-bit samples keep their high byte, EXIF
    orientation is applied, and of an animation the first frame counts.

    Args:
        data: Content of the file.
        name: Name for messages.

    Raises:
        DataError: The file is corrupt, truncated or no image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _rgb(_upright(image))
    except DataError:
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly anything for broken files
        unknown = isinstance(error, UnidentifiedImageError)
        raise DataError(
            f"{name} is not an image" if unknown else f"{name} cannot be decoded: {error}",
            hint="replace or remove the file, or go on without it by --skip-bad",
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except (SyntaxError, ValueError, struct.error, OSError):
        return image  # broken metadata does not make a broken picture
    return ImageOps.exif_transpose(image) if turned else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise ValueError("32-bit samples have no agreed range")
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point samples have no agreed range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about a transparency it then drops
    return image if image.mode == "RGB" else image.convert("RGB")
