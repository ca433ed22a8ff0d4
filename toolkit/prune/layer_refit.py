"""One convolution to be refitted: what it sees, what it should give, and the equations in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from edgeship.toolkit.prune.importances import Reader
from edgeship.toolkit.prune.least_squares import Refit, as_columns, choose_ridge, refit, store
from edgeship.toolkit.prune.second_moments import Moments, Sites, patches

HELD_OUT = 5  # every fifth batch checks instead of fitting
MIN_GAIN = 1e-4  # a BatchNorm gain below it passes nothing on
RELU_ROUNDS = 1  # how often targets below zero are set free


@dataclass(frozen=True, slots=True)
class Affine:
    """What follows a convolution: z = gain * (y - mean) + shift."""

    gain: Tensor
    mean: Tensor
    shift: Tensor

    @classmethod
    def of(cls, bn: nn.BatchNorm2d | None, outputs: int) -> Affine:
        """Of a BatchNorm; the identity where there is none."""
        if bn is None:
            return cls(torch.ones(outputs), torch.zeros(outputs), torch.zeros(outputs))
        mean, var = cast("Tensor", bn.running_mean), cast("Tensor", bn.running_var)
        return cls(bn.weight.detach() / torch.sqrt(var + bn.eps), mean.clone(), bn.bias.detach().clone())

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (n, outputs) of the convolution -> what comes after."""
        return self.gain * (rows - self.mean) + self.shift

    def undo(self, rows: Tensor) -> Tensor:
        """What the convolution must give; a channel without gain needs only its mean."""
        dead = self.gain.abs() < MIN_GAIN
        gain = torch.where(dead, torch.ones_like(self.gain), self.gain)
        return torch.where(dead, self.mean, (rows - self.shift) / gain + self.mean)

    def take(self, kept: Tensor) -> Affine:
        """Of the kept outputs."""
        return Affine(self.gain[kept], self.mean[kept], self.shift[kept])


def split_moments(rows: Iterable[Tensor], targets: Iterable[Tensor]) -> tuple[Moments, Moments]:
    """Moments of the batches to fit and of those held out; twice the same if there is only one batch.

    Args:
        rows: For each batch (n, columns).
        targets: For each batch (n, outputs).
    """
    fit: Moments | None = None
    for number, (x, t) in enumerate(zip(rows, targets, strict=True)):
        if fit is None:
            fit, check = (Moments(x.mean(0), t.mean(0)) for _ in range(2))
        (check if number % HELD_OUT == 1 else fit).update(x, t)
    assert fit is not None
    fit.flush()
    check.flush()
    return (fit, check) if check.rows else (fit, fit)


@dataclass(slots=True)
class Site:
    """A convolution of the student, and what it should give at the sampled positions.

    Attributes:
        conv: The convolution.
        bn: The BatchNorm after it that can hold an intercept; None after a pre-activation unit.
        affine: The teacher's BatchNorm after it.
        wanted: For each batch, what should come after BatchNorm and shortcut (rows, outputs).
        added: For each batch, what the student's shortcut adds; empty where nothing does.
        places: For each batch, the sampled positions.
        relu: Whether a ReLU comes next: where both networks are below zero, nothing is wanted.
    """

    conv: nn.Conv2d
    bn: nn.BatchNorm2d | None
    affine: Affine
    wanted: list[Tensor]
    places: list[Sites]
    relu: bool
    added: list[Tensor] = field(default_factory=list)

    def moments(self, inputs: Iterable[Tensor]) -> tuple[Moments, Moments]:
        """Moments of the rows to fit and of those held out."""
        places = zip(inputs, self.places, strict=True)
        rows = (patches(u, self.conv, place) for u, place in places)
        return split_moments(rows, (self.affine.undo(self._rest(n)) for n in range(len(self.wanted))))

    def reader(self, moments: tuple[Moments, Moments]) -> Reader:
        """The convolution as a reader of all channels that it sees now."""
        system = (moments[0] + moments[1]).system(intercept=self.bn is not None)
        taps = self.conv.kernel_size[0] ** 2
        return Reader(system, as_columns(self.conv), self._gain, taps)

    def solve(self, inputs: Iterable[Tensor], fit: Moments, check: Moments) -> float:
        """Refit and store; returns the held-out error.

        Args:
            inputs: What the convolution sees now.
            fit: Moments of the rows to fit; used up.
            check: Moments of those held out.
        """
        prior, intercept = as_columns(self.conv), self.bn is not None
        ridge, error = choose_ridge(fit, check, prior, self._gain, intercept=intercept)
        fit += check
        factors: dict[float, Tensor] = {}
        found = refit(fit.system(intercept=intercept), prior, self._gain, ridge, error, factors)
        for _ in range(RELU_ROUNDS if self.relu else 0):
            fit = self._freed(inputs, fit.without_targets(), found)
            found = refit(fit.system(intercept=intercept), prior, self._gain, ridge, error, factors)
        store(self.conv, self.bn, found, self.affine.mean)
        return error

    def _freed(self, inputs: Iterable[Tensor], moments: Moments, found: Refit) -> Moments:
        """Targets set free where the ReLU hides them.

        Where teacher and student are both below zero, the target becomes what the student gives.

        Source:
            Zhang et al. 2015, arXiv:1505.06798, sec. 3.2: the nonlinear response, by alternation.
        """
        weight, intercept = found.weight.float(), found.intercept.float()
        for number, (u, places) in enumerate(zip(inputs, self.places, strict=True)):
            x = patches(u, self.conv, places)
            rest, wanted = self._rest(number), self.wanted[number]
            given = x @ weight + intercept
            hidden = (wanted < 0) & (self.affine(given) + (wanted - rest) < 0)
            moments.add_targets(x, torch.where(hidden, given, self.affine.undo(rest)))
        return moments

    def _rest(self, number: int) -> Tensor:
        """What is wanted of convolution and BatchNorm alone."""
        return self.wanted[number] - self.added[number] if self.added else self.wanted[number]

    @property
    def _gain(self) -> Tensor:
        return self.affine.gain.abs().double()
