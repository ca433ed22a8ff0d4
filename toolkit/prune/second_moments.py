"""Second moments of a convolution's inputs and targets, and its normal equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRAM_ROWS = 2048  # rows multiplied at once
GRAM_COLUMNS = 768  # columns multiplied at once; only blocks on and above the diagonal


@dataclass(frozen=True, slots=True)
class Positions:
    """Sampled output positions of a convolution, the same for every image of a batch."""

    rows: Tensor
    columns: Tensor


def sample_positions(height: int, width: int, count: int, generator: torch.Generator) -> Positions:
    """Sample at most `count` distinct positions of a height x width map; all if it is smaller."""
    chosen = torch.randperm(height * width, generator=generator)[:count]
    return Positions(chosen // width, chosen % width)


def rows_at(values: Tensor, sites: Positions) -> Tensor:
    """Return values (N, C, H, W) at the sampled positions, as rows (N * positions, C)."""
    return values[:, :, sites.rows, sites.columns].transpose(1, 2).flatten(0, 1)


def patches(inputs: Tensor, conv: nn.Conv2d, sites: Positions) -> Tensor:
    """Return the im2col rows of `conv` at sampled sites (N * positions, C * kh * kw), channel by channel."""
    (kernel, _), (stride, _), pad = conv.kernel_size, conv.stride, conv.kernel_size[0] // 2
    unfolded = F.pad(inputs, (pad, pad, pad, pad)).unfold(2, kernel, stride).unfold(3, kernel, stride)
    return unfolded[:, :, sites.rows, sites.columns].permute(0, 2, 1, 3, 4).flatten(2).flatten(0, 1)


class Moments:
    """Sums over rows: n, sum x, sum t, x'x, x't, sum t^2; products in float32, sums in float64.

    An offset near the mean is subtracted from the rows: float32 products would lose the variance otherwise.
    """

    def __init__(self, x_offset: Tensor, t_offset: Tensor) -> None:
        """Create empty sums.

        Args:
            x_offset: Approximate mean of the rows (columns).
            t_offset: Approximate mean of the targets (outputs).
        """
        columns, outputs = len(x_offset), len(t_offset)
        self.x_offset, self.t_offset = x_offset, t_offset
        self.rows = 0
        self.x, self.xx = _zeros(columns), _zeros(columns, columns)
        self.t, self.xt, self.tt = _zeros(outputs), _zeros(columns, outputs), _zeros(outputs)
        self._pending: list[Tensor] = []

    def update(self, x: Tensor, t: Tensor) -> None:
        """Add rows (n, columns) and their targets (n, outputs)."""
        self.rows += len(x)
        shifted = x - self.x_offset
        self.x += shifted.sum(0, dtype=torch.float64)
        self._pending.append(shifted)
        if sum(len(rows) for rows in self._pending) >= GRAM_ROWS:
            self.flush()
        self._add(shifted, t)

    def flush(self) -> None:
        """Add the pending rows to x'x, many at once for fewer passes over its memory."""
        if self._pending:
            rows, self._pending = torch.cat(self._pending), []
            for start in range(0, len(self.x), GRAM_COLUMNS):  # x'x is symmetric
                block = slice(start, start + GRAM_COLUMNS)
                product = rows[:, block].T @ rows[:, start:]
                self.xx[block, start:] += product
                self.xx[start + GRAM_COLUMNS :, block] += product[:, GRAM_COLUMNS:].T

    def add_targets(self, x: Tensor, t: Tensor) -> None:
        """Add the targets of rows that are already included."""
        self._add(x - self.x_offset, t)

    def _add(self, x: Tensor, t: Tensor) -> None:
        shifted = t - self.t_offset
        self.t += shifted.sum(0, dtype=torch.float64)
        self.xt += x.T @ shifted
        self.tt += shifted.double().square().sum(0)

    def without_targets(self) -> Moments:
        """Return moments of the same rows without targets."""
        return self._with(
            rows=self.rows,
            x=self.x,
            xx=self.xx,
            **{name: torch.zeros_like(getattr(self, name)) for name in ("t", "xt", "tt")},
        )

    def keep(self, columns: Tensor) -> Moments:
        """Return the moments of some columns."""
        if len(columns) == len(self.x):
            return self
        return self._with(
            x_offset=self.x_offset[columns],
            rows=self.rows,
            x=self.x[columns],
            xx=self.xx[columns][:, columns],
            t=self.t,
            xt=self.xt[columns],
            tt=self.tt,
        )

    def __add__(self, other: Moments) -> Moments:
        return self._with(
            **{
                name: getattr(self, name) + getattr(other, name)
                for name in ("rows", "x", "t", "xx", "xt", "tt")
            }
        )

    def __iadd__(self, other: Moments) -> Moments:
        self.rows += other.rows
        for name in ("x", "t", "xx", "xt", "tt"):
            getattr(self, name).add_(getattr(other, name))
        return self

    def system(self, *, intercept: bool) -> System:
        """Return the normal equations per row; with an intercept, of centred rows and targets."""
        n = max(self.rows, 1)
        x, t = self.x / n, self.t / n
        gram, cross = (self.xx / n).addr_(x, x, alpha=-1), (self.xt / n).addr_(x, t, alpha=-1)
        power = (self.tt / n - t**2).clamp_min(0.0)
        x, t = x + self.x_offset, t + self.t_offset
        if intercept:
            return System(gram, cross, power, x, t)
        zeros = torch.zeros_like(x), torch.zeros_like(t)
        return System(gram.addr_(x, x), cross.addr_(x, t), power + t**2, *zeros)

    def _with(self, **sums: Any) -> Moments:
        new = Moments.__new__(Moments)
        vars(new).update({"x_offset": self.x_offset, "t_offset": self.t_offset, "_pending": []} | sums)
        return new


@dataclass(frozen=True, slots=True)
class System:
    """Normal equations of one convolution.

    Attributes:
        gram: x'x per row (columns, columns).
        cross: x't per row (columns, outputs).
        power: t^2 per row (outputs).
        mean_x: Mean subtracted from the columns; zeros without an intercept.
        mean_t: Mean subtracted from the outputs; zeros without an intercept.
    """

    gram: Tensor
    cross: Tensor
    power: Tensor
    mean_x: Tensor
    mean_t: Tensor

    def error(self, weight: Tensor) -> Tensor:
        """Return the mean squared error of each output for weights (columns, outputs)."""
        return self.power + ((self.gram @ weight - 2 * self.cross) * weight).sum(0)

    def of(self, outputs: Tensor) -> System:
        """Return the equations of some outputs."""
        return System(
            self.gram, self.cross[:, outputs], self.power[outputs], self.mean_x, self.mean_t[outputs]
        )

    def take(self, columns: Tensor) -> System:
        """Return the equations of some columns, in that order."""
        return System(
            self.gram[columns][:, columns], self.cross[columns], self.power, self.mean_x[columns], self.mean_t
        )


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)
