"""Decode image files to 8-bit RGB by `targets.runner.imaging`, which also runs on devices."""

from __future__ import annotations

import logging
import warnings

from PIL import Image

from edgeship.targets.runner import imaging
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.text import printable

SUFFIXES = imaging.SUFFIXES

logging.getLogger("PIL").addHandler(logging.NullHandler())  # Pillow's complaints are raised, not printed
warnings.simplefilter("error", Image.DecompressionBombWarning)  # `decode` raises it as an error


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an image file to upright RGB, see `imaging.decode`.

    Args:
        data: Content of the file.
        name: Name for messages.

    Raises:
        DataError: The file is empty, corrupt, truncated, not an image, or needs over 400 MB when decoded.
    """
    try:
        image: Image.Image = imaging.decode(data)
    except imaging.DecodeError as error:
        raise DataError(
            f"{name} {printable(str(error), 200)}",
            hint="replace or remove the file, or leave it out with --skip-unreadable",
        ) from error
    return image
