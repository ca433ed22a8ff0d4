"""Learned step sizes (effort `max`): GPTQ weights, then activation scales trained on the logits.

GPTQ rounds the weights, bias correction follows. A short training of the whole network then adapts the
activation scales to the float network's class probabilities. Weights and biases are not trained: they would
overfit to a few hundred images. Residual Adds read the unquantized tensor (`placement.add_float_bypass`), so
that the residual stream is rounded only at the inputs of layers.

Source:
    Scales: Esser et al. 2020 (LSQ), arXiv:1902.08153, eq. 3; the loss on the logits and the validation images
    are ours.
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
from edgeship.quantization.gptq import NEAR, fit_layers
from edgeship.quantization.placement import is_weighted
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray, PairOrder, QParams

VALIDATION_STRIDE = 5  # one image in so many validates, the others train
STEPS = 300
BATCH_PIXELS = 2**16  # images a step: 16 at 64 px, 1 at 224 px
ONE_BY_ONE = 4  # images a step if the graph runs one image at a time
RATE = 5e-4  # learning rate: relative change of a scale per step


@dataclass(frozen=True, slots=True)
class Learned:
    """Learned parameters and their error on validation images.

    Attributes:
        activations: Tensor name -> parameters.
        weights: Initializer name -> values on their grid.
        biases: Node name -> correction.
        root_kl: See `root_kl`.
    """

    activations: dict[str, QParams]
    weights: dict[str, Tensor]
    biases: dict[str, FloatArray]
    root_kl: float


def split(probe: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Split calibration images into training (four fifths) and validation images; a single one is both."""
    validation = np.arange(len(probe)) % VALIDATION_STRIDE == VALIDATION_STRIDE - 1
    validation[-1] = True
    return probe if validation.all() else probe[~validation], probe[validation]


def improve(
    network: TorchExecutor,
    train: FloatArray,
    validation: FloatArray,
    activations: Mapping[str, QParams],
    weights: Mapping[str, QParams],
    *,
    correct: bool = True,
    pairs: PairOrder | None = None,
    nearest: bool = False,
    seed: int = 0,
) -> Learned:
    """Fit weights, biases and activation scales to the training images.

    Args:
        network: The float graph.
        train: Images (N, C, H, W).
        validation: Other images, which select the GPTQ block size, and initial or learned scales.
        activations: Quantized tensors.
        weights: Quantized initializers.
        correct: Correct biases.
        pairs: See `gptq.gptq_weights`.
        nearest: Round weights to nearest instead of by GPTQ.
        seed: Seed of the image order; the result is deterministic.
    """

    def fit(block_inputs: int | None) -> tuple[_FakeQuantNetwork, Learned]:
        values, biases = fit_layers(
            network, train, activations, weights, block_inputs, pairs, biases=correct, nearest=nearest
        )
        quantized = _FakeQuantNetwork(network, activations, values, biases)
        return quantized, Learned(dict(activations), values, biases, _root_kl(network, validation, quantized))

    # with few images, second moments over all inputs overfit
    quantized, best = fit(NEAR)
    if not nearest:
        quantized, best = min((quantized, best), fit(None), key=lambda each: each[1].root_kl)
    _learn_scales(torch.from_numpy(train), quantized, seed)
    after = _root_kl(network, validation, quantized)
    if after < best.root_kl:
        return replace(best, activations=quantized.qparams(), root_kl=after)
    return best


def root_kl(
    network: TorchExecutor,
    images: FloatArray,
    activations: Mapping[str, QParams],
    weights: Mapping[str, Tensor],
    biases: Mapping[str, FloatArray],
) -> float:
    """Return the mean root KL divergence of the quantized network's classes, over images and mirror images.

    The root is proportional to the error of the logits, as is the number of changed predictions; the
    divergence is proportional to its square, so that one outlier image would outweigh all others.

    Args:
        network: The float graph.
        images: (N, C, H, W).
        activations: Quantized tensors.
        weights: Initializer name -> values on their grid.
        biases: Node name -> correction.
    """
    return _root_kl(network, images, _FakeQuantNetwork(network, activations, weights, biases))


def on_grid(network: TorchExecutor, weights: Mapping[str, QParams]) -> dict[str, Tensor]:
    """Round the weights of a network to the nearest grid values."""
    return {name: fake_quantize(network.constants[name], q) for name, q in weights.items()}


