"""Ranges of activations: by an observer on each tensor, or by what clipping does to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from quantize import observers
from quantize.network import Network, parts, side_by_side
from quantize.qparams import choose_qparams
from quantize.statistics import TensorStatistics
from toolkit.core.memory import give_back
from toolkit.core.progress import track
from toolkit.core.quant import FloatArray, QParams, QuantSpec

CUTS = np.linspace(1.0, 0.25, 61)  # clip points that are tried, as parts of the largest magnitude
DIRECTIONS = 2  # of the logits, for every image


def observed(seen: TensorStatistics, spec: QuantSpec, observer: str) -> QParams:
    """Parameters of one tensor by an observer."""
    low, high = float(seen.low.min()), float(seen.high.max())
    return choose_qparams(observers.get(observer)(seen.sample.ravel(), low, high, spec), spec)


def output_aware(
    network: Network,
    probe: FloatArray,
    points: dict[str, QuantSpec],
    statistics: dict[str, TensorStatistics],
) -> dict[str, QParams]:
    """Choose the clip point of every tensor that disturbs the logits least.

    To first order an error e of a tensor moves the logits by J e. For a random direction r the number
    g = J^T r is one backward pass, and the mean of (g.e)^2 over r is the squared change of the logits.
    Rounding errors are independent, so they add up as g^2 scale^2 / 12 (an exact zero stays exact);
    clipping errors have one sign, so they are summed before they are squared.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W).
        points: Tensor name -> spec.
        statistics: Tensor name -> what was seen of it (all of `points`).

    Returns:
        Tensor name -> parameters.

    Source:
        First-order propagation as in Dong et al. 2019, arXiv:1905.03696, with the clipping bias kept
        coherent; our own.
    """
    largest = {name: statistics[name].largest for name in points}
    tallies = {name: _Tally(most) for name, most in largest.items()}

    def probed(part: tuple[int, Tensor]) -> dict[str, _Tally]:
        return _probe(network, part[1], largest, seed=part[0])

    images = parts(probe)
    with closing(side_by_side(probed, enumerate(images))) as results:
        for part in track(results, "finding clip points", total=len(images)):
            for name, tally in part.items():
                tallies[name].merge(tally)
    give_back()
    return {name: tallies[name].choose(spec, statistics[name]) for name, spec in points.items()}


class _Tally:
    """Squared changes of the logits by one tensor, summed over images and directions."""

    def __init__(self, largest: float) -> None:
        self._largest = largest
        self._cuts = torch.from_numpy((CUTS[::-1] * largest).astype(np.float32))
        self._rounding = 0.0
        self._clipping = np.zeros(len(CUTS))

    def look(self, values: Tensor) -> None:
        """Take images (N, ...) whose gradients follow."""
        values = _flat(values)
        self._alive = values != 0
        magnitudes = values.abs()
        self._far = (magnitudes.ravel() > self._cuts[0]).nonzero()[:, 0]  # few: only these can be clipped
        far = magnitudes.ravel()[self._far]
        image = self._far // values.shape[1]
        self._bin = image * len(CUTS) + torch.bucketize(far, self._cuts) - 1  # above that many cuts
        self._signed = values.ravel()[self._far].double()
        self._images = len(values)

    @torch.no_grad()
    def add(self, gradients: Tensor) -> None:
        """Add a direction: gradients (N, ...) of the images looked at."""
        gradients = _flat(gradients)
        alive = (gradients * self._alive).ravel()
        self._rounding += float(torch.dot(alive, alive))
        near = gradients.ravel()[self._far].double()
        # sum over values beyond a cut of g sign(v) (|v| - cut) = sum of g v - cut * sum of g sign(v)
        change = (
            self._beyond(near * self._signed) - self._beyond(near * self._signed.sign()) * self._cuts.double()
        )
        self._clipping += change.square().sum(0).flip(0).numpy()

    def _beyond(self, weights: Tensor) -> Tensor:
        """Sums of the far values' weights beyond every cut, (N, cuts)."""
        size = self._images * len(CUTS)
        bins = torch.bincount(self._bin, weights, size).reshape(self._images, -1)
        return bins.flip(1).cumsum(1).flip(1)

    def merge(self, other: _Tally) -> None:
        """Add what another one tallied."""
        self._rounding += other._rounding
        self._clipping += other._clipping

    def choose(self, spec: QuantSpec, seen: TensorStatistics) -> QParams:
        scales = CUTS * self._largest / spec.quant_max
        error = self._clipping + self._rounding * scales**2 / 12
        cut = float(CUTS[int(np.argmin(error))]) * self._largest
        low, high = float(seen.low.min()), float(seen.high.max())
        return choose_qparams(observers.clipped(cut, low, high), spec)


def _flat(values: Tensor) -> Tensor:
    """Values (N, ...) as (N, values), in the order in which they lie in memory where channels are last."""
    return (values.permute(0, 2, 3, 1) if values.ndim == 4 else values).reshape(len(values), -1)


def _probe(network: Network, images: Tensor, largest: Mapping[str, float], *, seed: int) -> dict[str, _Tally]:
    tallies = {name: _Tally(most) for name, most in largest.items()}
    inputs: list[Tensor] = []

    def watch(name: str, value: Tensor) -> Tensor:
        if not value.requires_grad:  # the input: gradients flow from here on
            value = value.detach().requires_grad_()
            inputs.append(value)
        if name in tallies:
            tallies[name].look(value.detach())
            value.register_hook(tallies[name].add)  # type: ignore[no-untyped-call]  # frees it at once
        return value

    logits = network(images, watch)
    generator = torch.Generator().manual_seed(seed)
    for left in reversed(range(DIRECTIONS)):
        direction = torch.randn(logits.shape, generator=generator)
        torch.autograd.grad(logits, inputs, direction, retain_graph=left > 0)
    return tallies
