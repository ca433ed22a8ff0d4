"""From the bytes of an image file to 8-bit RGB."""

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
# Pillow's names of what files with these suffixes hold, right or wrong; its other readers stay closed, as one
# of them (EPS) starts an interpreter of programs that a file brings.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # EXIF tag
_MOST_BYTES = 400_000_000  # of a decoded image, copies included: 100 megapixels of a JPEG, else 50

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it finds comes as an error, not on stderr
warnings.simplefilter("error", Image.DecompressionBombWarning)  # an error of `decode` instead


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an image file to RGB as a person sees it.

    The content decides, not the suffix. Grey is repeated over the channels, palettes are looked up,
    transparency is dropped (its colours stay, as training pipelines do it), CMYK is converted, 16-bit
    samples keep their high byte, EXIF orientation is applied, and of an animation the first frame counts.

    Args:
        data: Content of the file.
        name: Name for messages.

    Raises:
        DataError: The file is empty, corrupt, truncated, no image, or needs over 400 MB when decoded.
    """
    if not data:
        raise _unusable(f"{name} is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_size(image)
            image.load()
            return _rgb(ImageOps.exif_transpose(image) if _turned(image) else image)
    except UnidentifiedImageError as error:
        raise _unusable(f"{name} is not an image") from error
    except Exception as error:  # Pillow's plug-ins raise nearly anything for broken files
        raise _unusable(f"{name} cannot be decoded: {printable(str(error), 200)}") from error


def _unusable(message: str) -> DataError:
    return DataError(message, hint="replace or remove the file, or go on without it by --skip-unreadable")


@cache
def _formats() -> tuple[str, ...]:
    """The formats that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image) -> None:
    """Refuse sizes that the header states before memory is taken for them."""
    each = (
        16 if image.mode.startswith("I") else 8
    )  # a copy is converted or turned; 16 bits pass through int64
    if image.format == "JPEG" and image.mode == "RGB" and not _turned(image):
        each = 4
    if (needed := image.width * image.height * each) > _MOST_BYTES:
        raise ValueError(
            f"{image.width} x {image.height} pixels need {needed // 10**6} MB, "
            f"more than {_MOST_BYTES // 10**6}"
        )


def _turned(image: Image.Image) -> bool:
    try:
        return bool(image.getexif().get(_ORIENTATION, 1) != 1)
    except (SyntaxError, ValueError, struct.error, OSError):
        return False  # broken metadata does not make a broken picture


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
