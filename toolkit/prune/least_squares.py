"""Ridge regression of convolution weights to the dense outputs, with the old weights as prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeship.toolkit.prune.second_moments import Moments, System

RIDGES = (1e-3, 1e-2, 1e-1)  # in units of the mean diagonal of the Gram matrix
GROWTH = 1.5
TIGHTENINGS = 3


@dataclass(frozen=True, slots=True)
class Refit:
    """New weights of a convolution.

    Attributes:
        weight: (columns, outputs), float64.
        intercept: Mean residual of each output (outputs).
        ridge: Chosen ridge, in units of the mean diagonal.
        error: Mean squared error on the held-out rows, relative to the power of the outputs.
    """

    weight: Tensor
    intercept: Tensor
    ridge: float
    error: float


def solve(system: System, prior: Tensor, ridge: float, factors: dict[float, Tensor] | None = None) -> Tensor:
    """Minimize |x W - t|^2 + ridge * mean diagonal * |W - prior|^2 -> (columns, outputs).

    Args:
        system: Normal equations.
        prior: Old weights (columns, outputs).
        ridge: In units of the mean diagonal.
        factors: Cache: ridge -> Cholesky factor of this Gram matrix.
    """
    amount = ridge * system.gram.diagonal().mean().clamp_min(1e-12)
    factors = {} if factors is None else factors
    if ridge not in factors:
        factors[ridge] = factor(system.gram, amount)
    solution: Tensor = torch.cholesky_solve(system.cross + amount * prior, factors[ridge])
    return solution


def factor(gram: Tensor, ridge: Tensor) -> Tensor:
    """Return the Cholesky factor of gram + ridge; the ridge grows tenfold until that is positive definite."""
    while True:
        regular = gram.clone()
        regular.diagonal().add_(ridge)
        lower, failed = torch.linalg.cholesky_ex(regular)
        if not bool(failed):
            result: Tensor = lower
            return result
        ridge = ridge * 10


def choose_ridge(
    fit: Moments, check: Moments, prior: Tensor, gain: Tensor, *, intercept: bool
) -> tuple[float, float]:
    """Choose the ridge with the least error on held-out rows; return it and its error relative to the power.

    The ridges are tried in ascending order until the error stops falling.

    Args:
        fit: Moments of the fitted rows.
        check: Moments of the held-out rows.
        prior: Old weights (columns, outputs).
        gain: Weight of each output in the error (outputs).
        intercept: Whether the BatchNorm after the layer can hold an intercept.
    """
    training, validation = (m.system(intercept=intercept) for m in (fit, check))
    squared = gain.square()
    best, least = RIDGES[0], float("inf")
    for ridge in RIDGES:
        error = float(validation.error(solve(training, prior, ridge)) @ squared)
        if error >= least:
            break
        best, least = ridge, error
    power = float(validation.power @ squared)
    return best, least / power if power > 0 else 0.0


def refit(
    system: System,
    prior: Tensor,
    gain: Tensor,
    ridge: float,
    error: float,
    factors: dict[float, Tensor] | None = None,
) -> Refit:
    """Solve for new weights; the ridge of an output rises tenfold while its weights grow too much.

    The largest folded weight of an output may grow to `GROWTH` times its old value or the layer's median,
    whichever is more: larger weights would coarsen the INT8 scale.

    Args:
        system: Normal equations.
        prior: Old weights (columns, outputs).
        gain: Weight of each output in the error (outputs).
        ridge: In units of the mean diagonal.
        error: Held-out error from `choose_ridge`.
        factors: As in `solve`.
    """
    factors = {} if factors is None else factors
    folded = prior.abs().amax(0) * gain
    limit = GROWTH * torch.maximum(folded, folded.median())
    weight, strength = solve(system, prior, ridge, factors), ridge
    for _ in range(TIGHTENINGS):
        grown = weight.abs().amax(0) * gain > limit
        if not bool(grown.any()):
            break
        strength *= 10
        weight[:, grown] = solve(system.of(grown), prior[:, grown], strength, factors)
    return Refit(weight, system.mean_t - system.mean_x @ weight, ridge, error)


def store(conv: nn.Conv2d, bn: nn.BatchNorm2d | None, result: Refit, mean: Tensor) -> None:
    """Write a refit into a convolution, and its intercept into the running mean of the BatchNorm after it.

    Args:
        conv: The convolution.
        bn: The BatchNorm after it, if it can hold the intercept.
        result: The refit.
        mean: The running mean used for the targets.
    """
    shape = (conv.out_channels, -1, *conv.kernel_size)
    conv.weight.data = result.weight.T.reshape(shape).to(torch.float32).contiguous()
    if bn is not None:
        bn.running_mean = mean - result.intercept.to(torch.float32)


def as_columns(conv: nn.Conv2d) -> Tensor:
    """Return the weights of a convolution as (columns, outputs), float64."""
    return conv.weight.detach().flatten(1).T.double()


def columns_of(channels: Tensor, taps: int) -> Tensor:
    """Return the columns of some input channels, `taps` each."""
    return (channels[:, None] * taps + torch.arange(taps)).flatten()
