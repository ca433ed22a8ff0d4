"""Define image sizes, input shapes and preprocessing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Size = int | tuple[int, int]  # of an image in pixels: the side of a square, or (height, width)


@dataclass(frozen=True, slots=True)
class ShapeProfile:
    """Shapes of a dynamic input: smallest, most frequent, largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]
# Origin of mean and std: the user, a checkpoint's or graph's metadata, nodes of the graph, published weights,
# or nothing at all.
PreprocessSource = Literal["stated", "file", "graph", "published", "assumed"]
InputType = Literal["float32", "uint8"]  # ready images (N, C, H, W), or decoded pixels (N, H, W, C)


def sides(size: Size) -> tuple[int, int]:
    """Return height and width of a size in pixels."""
    return (size, size) if isinstance(size, int) else size


def as_size(height: int, width: int) -> Size:
    """Return the size of a height and a width in pixels: an int if they are equal."""
    return height if height == width else (height, width)


def size_text(size: Size) -> str:
    """Return a size as it is written: "224", or "96x128" (height x width)."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def read_size(value: object, *, exact: bool = False) -> Size:
    """Read a size: 224, "224", "96x128" or [96, 128], height first.

    Args:
        value: From JSON, TOML or a command line.
        exact: Keep an equal pair as a pair: "64x64" of a resize fixes both sides.

    Returns:
        An int for a square, unless `exact` and both sides are given; else (height, width).

    Raises:
        ValueError: The value is no size.
    """
    parts = re.split(r"[xX,]", value) if isinstance(value, str) else value
    if isinstance(parts, int) and not isinstance(parts, bool):
        return parts
    if not isinstance(parts, (list, tuple)) or not 1 <= len(parts) <= 2:
        raise ValueError(f"{value!r} is no size")
    numbers = [_whole(part) for part in parts]
    if len(numbers) == 1:
        return numbers[0]
    return (numbers[0], numbers[1]) if exact else as_size(numbers[0], numbers[1])


def _whole(part: object) -> int:
    if isinstance(part, int) and not isinstance(part, bool):
        return part
    if isinstance(part, str):
        return int(part)
    raise ValueError(f"{part!r} is no whole number")


def _numbers(values: object) -> tuple[float, ...]:
    """Return the numbers of a JSON list."""
    if not isinstance(values, (list, tuple)) or any(type(each) not in (int, float) for each in values):
        raise ValueError(f"{values!r} is no list of numbers")
    return tuple(values)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Preprocessing of a decoded image; stored with the checkpoint.

    Attributes:
        resize: Length of the shorter side after resizing, in pixels; (height, width) sets both sides
            and lets the aspect ratio change; None keeps the image's size.
        crop: Side of the centre crop, or its (height, width), in pixels: the network's input.
        mean: Per-channel mean of pixels in [0, 1], RGB.
        std: Per-channel standard deviation of pixels in [0, 1], RGB.
        interpolation: Resampling filter of the resize.
    """

    resize: Size | None = 256
    crop: Size = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"

    @property
    def sides(self) -> tuple[int, int]:
        """Return height and width of the network's input, in pixels."""
        return sides(self.crop)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Preprocess:
        """Read a preprocessing from JSON.

        Raises:
            KeyError, TypeError, ValueError: The JSON has another form.
        """
        values = dict(stored)
        values |= {key: _numbers(values[key]) for key in ("mean", "std")}
        if "crop" in values:
            values["crop"] = read_size(values["crop"])
            if min(sides(values["crop"])) < 1:
                raise ValueError(f"crop is {size_text(values['crop'])}")
        if values.get("resize") is not None:
            values["resize"] = read_size(values["resize"], exact=True)
        return cls(**values)


def preprocess_metadata(preprocess: Preprocess, source: PreprocessSource) -> dict[str, str]:
    """Return the ONNX metadata_props that state a preprocessing and the origin of its mean and std."""
    return {"preprocess": json.dumps(asdict(preprocess)), "preprocess_source": source}
