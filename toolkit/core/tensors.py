"""Shapes of what flows through a graph, and how an image becomes its input."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ShapeProfile:
    """The shapes a dynamic input may take: smallest, most frequent, largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]
# Origin of mean and std: the user, a checkpoint's or graph's metadata, nodes of the graph, published weights,
# or nothing at all.
PreprocessSource = Literal["stated", "file", "graph", "published", "assumed"]
InputType = Literal["float32", "uint8"]  # ready images (N, C, H, W), or decoded pixels (N, H, W, C)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a decoded image becomes a network input; stored with the checkpoint.

    Attributes:
        resize: Length of the shorter side after resizing, in pixels; None keeps the image's size.
        crop: Side of the centre crop, in pixels: the network's input height and width.
        mean: Per-channel mean of pixels in [0, 1], RGB.
        std: Per-channel standard deviation of pixels in [0, 1], RGB.
        interpolation: Resampling filter of the resize.
    """

    resize: int | None = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"


def preprocess_metadata(preprocess: Preprocess, source: PreprocessSource) -> dict[str, str]:
    """Return the ONNX metadata_props that state a preprocessing and the origin of its mean and std."""
    return {"preprocess": json.dumps(asdict(preprocess)), "preprocess_source": source}
