"""Find near-duplicate images: a perceptual hash proposes pairs, a grey thumbnail confirms them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeship.toolkit.core.quant import FloatArray

_SIDE = 8  # the hash has _SIDE x _SIDE bits
_THUMBNAIL_SIDE = 16
_DISTANCE = 8  # bits of the hash that may differ after recompressing or resizing
_CORRELATION = 0.985  # of the thumbnails; different photographs of one object stay below
_SMALL = 16  # pixels of the shorter side; smaller images of different objects correlate
_FLAT = 2.0  # grey levels; a thumbnail with a smaller standard deviation is not compared
_BLOCK = 1 << 22  # products in memory at once: 16 MiB
_PAIRS = 1 << 14  # pairs confirmed at once


@dataclass(frozen=True, slots=True)
class ImageHash:
    """Hash and thumbnail of an image.

    Attributes:
        bits: (64,) int8 of +1 or -1: +1 where a pixel is darker than its right neighbour (dHash).
        thumbnail: (256,) grey values of the 16 x 16 thumbnail, with mean 0 and L2 norm 1; all 0 for an image
            too flat or too small to compare.
    """

    bits: npt.NDArray[np.int8]
    thumbnail: FloatArray


def hash_image(image: Image.Image) -> ImageHash:
    """Compute hash and thumbnail of an image.

    Source:
        The difference hash: N. Krawetz 2013, "Kind of Like That", hackerfactor.com.
    """
    grey = image.convert("L")
    steps = np.asarray(grey.resize((_SIDE + 1, _SIDE), Image.Resampling.BILINEAR)).astype(np.int16)
    bits = np.where(steps[:, 1:] > steps[:, :-1], 1, -1).astype(np.int8).ravel()
    small = np.asarray(grey.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BILINEAR))
    thumbnail = small.astype(np.float32).ravel() - np.float32(small.mean())
    norm = float(np.linalg.norm(thumbnail))
    unusable = norm < _FLAT * _THUMBNAIL_SIDE or min(image.size) < _SMALL
    return ImageHash(bits, thumbnail * np.float32(0 if unusable else 1 / norm))


def similar_pairs(
    hashes: Sequence[ImageHash], others: Sequence[ImageHash] | None = None
) -> list[tuple[int, int]]:
    """Find pairs of near-duplicate images.

    Args:
        hashes: Hashes of N images.
        others: Hashes of M images to compare with; None compares the N images with each other.

    Returns:
        Positions (i, j), sorted; without `others` each pair once, i < j.
    """
    if not hashes or (others is not None and not others):
        return []
    left = np.stack([each.bits for each in hashes]).astype(np.float32)
    right = left if others is None else np.stack([each.bits for each in others]).astype(np.float32)
    thumbnails = np.stack([each.thumbnail for each in hashes])
    other_thumbnails = thumbnails if others is None else np.stack([each.thumbnail for each in others])
    rows = max(1, _BLOCK // len(right))
    least = _SIDE * _SIDE - 2 * _DISTANCE  # equal minus different bits
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(left), rows):
        i, j = np.nonzero(left[start : start + rows] @ right.T >= least)
        i += start
        if others is None:
            i, j = i[i < j], j[i < j]
        for part in range(0, len(i), _PAIRS):  # drawings with large flat areas propose many pairs
            a, b = i[part : part + _PAIRS], j[part : part + _PAIRS]
            alike = np.einsum("ij,ij->i", thumbnails[a], other_thumbnails[b]) >= _CORRELATION
            pairs += zip(a[alike].tolist(), b[alike].tolist(), strict=True)
    return pairs
