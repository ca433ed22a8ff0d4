"""Decode image files to 8-bit RGB."""

from __future__ import annotations

import io
import logging
import struct
import warnings
from functools import cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.text import printable

SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# Pillow formats of files with these suffixes. Other formats stay disabled: EPS, for one, runs programs from
# the file in an interpreter.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # EXIF tag
_MOST_BYTES = 400_000_000  # of a decoded image, copies included: 100 megapixels of a JPEG, else 50

logging.getLogger("PIL").addHandler(logging.NullHandler())  # Pillow's complaints are raised, not printed
warnings.simplefilter("error", Image.DecompressionBombWarning)  # `decode` raises it as an error


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an image file to upright RGB.

    The format follows from the content, not the suffix. Grey is repeated over the channels, palettes are
    looked up, alpha is dropped without blending (as in training pipelines), CMYK is converted, 16-bit samples
    are reduced to their high byte, EXIF orientation is applied, and an animation's first frame is used.

    Args:
        data: Content of the file.
        name: Name for messages.

    Raises:
        DataError: The file is empty, corrupt, truncated, not an image, or needs over 400 MB when decoded.
    """
    if not data:
        raise _unusable(f"{name} is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_size(image)
            image.load()
            return _rgb(ImageOps.exif_transpose(image) if _is_rotated(image) else image)
    except UnidentifiedImageError as error:
        raise _unusable(f"{name} is not an image") from error
    except Exception as error:  # broken files make Pillow's plug-ins raise many types
        raise _unusable(f"{name} cannot be decoded: {printable(str(error), 200)}") from error


def _unusable(message: str) -> DataError:
    return DataError(message, hint="replace or remove the file, or leave it out with --skip-unreadable")


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image) -> None:
    """Raise if the size in the header needs too much memory, before memory is allocated."""
    each = 16 if image.mode.startswith("I") else 8  # bytes per pixel with a copy; 16 bits go through int64
    if image.format == "JPEG" and image.mode == "RGB" and not _is_rotated(image):
        each = 4
    if (needed := image.width * image.height * each) > _MOST_BYTES:
        raise ValueError(
            f"{image.width} x {image.height} pixels need {needed // 10**6} MB, "
            f"more than {_MOST_BYTES // 10**6}"
        )


def _is_rotated(image: Image.Image) -> bool:
    try:
        return bool(image.getexif().get(_ORIENTATION, 1) != 1)
    except (SyntaxError, ValueError, struct.error, OSError):
        return False  # an image with broken metadata can still be decoded


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise ValueError("32-bit samples have no agreed range")
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point samples have no agreed range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when it converts such a palette to RGB directly
    return image if image.mode == "RGB" else image.convert("RGB")
