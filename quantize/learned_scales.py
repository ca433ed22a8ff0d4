"""Effort `max`: weights that fit their inputs, and activation scales that follow the logits.

The weights are rounded to fit what they read (`gptq`), and the biases follow. What is
left is the rounding of activations: a short pass over the whole network lets their scales drift to where
the classes change least. Nothing else is learned there: weights and biases would fit the noise of a few
hundred images. Residual Adds read what was made (`placement.fork`): what goes from block to block is
then rounded for the layers that read it, and for nothing else.

Source:
    Scales: Esser et al. 2020 (LSQ), arXiv:1902.08153, eq. 3; that they follow the logits alone, and who
    judges, is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeship.quantization.fake_quant import fake_quantize
from edgeship.quantization.fitting import fit_layers
from edgeship.quantization.gptq import NEAR
from edgeship.quantization.placement import is_weighted
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray, PairOrder, QParams

HELD_OUT = 5  # one image in so many judges, the others teach
STEPS = 300
BATCH_PIXELS = 2**16  # images a step: 16 at 64 px, 1 at 224 px
ONE_BY_ONE = 4  # images a step where each is run by itself
RATE = 5e-4  # of a scale, relative, an update


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned, and how good it is on images that did not teach.

    Attributes:
        activations: Tensor name -> parameters.
        weights: Initializer name -> values on their grid.
        biases: Node name -> correction.
        disturbance: See `disturbance`.
    """

    activations: dict[str, QParams]
    weights: dict[str, Tensor]
    biases: dict[str, FloatArray]
    disturbance: float


