"""Ranges of activations: by an observer on each tensor, or by what clipping does to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeship.quantization import observers
from edgeship.quantization.qparams import choose_qparams
from edgeship.quantization.statistics import TensorStatistics
from edgeship.quantization.torch_executor import TorchExecutor, side_by_side
from edgeship.toolkit.core.memory import release_freed_memory
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray, QParams, QuantSpec
from edgeship.toolkit.core.threads import check_stop

Doubles = np.ndarray[Any, np.dtype[np.float64]]
CUTS = np.linspace(1.0, 0.25, 61)  # clip points that are tried, as parts of the largest magnitude
SPARSE = 5  # one position in so many tells of rounding errors
TRUST = 0.02  # of the largest magnitude: a reach that tells little of what clipping costs


def observed(seen: TensorStatistics, spec: QuantSpec, observer: str) -> QParams:
    """Parameters of one tensor by an observer."""
    low, high = float(seen.low.min()), float(seen.high.max())
    return choose_qparams(observers.get(observer)(seen.sample.ravel(), low, high, spec), spec)


def logit_aware_clipping(
    network: TorchExecutor,
    probe: FloatArray,
    points: dict[str, QuantSpec],
    statistics: dict[str, TensorStatistics],
) -> dict[str, QParams]:
    """Choose the clip point of every tensor that disturbs the logits least.

    To first order an error e of a tensor moves the logits by J e. For random signs r the gradient
    g = J^T r is one backward pass, and the mean of (g.e)^2 over r is the squared change of the logits.
    Rounding errors are independent, so they add up as g^2 scale^2 / 12 (an exact zero stays exact);
    clipping errors have one sign, so they are summed before they are squared. Outliers are rare, and the
    images are few: what clipping costs is taken from these, for how far they go beyond a clip point; how
    far images do go is taken from the peaks of many.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W).
        points: Tensor name -> spec.
        statistics: Tensor name -> what was seen of it (all of `points`).

    Returns:
        Tensor name -> parameters.

    Source:
        First-order propagation as in Dong et al. 2019, arXiv:1905.03696; signs, for they scatter less than
        normal numbers, as in Hutchinson 1990, Communications in Statistics 19(2); the clipping bias kept
        coherent, and its reach, are our own.
    """
    largest = {name: statistics[name].largest for name in points}
    tallies = {name: _ClipSearch(most) for name, most in largest.items()}

    def probed(part: tuple[int, Tensor]) -> dict[str, _ClipSearch]:
        return _probe(network, part[1], largest, seed=part[0])

    images = network.parts(probe)
    with closing(side_by_side(probed, enumerate(images))) as results:
        for part in track(results, "finding clip points", total=len(images)):
            for name, tally in part.items():
                tallies[name].merge(tally)
    release_freed_memory()
    chosen = side_by_side(lambda name: tallies[name].choose(points[name], statistics[name]), points)
    return dict(zip(points, chosen, strict=True))


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What is kept of a tensor until its gradients come: what is not zero, of a share; the far values."""

    living: Tensor
    share: float
    places: Tensor
    image: Tensor
    sizes: Tensor
    signs: Tensor


class _ClipSearch:
    """Squared changes of the logits by one tensor, summed over images."""

    def __init__(self, largest: float) -> None:
        self._largest = largest
        self._cuts = torch.from_numpy(np.ascontiguousarray(CUTS[::-1] * largest))
        self._images = 0
        self._alive = 0.0
        self._rounding = 0.0
        self._clipping = np.zeros(len(CUTS))
        self._peaks: list[Tensor] = []

    def look(self, values: Tensor) -> _Snapshot:
        """Take images (N, C, ...) whose gradients follow."""
        rows = _rows(values)
        sparse = _sparse(rows)
        share = rows.shape[1] / sparse.shape[1]
        places = _larger(rows, float(self._cuts[0]))  # few: only these can be clipped
        far, image = rows.flatten()[places].double(), places // rows[0].numel()
        look = _Snapshot(sparse != 0, share, places, image, far.abs(), far.sign())
        peaks = torch.zeros(len(rows) * rows.shape[2])
        peaks.scatter_reduce_(0, image * rows.shape[2] + places % rows.shape[2], look.sizes.float(), "amax")
        self._images += len(rows)
        self._alive += share * float(look.living.sum())
        self._peaks.append(peaks.reshape(len(rows), -1))
        return look

    @torch.no_grad()
    def add(self, look: _Snapshot, gradients: Tensor) -> None:
        """Take the gradients (N, C, ...) of images looked at."""
        check_stop()
        rows = _rows(gradients)
        living = _sparse(rows).float() * look.living
        self._rounding += look.share * float(torch.linalg.vector_norm(living)) ** 2
        pull = rows.reshape(-1)[look.places].double() * look.signs
        change = _beyond(self._cuts, look.image, len(rows), look.sizes, pull)
        self._clipping += change.square().sum(0).numpy()

    def merge(self, other: _ClipSearch) -> None:
        """Add what another one tallied."""
        self._images += other._images
        self._alive += other._alive
        self._rounding += other._rounding
        self._clipping += other._clipping
        self._peaks += other._peaks

    def choose(self, spec: QuantSpec, seen: TensorStatistics) -> QParams:
        """The clip point of least error over all images, those too that were not looked at."""
        scales = self._cuts.numpy() / spec.quant_max
        everywhere = _reach(torch.from_numpy(seen.peaks), self._cuts) * self._images / len(seen.peaks)
        error = self._sensitivity() * everywhere + self._rounding * scales**2 / 12
        cut = float(self._cuts[len(CUTS) - 1 - int(np.argmin(error[::-1]))])
        low, high = float(seen.low.min()), float(seen.high.max())
        return choose_qparams(observers.clipped(cut, low, high), spec)

    def _sensitivity(self) -> Doubles:
        """What clipping costs for its reach at every cut; where next to none reach, as at lower cuts."""
        found = np.zeros(len(CUTS))
        known, trust = self._rounding / max(self._alive, 1), (TRUST * self._largest) ** 2
        reaches = _reach(torch.cat(self._peaks), self._cuts)
        for index, (clipping, reach) in enumerate(zip(self._clipping, reaches, strict=True)):
            known = found[index] = (clipping + known * trust) / (reach + trust) if self._largest else 0.0
        return found


