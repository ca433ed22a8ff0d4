"""Features of the dense network at the positions of a network with a coarser resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """Positions of a coarser network's features in those of the dense one.

    Attributes:
        step: Distance of two positions in the dense network's features; the first is position 0 of both.
        sides: Number of rows and of columns.
    """

    step: float
    sides: tuple[int, ...]

    def strided(self, stride: int) -> Grid:
        """Return the grid of the outputs of a convolution; the dense network has the same one."""
        return Grid(self.step, tuple(-(-side // stride) for side in self.sides))


def resampled(x: Tensor, grid: Grid | None) -> Tensor:
    """Return features (N, C, H, W) at the positions of a grid, by linear interpolation; None: unchanged."""
    if grid is None:
        return x
    for axis, count in zip((2, 3), grid.sides, strict=True):
        last = x.shape[axis] - 1
        at = (torch.arange(count) * grid.step).clamp(max=last)
        low = at.long()
        part = (at - low).to(x.dtype).view(-1, 1) if axis == 2 else (at - low).to(x.dtype)
        below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=last))
        x = below + (above - below) * part
    return x
