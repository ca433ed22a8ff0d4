"""Refit of one convolution to its targets: sampled inputs, targets and normal equations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from edgeship.toolkit.prune.importances import Reader
from edgeship.toolkit.prune.least_squares import Refit, as_columns, choose_ridge, refit, store
from edgeship.toolkit.prune.second_moments import Moments, Positions, patches

HELD_OUT = 5  # every fifth batch is held out
MIN_GAIN = 1e-4  # a BatchNorm channel with less gain is dead
RELU_ROUNDS = 1  # rounds of masking targets below zero


@dataclass(frozen=True, slots=True)
class Affine:
    """Per-channel affine map after a convolution: z = gain * (y - mean) + shift."""

    gain: Tensor
    mean: Tensor
    shift: Tensor

    @classmethod
    def of(cls, bn: nn.BatchNorm2d | None, outputs: int) -> Affine:
        """Return the map of a BatchNorm; the identity for None."""
        if bn is None:
            return cls(torch.ones(outputs), torch.zeros(outputs), torch.zeros(outputs))
        mean, var = cast("Tensor", bn.running_mean), cast("Tensor", bn.running_var)
        return cls(bn.weight.detach() / torch.sqrt(var + bn.eps), mean.clone(), bn.bias.detach().clone())

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply the map to rows (n, outputs) of the convolution."""
        return self.gain * (rows - self.mean) + self.shift

    def undo(self, rows: Tensor) -> Tensor:
        """Apply the inverse map; a channel without gain gets its mean."""
        dead = self.gain.abs() < MIN_GAIN
        gain = torch.where(dead, torch.ones_like(self.gain), self.gain)
        return torch.where(dead, self.mean, (rows - self.shift) / gain + self.mean)

    def take(self, indices: Tensor) -> Affine:
        """Return the map of the kept outputs."""
        return Affine(self.gain[indices], self.mean[indices], self.shift[indices])


def split_moments(rows: Iterable[Tensor], targets: Iterable[Tensor]) -> tuple[Moments, Moments]:
    """Return the moments of the fitted and of the held-out batches; the same twice for a single batch.

    Args:
        rows: Per batch (n, columns).
        targets: Per batch (n, outputs).
    """
    fit: Moments | None = None
    for number, (x, t) in enumerate(zip(rows, targets, strict=True)):
        if fit is None:
            fit, held_out = (Moments(x.mean(0), t.mean(0)) for _ in range(2))
        (held_out if number % HELD_OUT == 1 else fit).update(x, t)
    assert fit is not None
    fit.flush()
    held_out.flush()
    return (fit, held_out) if held_out.rows else (fit, fit)


@dataclass(slots=True)
class LayerRefit:
    """A convolution of the student and its targets at the sampled positions.

    Attributes:
        conv: The convolution.
        bn: The BatchNorm after it, which can hold an intercept; None after a pre-activation unit.
        affine: The dense network's BatchNorm after it.
        targets: Per batch, the target after BatchNorm and shortcut (rows, outputs).
        positions: Per batch, the sampled positions.
        relu: Whether a ReLU follows: targets are masked where both networks are below zero.
        shortcut: Per batch, the student's shortcut output (rows, outputs); empty without a shortcut.
    """

    conv: nn.Conv2d
    bn: nn.BatchNorm2d | None
    affine: Affine
    targets: list[Tensor]
    positions: list[Positions]
    relu: bool
    shortcut: list[Tensor] = field(default_factory=list)

    def moments(self, inputs: Iterable[Tensor]) -> tuple[Moments, Moments]:
        """Return the moments of the fitted and of the held-out rows."""
        positions = zip(inputs, self.positions, strict=True)
        rows = (patches(u, self.conv, sites) for u, sites in positions)
        return split_moments(
            rows, (self.affine.undo(self._conv_target(batch)) for batch in range(len(self.targets)))
        )

    def reader(self, moments: tuple[Moments, Moments]) -> Reader:
        """Return the convolution as a reader of all its current input channels."""
        system = (moments[0] + moments[1]).system(intercept=self.bn is not None)
        taps = self.conv.kernel_size[0] ** 2
        return Reader(system, as_columns(self.conv), self._gain, taps)

    def solve(self, inputs: Iterable[Tensor], fit: Moments, check: Moments) -> float:
        """Refit and store the weights; return the held-out error.

        Args:
            inputs: Current inputs of the convolution, per batch.
            fit: Moments of the fitted rows; changed.
            check: Moments of the held-out rows.
        """
        prior, intercept = as_columns(self.conv), self.bn is not None
        ridge, error = choose_ridge(fit, check, prior, self._gain, intercept=intercept)
        fit += check
        factors: dict[float, Tensor] = {}
        result = refit(fit.system(intercept=intercept), prior, self._gain, ridge, error, factors)
        for _ in range(RELU_ROUNDS if self.relu else 0):
            fit = self._mask_negative_targets(inputs, fit.without_targets(), result)
            result = refit(fit.system(intercept=intercept), prior, self._gain, ridge, error, factors)
        store(self.conv, self.bn, result, self.affine.mean)
        return error

    def _mask_negative_targets(self, inputs: Iterable[Tensor], moments: Moments, result: Refit) -> Moments:
        """Add targets to moments, masked where the ReLU output of both networks is zero.

        Where both are below zero, the target becomes the student's own output.

        Source:
            Zhang et al. 2015, arXiv:1505.06798, sec. 3.2: the nonlinear response, by alternation.
        """
        weight, intercept = result.weight.float(), result.intercept.float()
        for number, (u, positions) in enumerate(zip(inputs, self.positions, strict=True)):
            x = patches(u, self.conv, positions)
            conv_target, target = self._conv_target(number), self.targets[number]
            output = x @ weight + intercept
            hidden = (target < 0) & (self.affine(output) + (target - conv_target) < 0)
            moments.add_targets(x, torch.where(hidden, output, self.affine.undo(conv_target)))
        return moments

    def _conv_target(self, batch: int) -> Tensor:
        """Return the target of convolution and BatchNorm, without the shortcut."""
        return self.targets[batch] - self.shortcut[batch] if self.shortcut else self.targets[batch]

    @property
    def _gain(self) -> Tensor:
        return self.affine.gain.abs().double()
