"""Ranges of activations: by an observer on each tensor, or by what clipping does to the logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantize import observers
from quantize.network import Network
from quantize.qparams import choose_qparams
from quantize.statistics import TensorStatistics
from toolkit.core.progress import tell
from toolkit.core.quant import FloatArray, QParams, QuantSpec

CUTS = np.linspace(1.0, 0.25, 61)  # clip points that are tried, as parts of the largest magnitude
BATCH_PIXELS = 2**16  # images are probed in batches of so many pixels
DIRECTIONS = 4  # of the logits, for every image


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
    tallies = {name: _Tally(statistics[name].largest) for name in points}
    generator = torch.Generator().manual_seed(0)
    size = max(BATCH_PIXELS // int(np.prod(probe.shape[2:])), 1)
    for start in range(0, len(probe), size):
        tell("finding clip points", start, len(probe))
        _probe(network, torch.from_numpy(probe[start : start + size]), tallies, generator)
    tell("finding clip points", len(probe), len(probe))
    return {name: tallies[name].choose(spec, statistics[name]) for name, spec in points.items()}


@dataclass(slots=True)
class _Tally:
    """Squared changes of the logits by one tensor, summed over images."""

    largest: float
    rounding: float = 0.0
    clipping: npt.NDArray[np.float64] | float = 0.0

    def add(self, values: Tensor, gradients: Tensor) -> None:
        """Add images: values and gradients, both (N, ...)."""
        values, gradients = values.flatten(1), gradients.flatten(1)
        self.rounding += float((gradients.square() * (values != 0)).sum())
        cuts = torch.from_numpy((CUTS * self.largest).astype(np.float32))
        for v, g in zip(values, gradients, strict=True):
            far = (v.abs() > cuts[-1]).nonzero()[:, 0]  # few: only these can be clipped
            distance = (v[far].abs()[:, None] - cuts).clamp_(min=0)
            change = (g[far] * v[far].sign()) @ distance
            self.clipping = self.clipping + change.double().square().numpy()

    def choose(self, spec: QuantSpec, seen: TensorStatistics) -> QParams:
        scales = CUTS * self.largest / spec.quant_max
        error = self.clipping + self.rounding * scales**2 / 12
        cut = float(CUTS[int(np.argmin(error))]) * self.largest
        low, high = float(seen.low.min()), float(seen.high.max())
        return choose_qparams(observers.clipped(cut, low, high), spec)


def _margin(logits: Tensor) -> Tensor:
    """The direction in which the first class and the second change places; longest where they are near.

    As long as a random direction on average, so that both kinds count alike.
    """
    top = logits.topk(2)
    gap = top.values[:, 0] - top.values[:, 1]
    weight = torch.exp(-gap / gap.mean().clamp(min=1e-12))
    direction = torch.zeros_like(logits)
    direction.scatter_(1, top.indices, torch.stack([weight, -weight], 1))
    return direction * (logits.numel() / direction.square().sum().clamp(min=1e-12)).sqrt()


def _probe(network: Network, images: Tensor, tallies: dict[str, _Tally], generator: torch.Generator) -> None:
    kept: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        if not value.requires_grad:  # the input: gradients flow from here on
            value = value.detach().requires_grad_()
        if name in tallies:
            kept[name] = value
        return value

    logits = network(images, keep)
    for left in reversed(range(DIRECTIONS)):
        direction = _margin(logits.detach()) if left % 2 else torch.randn(logits.shape, generator=generator)
        gradients = torch.autograd.grad(
            logits, list(kept.values()), direction, retain_graph=left > 0, allow_unused=True
        )
        for (name, value), gradient in zip(kept.items(), gradients, strict=True):
            if gradient is not None:
                tallies[name].add(value.detach(), gradient)
