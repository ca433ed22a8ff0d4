"""Images that look alike: a perceptual hash proposes pairs, a small grey picture confirms them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeship.toolkit.core.quant import FloatArray

_SIDE = 8  # the hash has _SIDE x _SIDE bits
_PICTURE_SIDE = 16
_DISTANCE = 8  # bits of the hash that a recompressed or resized copy may change
_CORRELATION = 0.985  # of the small pictures; different photographs of one thing stay below
_SMALL = 16  # pixels of the shorter side; below, different things look alike
_FLAT = 2.0  # grey levels of standard deviation below which a picture shows nothing to compare
_BLOCK = 1 << 22  # products held at once: 16 MiB
_PAIRS = 1 << 14  # pairs confirmed at once


@dataclass(frozen=True, slots=True)
class Look:
    """What an image looks like.

    Attributes:
        bits: 64 values of +1 or -1, int8: whether a place is darker than its right neighbour (dHash).
        picture: 256 grey values of the 16 x 16 picture, with mean 0 and length 1; all 0 for an image too flat
            or too small to be told from others.
    """

    bits: npt.NDArray[np.int8]
    picture: FloatArray


def look(image: Image.Image) -> Look:
    """Hash an image.

    Source:
        The difference hash: N. Krawetz 2013, "Kind of Like That", hackerfactor.com.
    """
    grey = image.convert("L")
    steps = np.asarray(grey.resize((_SIDE + 1, _SIDE), Image.Resampling.BILINEAR)).astype(np.int16)
    bits = np.where(steps[:, 1:] > steps[:, :-1], 1, -1).astype(np.int8).ravel()
    small = np.asarray(grey.resize((_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.BILINEAR))
    picture = small.astype(np.float32).ravel() - np.float32(small.mean())
    length = float(np.linalg.norm(picture))
    vague = length < _FLAT * _PICTURE_SIDE or min(image.size) < _SMALL
    return Look(bits, picture * np.float32(0 if vague else 1 / length))


def pairs(looks: Sequence[Look], others: Sequence[Look] | None = None) -> list[tuple[int, int]]:
    """Find images that look alike.

    Args:
        looks: N images.
        others: M images to compare with; None compares the N with each other.

    Returns:
        Positions (i, j), sorted; with `others` absent each pair once, i < j.
    """
    if not looks or (others is not None and not others):
        return []
    left = np.stack([each.bits for each in looks]).astype(np.float32)
    right = left if others is None else np.stack([each.bits for each in others]).astype(np.float32)
    pictures = np.stack([each.picture for each in looks])
    other_pictures = pictures if others is None else np.stack([each.picture for each in others])
    rows = max(1, _BLOCK // len(right))
    least = _SIDE * _SIDE - 2 * _DISTANCE  # equal minus different bits
    found: list[tuple[int, int]] = []
    for start in range(0, len(left), rows):
        i, j = np.nonzero(left[start : start + rows] @ right.T >= least)
        i += start
        if others is None:
            i, j = i[i < j], j[i < j]
        for part in range(0, len(i), _PAIRS):  # flat drawings propose very many
            a, b = i[part : part + _PAIRS], j[part : part + _PAIRS]
            alike = np.einsum("ij,ij->i", pictures[a], other_pictures[b]) >= _CORRELATION
            found += zip(a[alike].tolist(), b[alike].tolist(), strict=True)
    return found
