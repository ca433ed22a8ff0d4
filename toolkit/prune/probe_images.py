"""The images of a pass: batches to fit, and a few held out that judge."""

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
HELD_OUT = 0.08  # part of the images that no refit sees: they judge the result


class Batches(Sequence[Tensor]):
    """Batches of a tensor of images, each followed by its mirror image where asked; views until read."""

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
    """Batches to fit, and images held out with the dense network's logits for them.

    Attributes:
        fit: Batches (N, C, H, W).
        check: Images that no refit sees (N, C, H, W).
        reference: The dense network's logits for them (N, classes).
        size: Height and width of an image in pixels.
        warnings: What the user should know.
    """

    fit: Batches
    check: Tensor
    reference: FloatArray
    size: Size
    warnings: tuple[str, ...]


def split(dense: ResNet, images: Iterable[FloatArray], *, mirror: bool) -> Images:
    """Batches of a common size, mirrored where asked; the last images are held out.

    Raises:
        DataError: There are too few images, or one has pixels that are no numbers.
    """
    batches = list(images)
    count = sum(len(batch) for batch in batches)
    if count < 2:
        raise DataError(f"prune: {count} images", hint="give at least a few hundred unlabelled images")
    everything = torch.from_numpy(np.concatenate(batches).astype(np.float32, copy=False))
    del batches
    if not bool(torch.isfinite(everything).all()):
        raise DataError("prune: an image holds NaN or infinite pixels", hint="check the preprocessing")
    held = max(1, min(int(count * HELD_OUT), 256))
    check, rest = everything[count - held :], everything[: count - held]
    size = max(1, min(BATCH, len(rest) // 10))
    area = as_size(*everything.shape[2:])
    warnings = _too_few(dense, len(rest) * (2 if mirror else 1), area)
    return Images(Batches(rest, size, mirror), check, logits(dense, check), area, warnings)


@torch.no_grad()
def logits(model: ResNet, images: Tensor) -> FloatArray:
    """Logits (N, classes) of images (N, C, H, W), a batch at a time."""
    found: FloatArray = torch.cat([model(batch) for batch in torch.split(images, BATCH)]).numpy()
    return found


def _too_few(dense: ResNet, images: int, size: Size) -> tuple[str, ...]:
    """A warning where a convolution has more columns than rows to fit them on."""
    areas = width_search.block_sides(dense.architecture, size)
    short: dict[str, int] = {}
    for name, stage, block, module in dense.blocks():
        area = strided(areas[stage, block], dense.architecture.stride(stage, block))
        rows = min(math.prod(area), POSITIONS)
        conv = module.conv(2)  # the 3x3 convolution that reads an inner group
        columns = conv.in_channels * conv.kernel_size[0] ** 2
        if rows * images < columns:
            short[name] = math.ceil(columns / rows)
    if not short:
        return ()
    need = max(short.values())
    return (
        f"{images} images (mirrored ones counted) give fewer rows than columns in {', '.join(short)}: "
        f"the ridge holds their weights; {need} would do",
    )
