"""Activation ranges: an observer per tensor, or the clip point of least error in the logits."""

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
CUTS = np.linspace(1.0, 0.25, 61)  # candidate clip points, as fractions of the largest magnitude
SPARSE = 5  # one position in so many enters the rounding error
TRUST = (
    0.02  # excess, as a fraction of the largest magnitude, below which the estimate is pulled to the prior
)


def observer_qparams(tensor: TensorStatistics, spec: QuantSpec, observer: str) -> QParams:
    """Choose the quantization parameters of one tensor by an observer."""
    return choose_qparams(observers.get(observer)(tensor, spec), spec)


def logit_aware_clipping(
    network: TorchExecutor,
    probe: FloatArray,
    points: dict[str, QuantSpec],
    statistics: dict[str, TensorStatistics],
) -> dict[str, QParams]:
    """Choose the clip point of every tensor by the least squared error of the logits.

    To first order an error e of a tensor changes the logits by J e. For random signs r the gradient
    g = J^T r is one backward pass, and the mean of (g.e)^2 over r is the squared change of the logits.
    Rounding errors are independent and add up as g^2 scale^2 / 12 (an exact zero stays exact); clipping
    errors have one sign and are summed before squaring. Outliers are rare and the probe is small: the
    clipping error per unit of excess beyond a clip point comes from the probe, the excess from the peaks of
    many images.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W).
        points: Tensor name -> spec.
        statistics: Tensor name -> statistics (all of `points`).

    Returns:
        Tensor name -> parameters.

    Source:
        First-order propagation: Dong et al. 2019, arXiv:1905.03696. Random signs (less variance than normal
        numbers): Hutchinson 1990, Communications in Statistics 19(2). Coherent clipping errors and their
        excess are our own.
    """
    largest = {name: statistics[name].largest for name in points}
    searches = {name: _ClipSearch(magnitude) for name, magnitude in largest.items()}

    def probe_part(part: tuple[int, Tensor]) -> dict[str, _ClipSearch]:
        return _probe(network, part[1], largest, seed=part[0])

    images = network.parts(probe)
    with closing(side_by_side(probe_part, enumerate(images))) as results:
        for part in track(results, "finding clip points", total=len(images)):
            for name, search in part.items():
                searches[name].merge(search)
    release_freed_memory()
    qparams = side_by_side(lambda name: searches[name].choose(points[name], statistics[name]), points)
    return dict(zip(points, qparams, strict=True))


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Per-tensor data saved in the forward pass for the backward hook.

    Attributes:
        nonzero: Mask of nonzero values at the sampled positions.
        share: Positions per sampled position.
        places: Flat indices of the values above the lowest clip point.
        image: Image index of each of them.
        sizes: Their magnitudes.
        signs: Their signs.
    """

    nonzero: Tensor
    share: float
    places: Tensor
    image: Tensor
    sizes: Tensor
    signs: Tensor


class _ClipSearch:
    """Squared error of the logits for every clip point of one tensor, summed over images."""

    def __init__(self, largest: float) -> None:
        self._largest = largest
        self._cuts = torch.from_numpy(np.ascontiguousarray(CUTS[::-1] * largest))
        self._images = 0
        self._nonzero = 0.0
        self._rounding = 0.0
        self._clipping = np.zeros(len(CUTS))
        self._peaks: list[Tensor] = []

    def snapshot(self, values: Tensor) -> _Snapshot:
        """Record the activation (N, C, ...) of some images before the backward pass."""
        rows = _rows(values)
        sparse = _sparse(rows)
        share = rows.shape[1] / sparse.shape[1]
        places = _larger(rows, float(self._cuts[0]))  # few: only these are ever clipped
        far, image = rows.flatten()[places].double(), places // rows[0].numel()
        snapshot = _Snapshot(sparse != 0, share, places, image, far.abs(), far.sign())
        peaks = torch.zeros(len(rows) * rows.shape[2])
        peaks.scatter_reduce_(
            0, image * rows.shape[2] + places % rows.shape[2], snapshot.sizes.float(), "amax"
        )
        self._images += len(rows)
        self._nonzero += share * float(snapshot.nonzero.sum())
        self._peaks.append(peaks.reshape(len(rows), -1))
        return snapshot

    @torch.no_grad()
    def add(self, snapshot: _Snapshot, gradients: Tensor) -> None:
        """Add the gradients (N, C, ...) of the images of a snapshot."""
        check_stop()
        rows = _rows(gradients)
        nonzero = _sparse(rows).float() * snapshot.nonzero
        self._rounding += snapshot.share * float(torch.linalg.vector_norm(nonzero)) ** 2
        outward = rows.reshape(-1)[snapshot.places].double() * snapshot.signs
        change = _beyond(self._cuts, snapshot.image, len(rows), snapshot.sizes, outward)
        self._clipping += change.square().sum(0).numpy()

    def merge(self, other: _ClipSearch) -> None:
        """Add the sums of another part of the images."""
        self._images += other._images
        self._nonzero += other._nonzero
        self._rounding += other._rounding
        self._clipping += other._clipping
        self._peaks += other._peaks

    def choose(self, spec: QuantSpec, tensor: TensorStatistics) -> QParams:
        """Choose the clip point of least error, extrapolated to all calibration images."""
        scales = self._cuts.numpy() / spec.quant_max
        excess = _excess(torch.from_numpy(tensor.peaks), self._cuts) * self._images / len(tensor.peaks)
        error = self._sensitivity() * excess + self._rounding * scales**2 / 12
        cut = float(self._cuts[len(CUTS) - 1 - int(np.argmin(error[::-1]))])
        return choose_qparams(observers.clipped(cut, tensor), spec)

    def _sensitivity(self) -> Doubles:
        """Return the clipping error per squared excess at every cut; the prior is that of the lower cut."""
        ratios = np.zeros(len(CUTS))
        prior, trust = self._rounding / max(self._nonzero, 1), (TRUST * self._largest) ** 2
        squared = _excess(torch.cat(self._peaks), self._cuts)
        for index, (clipping, excess) in enumerate(zip(self._clipping, squared, strict=True)):
            prior = ratios[index] = (clipping + prior * trust) / (excess + trust) if self._largest else 0.0
        return ratios


def _excess(peaks: Tensor, cuts: Tensor) -> Doubles:
    """Return the squared excess beyond every cut: summed over channels, squared, summed over images.

    Args:
        peaks: Largest magnitude of every channel, (N, C).
        cuts: Clip points, ascending.
    """
    places = _larger(peaks, float(cuts[0]))
    far, image = peaks.flatten()[places].double(), places // peaks.shape[1]
    excess = _beyond(cuts, image, len(peaks), far, torch.ones_like(far))
    squared: Doubles = excess.square().sum(0).numpy()
    return squared


def _beyond(cuts: Tensor, image: Tensor, images: int, sizes: Tensor, weights: Tensor) -> Tensor:
    """Sum weight x (size - cut) over the values of an image above each cut, (images, cuts)."""
    steps = (sizes - cuts[0]) * ((len(cuts) - 1) / (cuts[-1] - cuts[0]))  # cuts are evenly spaced
    bins = image * len(cuts) + steps.to(torch.int64).clamp_(0, len(cuts) - 1)

    def sums(each: Tensor) -> Tensor:
        counted = torch.bincount(bins, each, images * len(cuts)).reshape(images, -1)
        return counted.flip(1).cumsum(1).flip(1)

    return sums(weights * sizes) - sums(weights) * cuts


def _larger(values: Tensor, than: float) -> Tensor:
    """Return the flat indices, in memory order, of float32 or bfloat16 values of larger magnitude.

    Bit patterns have the order of the numbers; comparing them is several times as fast as PyTorch's
    comparison.
    """
    limit = int(np.float32(than).view(np.int32))
    if values.dtype == torch.bfloat16:
        bits, limit = values.view(torch.int16).numpy(), limit >> 16
    else:
        bits = values.view(torch.int32).numpy()
    return torch.from_numpy(np.flatnonzero((bits & np.iinfo(bits.dtype).max) > limit))


def _rows(values: Tensor) -> Tensor:
    """Reshape (N, C, ...) to (N, positions, C), without a copy for channels-last memory."""
    last = values.permute(0, 2, 3, 1) if values.ndim == 4 else values
    return last.reshape(len(last), -1, last.shape[-1])


def _sparse(rows: Tensor) -> Tensor:
    """Subsample the positions of (N, positions, C); enough for a mean."""
    return rows[:, ::SPARSE] if rows.shape[1] >= SPARSE**2 else rows


def _probe(
    network: TorchExecutor, images: Tensor, largest: Mapping[str, float], *, seed: int
) -> dict[str, _ClipSearch]:
    searches = {name: _ClipSearch(magnitude) for name, magnitude in largest.items()}
    inputs: list[Tensor] = []

    def record(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        if not value.requires_grad:  # the network input: start of the gradients
            value = value.detach().requires_grad_()
            inputs.append(value)
        if name in searches:
            snapshot = searches[name].snapshot(value.detach())
            value.register_hook(partial(searches[name].add, snapshot))  # type: ignore[no-untyped-call]
        return value

    logits = network(images, record)
    signs = torch.randint(0, 2, logits.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    torch.autograd.grad(logits, inputs, signs.to(logits.dtype), allow_unused=True)
    return searches
