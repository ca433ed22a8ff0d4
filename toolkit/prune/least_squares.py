"""Least squares towards the dense outputs, with a ridge to the weights that were."""

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
        intercept: What the outputs lack after it (outputs).
        ridge: That was chosen, in units of the mean diagonal.
        error: Mean squared error over the outputs, as part of their power, on the held-out rows.
    """

    weight: Tensor
    intercept: Tensor
    ridge: float
    error: float


def solve(system: System, prior: Tensor, ridge: float, factors: dict[float, Tensor] | None = None) -> Tensor:
    """Minimize |x W - t|^2 + ridge * mean diagonal * |W - prior|^2 -> (columns, outputs).

    Args:
        system: The equations.
        prior: Weights that were (columns, outputs).
        ridge: In units of the mean diagonal.
        factors: Ridge -> Cholesky factor of this Gram matrix, kept for the next outputs.
    """
    amount = ridge * system.gram.diagonal().mean().clamp_min(1e-12)
    factors = {} if factors is None else factors
    if ridge not in factors:
        factors[ridge] = factor(system.gram, amount)
    solution: Tensor = torch.cholesky_solve(system.cross + amount * prior, factors[ridge])
    return solution


def factor(gram: Tensor, ridge: Tensor) -> Tensor:
    """Cholesky factor of gram + ridge; a ridge too small for the rounding of the Gram matrix grows."""
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
    """The ridge whose weights err least on the rows held out, and that error as part of the power.

    The ridges are tried from the smallest on, until one does no better.

    Args:
        fit: Moments of the rows to fit.
        check: Moments of the rows held out.
        prior: Weights that were (columns, outputs).
        gain: How much each output counts (outputs).
        intercept: Whether a following BatchNorm can hold one.
    """
    training, held = (m.system(intercept=intercept) for m in (fit, check))
    squared = gain.square()
    best, least = RIDGES[0], float("inf")
    for ridge in RIDGES:
        error = float(held.error(solve(training, prior, ridge)) @ squared)
        if error >= least:
            break
        best, least = ridge, error
    power = float(held.power @ squared)
    return best, least / power if power > 0 else 0.0


def refit(
    system: System,
    prior: Tensor,
    gain: Tensor,
    ridge: float,
    error: float,
    factors: dict[float, Tensor] | None = None,
) -> Refit:
    """Solve for new weights; where an output's grow too much, its ridge rises tenfold until they do not.

    What counts is the largest weight after folding: it may grow `GROWTH` times, or to that many times
    the layer's median, whichever is more. Beyond, an output's INT8 scale would suffer.

    Args:
        system: The equations.
        prior: Weights that were (columns, outputs).
        gain: How much each output counts (outputs).
        ridge: In units of the mean diagonal.
        error: What `choose_ridge` found.
        factors: As of `solve`.
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
    """Write a refit into a convolution; its intercept goes into the running mean of the BatchNorm after it.

    Args:
        conv: The convolution.
        bn: The BatchNorm after it, if it can hold the intercept.
        result: The refit.
        mean: The running mean that the targets were made with.
    """
    shape = (conv.out_channels, -1, *conv.kernel_size)
    conv.weight.data = result.weight.T.reshape(shape).to(torch.float32).contiguous()
    if bn is not None:
        bn.running_mean = mean - result.intercept.to(torch.float32)


def as_columns(conv: nn.Conv2d) -> Tensor:
    """A convolution's weights as (columns, outputs), float64."""
    return conv.weight.detach().flatten(1).T.double()


def columns_of(channels: Tensor, taps: int) -> Tensor:
    """The columns of some input channels, `taps` each."""
    return (channels[:, None] * taps + torch.arange(taps)).flatten()