def _reach(peaks: Tensor, cuts: Tensor) -> Doubles:
    """How far images go beyond every cut: the channels' excess, summed, squared, summed over images.

    Args:
        peaks: Largest magnitude of every channel, (N, C).
        cuts: Clip points, ascending.
    """
    places = _larger(peaks, float(cuts[0]))
    far, image = peaks.flatten()[places].double(), places // peaks.shape[1]
    excess = _beyond(cuts, image, len(peaks), far, torch.ones_like(far))
    found: Doubles = excess.square().sum(0).numpy()
    return found


def _beyond(cuts: Tensor, image: Tensor, images: int, sizes: Tensor, weights: Tensor) -> Tensor:
    """Sums of weight x (size - cut) over an image's values that are larger than the cut, (images, cuts)."""
    steps = (sizes - cuts[0]) * ((len(cuts) - 1) / (cuts[-1] - cuts[0]))  # they are evenly spaced
    bins = image * len(cuts) + steps.to(torch.int64).clamp_(0, len(cuts) - 1)

    def sums(each: Tensor) -> Tensor:
        counted = torch.bincount(bins, each, images * len(cuts)).reshape(images, -1)
        return counted.flip(1).cumsum(1).flip(1)

    return sums(weights * sizes) - sums(weights) * cuts


def _larger(values: Tensor, than: float) -> Tensor:
    """Places in memory of values, float32 or bfloat16, whose magnitude is larger.

    Found by their bits, whose order is that of the numbers: several times as fast as PyTorch's comparison.
    """
    limit = int(np.float32(than).view(np.int32))
    if values.dtype == torch.bfloat16:
        bits, limit = values.view(torch.int16).numpy(), limit >> 16
    else:
        bits = values.view(torch.int32).numpy()
    return torch.from_numpy(np.flatnonzero((bits & np.iinfo(bits.dtype).max) > limit))


def _rows(values: Tensor) -> Tensor:
    """Values (N, C, ...) as (N, positions, C), as they lie in memory where channels are last."""
    last = values.permute(0, 2, 3, 1) if values.ndim == 4 else values
    return last.reshape(len(last), -1, last.shape[-1])


def _sparse(rows: Tensor) -> Tensor:
    """Some positions of (N, positions, C), which tell as much of an average as all."""
    return rows[:, ::SPARSE] if rows.shape[1] >= SPARSE**2 else rows


def _probe(
    network: TorchExecutor, images: Tensor, largest: Mapping[str, float], *, seed: int
) -> dict[str, _ClipSearch]:
    tallies = {name: _ClipSearch(most) for name, most in largest.items()}
    inputs: list[Tensor] = []

    def watch(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        if not value.requires_grad:  # the input: gradients flow from here on
            value = value.detach().requires_grad_()
            inputs.append(value)
        if name in tallies:
            look = tallies[name].look(value.detach())
            value.register_hook(partial(tallies[name].add, look))  # type: ignore[no-untyped-call]
        return value

    logits = network(images, watch)
    signs = torch.randint(0, 2, logits.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    torch.autograd.grad(logits, inputs, signs.to(logits.dtype), allow_unused=True)
    return tallies