def split(probe: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Four fifths of the calibration images that teach, and the others, which judge."""
    held = np.arange(len(probe)) % HELD_OUT == HELD_OUT - 1
    held[-1] = True
    return probe if held.all() else probe[~held], probe[held]


def improve(
    network: TorchExecutor,
    teachers: FloatArray,
    judges: FloatArray,
    activations: Mapping[str, QParams],
    weights: Mapping[str, QParams],
    *,
    correct: bool = True,
    pairs: PairOrder | None = None,
    nearest: bool = False,
    seed: int = 0,
) -> Learned:
    """Fit weights, biases and scales to the images that teach.

    Args:
        network: The float graph.
        teachers: Images (N, C, H, W).
        judges: Other images, which choose: how many inputs are fitted together, given or learned scales.
        activations: Quantized tensors.
        weights: Quantized initializers.
        correct: Whether biases are corrected.
        pairs: See `gptq.fitted`.
        nearest: Round weights to the nearest integers instead of by GPTQ.
        seed: Order of the images; the same seed gives the same result.
    """

    def judged(values: dict[str, Tensor], biases: dict[str, FloatArray]) -> tuple[_Rounded, Learned]:
        rounded = _Rounded(network, activations, values, biases)
        return rounded, Learned(dict(activations), values, biases, _disturbance(network, judges, rounded))

    def fitted(together: int | None) -> tuple[_Rounded, Learned]:
        options = {"biases": correct, "nearest": nearest}
        return judged(*fit_layers(network, teachers, activations, weights, together, pairs, **options))

    # a few images may not tell enough to fit all inputs together
    rounded, best = fitted(NEAR)
    if not nearest:
        rounded, best = min((rounded, best), fitted(None), key=lambda each: each[1].disturbance)
    _learn_scales(torch.from_numpy(teachers), rounded, seed)
    after = _disturbance(network, judges, rounded)
    if after < best.disturbance:
        return replace(best, activations=rounded.qparams(), disturbance=after)
    return best


def root_kl(
    network: TorchExecutor,
    images: FloatArray,
    activations: Mapping[str, QParams],
    weights: Mapping[str, Tensor],
    biases: Mapping[str, FloatArray],
) -> float:
    """Mean root of the KL divergence of the quantized network's classes, on images and their mirror images.

    The root grows with the logits' error, as the number of changed predictions does; the divergence
    grows with its square, so that a single odd image would outweigh all others.

    Args:
        network: The float graph.
        images: (N, C, H, W).
        activations: Quantized tensors.
        weights: Initializer name -> values on their grid.
        biases: Node name -> correction.
    """
    return _disturbance(network, images, _Rounded(network, activations, weights, biases))


def on_grid(network: TorchExecutor, weights: Mapping[str, QParams]) -> dict[str, Tensor]:
    """The weights of a network at their nearest integers."""
    return {name: fake_quantize(network.constants[name], q) for name, q in weights.items()}


class _Rounded:
    """The quantized network, its activation scales learnable."""

    def __init__(
        self,
        network: TorchExecutor,
        activations: Mapping[str, QParams],
        constants: Mapping[str, Tensor],
        biases: Mapping[str, FloatArray],
    ) -> None:
        self._network, self._activations, self._constants = network, activations, constants
        self.scales = {
            name: torch.tensor(math.log(q.scale[0]), requires_grad=True) for name, q in activations.items()
        }
        # sections of the network end where the gradients do
        self._ends = {
            name for node in network.estimated for name in network.inputs[str(node.name)]
        } - network.constants.keys()
        self._reached: list[Tensor] = []
        self._shifts = {
            str(node.outputs[0].name): torch.from_numpy(np.asarray(biases[str(node.name)], np.float32))
            for node in network.nodes
            if is_weighted(node) and str(node.name) in biases
        }

    @property
    def one_image(self) -> bool:
        """Whether each image is run by itself."""
        return self._network.execution.one_image

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        self._reached = []
        return self._network(images, self._round, self._constants, estimate=False)

    def section_loss(self, exact: list[Tensor]) -> Tensor:
        """Relative squared error of what sections gave in the last call; 0 where there is only one.

        Args:
            exact: The same of the float network; see `section_ends`.
        """
        errors = [
            (got - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
            for got, wanted in zip(self._reached, exact, strict=True)
        ]
        return sum(errors, torch.zeros(()))

    def section_ends(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of the float network, and what its sections give."""
        ends: list[Tensor] = []

        def look(name: str, value: Tensor) -> Tensor:
            if name in self._ends and value.is_floating_point():
                ends.append(value)
            return value

        return self._network(images, look if self._ends else None), ends

    def qparams(self) -> dict[str, QParams]:
        """The parameters of the activations."""
        return {
            name: replace(q, scale=(math.exp(self.scales[name].item()),))
            for name, q in self._activations.items()
        }

    def _round(self, name: str, value: Tensor) -> Tensor:
        value = self._rounded(name, value)
        if name in self._ends and value.is_floating_point():
            self._reached.append(value)
        return value

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        if name in self._shifts:
            value = value + self._shifts[name].reshape(-1, *[1] * (value.ndim - 2))
        if name not in self._activations:
            return value
        spec, zero_point = self._activations[name].spec, self._activations[name].zero_point[0]
        gain = 1 / math.sqrt(value[0].numel() * spec.quant_max)  # evens the gradients out over sizes
        scale = (self.scales[name] * gain + (self.scales[name] * (1 - gain)).detach()).exp()
        steps = (value / scale).clamp(spec.saturation - zero_point, spec.quant_max - zero_point)
        return (steps + (steps.round() - steps).detach()) * scale  # straight through the rounding


def _learn_scales(images: Tensor, rounded: _Rounded, seed: int) -> None:
    """Let the activation scales follow the float network's classes."""
    generator = torch.Generator().manual_seed(seed)
    size = min(_batch(images) if not rounded.one_image else ONE_BY_ONE, len(images))
    optimizer = torch.optim.Adam(rounded.scales.values(), lr=RATE)
    for step in range(STEPS):
        report_progress("learning scales", step, STEPS)
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        batch = images[torch.randint(len(images), (size,), generator=generator)]
        # mirror images: more to learn from, and nothing the network would not meet
        mirrored = torch.rand(size, generator=generator) < 0.5
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
        with torch.no_grad():
            logits, ends = rounded.section_ends(batch)
            wanted = F.log_softmax(logits, 1)
        loss = F.kl_div(F.log_softmax(rounded(batch), 1), wanted, reduction="batchmean", log_target=True)
        if ends:
            loss = loss + rounded.section_loss(ends)
        if not loss.requires_grad:  # no scale is reached
            break
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    report_progress("learning scales", STEPS, STEPS)


@torch.no_grad()
def _disturbance(network: TorchExecutor, images: FloatArray, rounded: _Rounded) -> float:
    both = torch.from_numpy(np.concatenate([images, images[..., ::-1]]))
    parts = torch.split(both, _batch(both))
    exact, found = (torch.cat([F.log_softmax(run(part), 1) for part in parts]) for run in (network, rounded))
    divergence = (exact.exp() * (exact - found)).sum(1)
    return float(divergence.clamp_min(0).sqrt().mean())


def _batch(images: Tensor) -> int:
    return max(BATCH_PIXELS // int(np.prod(images.shape[2:])), 1)
