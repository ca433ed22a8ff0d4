"""Images of a pruning pass: batches to fit, and held-out images for validation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.tensors import Size, as_size
from edgeship.toolkit.models.resnet import ResNet, strided
from edgeship.toolkit.prune import width_search
from edgeship.toolkit.prune.reconstruction import POSITIONS

BATCH = 32  # images of a batch before mirroring
HELD_OUT = 0.08  # ratio of images held out of every refit, for validation


class Batches(Sequence[Tensor]):
    """Batches of a tensor of images, with mirrored copies appended if `mirror`; lazy views."""

    def __init__(self, images: Tensor, size: int, mirror: bool) -> None:
        self.images = images
        self._parts, self._mirror = torch.split(images, size), mirror

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        part = self._parts[index]
        return torch.cat([part, part.flip(3)]) if self._mirror else part


@dataclass(frozen=True, slots=True)
class Images:
    """Batches to fit, and held-out images with the dense network's logits.

    Attributes:
        fit: Batches (N, C, H, W).
        check: Held-out images (N, C, H, W).
        reference: The dense network's logits of the held-out images (N, classes).
        size: Height and width of an image in pixels.
        warnings: Warnings for the user.
    """

    fit: Batches
    check: Tensor
    reference: FloatArray
    size: Size
    warnings: tuple[str, ...]


def split(dense: ResNet, images: Iterable[FloatArray], *, mirror: bool) -> Images:
    """Split images into batches of a common size, mirrored if `mirror`; the last images are held out.

    Raises:
        DataError: There are fewer than 2 images, or a pixel is NaN or infinite.
    """
    batches = list(images)
    count = sum(len(batch) for batch in batches)
    if count < 2:
        raise DataError(
            f"prune: {count} images; at least 2 are expected", hint="give at least a few hundred images"
        )
    all_images = torch.from_numpy(np.concatenate(batches).astype(np.float32, copy=False))
    del batches
    if not bool(torch.isfinite(all_images).all()):
        raise DataError("prune: an image holds NaN or infinite pixels", hint="check the preprocessing")
    held_out = max(1, min(int(count * HELD_OUT), 256))
    check, rest = all_images[count - held_out :], all_images[: count - held_out]
    size = max(1, min(BATCH, len(rest) // 10))
    area = as_size(*all_images.shape[2:])
    warnings = _warn_few_rows(dense, len(rest) * (2 if mirror else 1), area)
    return Images(Batches(rest, size, mirror), check, logits(dense, check), area, warnings)


@torch.no_grad()
def logits(model: ResNet, images: Tensor) -> FloatArray:
    """Return the logits (N, classes) of images (N, C, H, W)."""
    result: FloatArray = torch.cat([model(batch) for batch in torch.split(images, BATCH)]).numpy()
    return result


def _warn_few_rows(dense: ResNet, images: int, size: Size) -> tuple[str, ...]:
    """Return a warning if a convolution has more columns to fit than sampled rows."""
    areas = width_search.block_sides(dense.architecture, size)
    required: dict[str, int] = {}
    for name, stage, block, module in dense.blocks():
        area = strided(areas[stage, block], dense.architecture.stride(stage, block))
        rows = min(math.prod(area), POSITIONS)
        conv = module.conv(2)  # the 3x3 convolution that reads an inner group
        columns = conv.in_channels * conv.kernel_size[0] ** 2
        if rows * images < columns:
            required[name] = math.ceil(columns / rows)
    if not required:
        return ()
    sufficient = max(required.values())
    return (
        f"{images} images (with mirrored copies) give fewer rows than columns in {', '.join(required)}: "
        f"the ridge keeps their weights near the old ones; {sufficient} would do",
    )