class _FakeQuantNetwork:
    """Quantized network with trainable activation scales."""

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
        # a section of the network ends at each tensor that blocks gradients
        self._ends = {
            name for node in network.estimated for name in network.inputs[str(node.name)]
        } - network.constants.keys()
        self._section_outputs: list[Tensor] = []
        self._shifts = {
            str(node.outputs[0].name): torch.from_numpy(np.asarray(biases[str(node.name)], np.float32))
            for node in network.nodes
            if is_weighted(node) and str(node.name) in biases
        }

    @property
    def one_image(self) -> bool:
        """True if the graph runs one image at a time."""
        return self._network.execution.one_image

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        self._section_outputs = []
        return self._network(images, self._round, self._constants, estimate=False)

    def section_loss(self, reference: list[Tensor]) -> Tensor:
        """Return the relative squared error of section outputs in the last call; 0 for a single section.

        Args:
            reference: Section outputs of the float network; see `section_ends`.
        """
        errors = [
            (actual - expected).square().sum() / expected.square().sum().clamp_min(1e-12)
            for actual, expected in zip(self._section_outputs, reference, strict=True)
        ]
        return sum(errors, torch.zeros(()))

    def section_ends(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits and section outputs of the float network."""
        ends: list[Tensor] = []

        def record(name: str, value: Tensor) -> Tensor:
            if name in self._ends and value.is_floating_point():
                ends.append(value)
            return value

        return self._network(images, record if self._ends else None), ends

    def qparams(self) -> dict[str, QParams]:
        """Return the parameters of the activations with the current scales."""
        return {
            name: replace(q, scale=(math.exp(self.scales[name].item()),))
            for name, q in self._activations.items()
        }

    def _round(self, name: str, value: Tensor) -> Tensor:
        value = self._corrected_and_rounded(name, value)
        if name in self._ends and value.is_floating_point():
            self._section_outputs.append(value)
        return value

    def _corrected_and_rounded(self, name: str, value: Tensor) -> Tensor:
        if name in self._shifts:
            value = value + self._shifts[name].reshape(-1, *[1] * (value.ndim - 2))
        if name not in self._activations:
            return value
        spec, zero_point = self._activations[name].spec, self._activations[name].zero_point[0]
        gain = 1 / math.sqrt(value[0].numel() * spec.quant_max)  # LSQ gradient scale
        scale = (self.scales[name] * gain + (self.scales[name] * (1 - gain)).detach()).exp()
        steps = (value / scale).clamp(spec.saturation - zero_point, spec.quant_max - zero_point)
        return (steps + (steps.round() - steps).detach()) * scale  # straight-through estimator


def _learn_scales(images: Tensor, quantized: _FakeQuantNetwork, seed: int) -> None:
    """Train the activation scales on the KL divergence from the float network's classes."""
    generator = torch.Generator().manual_seed(seed)
    size = min(_batch(images) if not quantized.one_image else ONE_BY_ONE, len(images))
    optimizer = torch.optim.Adam(quantized.scales.values(), lr=RATE)
    for step in range(STEPS):
        report_progress("learning scales", step, STEPS)
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        batch = images[torch.randint(len(images), (size,), generator=generator)]
        # mirror augmentation
        mirrored = torch.rand(size, generator=generator) < 0.5
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
        with torch.no_grad():
            logits, ends = quantized.section_ends(batch)
            target = F.log_softmax(logits, 1)
        loss = F.kl_div(F.log_softmax(quantized(batch), 1), target, reduction="batchmean", log_target=True)
        if ends:
            loss = loss + quantized.section_loss(ends)
        if not loss.requires_grad:  # no scale influences the loss
            break
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    report_progress("learning scales", STEPS, STEPS)


@torch.no_grad()
def _root_kl(network: TorchExecutor, images: FloatArray, quantized: _FakeQuantNetwork) -> float:
    both = torch.from_numpy(np.concatenate([images, images[..., ::-1]]))
    parts = torch.split(both, _batch(both))
    reference, actual = (
        torch.cat([F.log_softmax(run(part), 1) for part in parts]) for run in (network, quantized)
    )
    divergence = (reference.exp() * (reference - actual)).sum(1)
    return float(divergence.clamp_min(0).sqrt().mean())


def _batch(images: Tensor) -> int:
    return max(BATCH_PIXELS // int(np.prod(images.shape[2:])), 1)
