"""Make golden images: files on which every fault of the catalogue shows.

Photographs of one size and form leave most faults unseen: a square image is not squashed, an enlarged one
is not aliased. So evaluation images are written in four forms, in turns: as they are; landscape, as JPEG of
4:2:0; portrait, as JPEG with an EXIF orientation; and large, as PNG.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from edgeship.targets.runner import imaging
from edgeship.toolkit.core.errors import DataError, missing
from edgeship.toolkit.core.tensors import Preprocess, sides
from edgeship.toolkit.prove import pixels

COUNT = 100
EXAMPLE = "example.jsonl"
_ENLARGED = 2.5  # shorter side of small images after enlarging, in those of the resize
_QUALITY = 92
_ORIENTATION, _STORED_LEFT = 0x0112, 6  # EXIF: turn by 90 degrees clockwise to see it upright


def golden(files: Sequence[bytes], how: Preprocess) -> dict[str, bytes]:
    """Return name -> content of golden images.

    Args:
        files: Contents of evaluation images.
        how: The preprocessing of the calibration.

    Raises:
        DataError: An image cannot be decoded.
    """
    made: dict[str, bytes] = {}
    for index, data in enumerate(files):
        try:
            content, ending = (_unchanged, _landscape, _portrait, _large)[index % 4](data, how)
        except ValueError as error:
            raise DataError(
                f"golden image {index}: the evaluation image {error}",
                hint="`edgeship data check SOURCE` names the file",
            ) from error
        made[f"{index:04}{ending}"] = content
    return made


def write(images: dict[str, bytes], folder: Path, classes: int) -> None:
    """Write golden images and an example of the JSON lines that an application writes for them.

    Raises:
        DataError: The folder holds other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted({path.name for path in folder.iterdir()} - {*images, EXAMPLE})
    if others:
        raise DataError(f"{folder} holds other files: {others[0]}", hint="name a new folder")
    for name, content in images.items():
        (folder / name).write_bytes(content)
    first = next(iter(images))
    example = f'{{"image": "{first}", "logits": [{", ".join(["0.0"] * classes)}]}}\n'
    (folder / EXAMPLE).write_text(example, encoding="utf-8")


def read(folder: Path) -> dict[str, bytes]:
    """Read the image files of a folder, by name relative to it.

    Raises:
        DataError: There is none, or one cannot be read.
    """
    if not folder.is_dir():
        hint = "write one with `edgeship prove RUN --write-images`"
        raise missing(DataError(f"no folder of images at {folder}", hint=hint))
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in imaging.SUFFIXES and path.is_file()
    )
    if not paths:
        raise DataError(
            f"{folder} holds no images", hint=f"expected files ending in {', '.join(imaging.SUFFIXES)}"
        )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _unchanged(data: bytes, _how: Preprocess) -> tuple[bytes, str]:
    with Image.open(io.BytesIO(data)) as image:
        suffix = f".{(image.format or '').lower()}"
    return (
        (data, suffix)
        if suffix in imaging.SUFFIXES
        else (_encoded(pixels.decoded(data), format="PNG"), ".png")
    )


def _landscape(data: bytes, how: Preprocess) -> tuple[bytes, str]:
    return _jpeg(_enlarged(data, how, 4 / 3)), ".jpg"


def _portrait(data: bytes, how: Preprocess) -> tuple[bytes, str]:
    stored = _enlarged(data, how, 3 / 4).transpose(Image.Transpose.ROTATE_90)
    stored.getexif()[_ORIENTATION] = _STORED_LEFT
    return _jpeg(stored), ".jpg"


def _large(data: bytes, how: Preprocess) -> tuple[bytes, str]:
    return _encoded(_enlarged(data, how, 1.1), format="PNG"), ".png"


def _enlarged(data: bytes, how: Preprocess, aspect: float) -> Image.Image:
    """Return an image of an aspect ratio (width / height), cut from the centre, with sharp edges."""
    image = pixels.decoded(data)
    width, height = min(image.width, image.height * aspect), min(image.height, image.width / aspect)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    if how.resize is None:  # the size of the image decides the crop
        return image
    least = _ENLARGED * min(sides(how.resize))
    scale = max(1.0, least / min(width, height))
    side = (int(width * scale) | 1, int(height * scale) | 1)
    return image.resize(side, Image.Resampling.NEAREST, (left, top, left + width, top + height))


def _jpeg(image: Image.Image) -> bytes:
    return _encoded(image, format="JPEG", quality=_QUALITY, subsampling="4:2:0", exif=image.getexif())


def _encoded(image: Image.Image, **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **settings)  # type: ignore[arg-type]
    return stream.getvalue()
