"""Learned rounding: weights, biases and activation scales follow the float network, without labels.

Every weight may go to the next integer, every activation scale and bias may drift a little. First each
block is taught to give its float output from its quantized input; blocks learn side by side, since no
gradient crosses a block's edge. Then a pass over the whole network teaches the logits.

Source:
    Blocks: Li et al. 2021 (BRECQ), arXiv:2102.05426, sec. 3.2. Scales: Esser et al. 2020 (LSQ),
    arXiv:1902.08153, eq. 3. Rounding: Nagel et al. 2020 (AdaRound), arXiv:2004.10568, with a straight-
    through estimate in the place of its sigmoid, since few steps have to do.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quantize.network import Network
from quantize.placement import is_weighted
from toolkit.core.progress import tell
from toolkit.core.quant import FloatArray, QParams
from toolkit.core.statistics import kl_divergence
from toolkit.graph import io

BATCH_PIXELS = 2**16  # images a step: 16 at 64 px, 1 at 224 px
STEPS = 600
HELD_OUT = 5  # one image in so many judges, the others teach
LOGIT_SHARE = 0.4  # part of the steps that teach the logits
WEIGHT_RATE = 1.5e-3  # of a weight's step, an update
SCALE_RATE = 3e-4  # relative, an update
BIAS_RATE = 1e-4  # of the activation's magnitude, an update


class Student:
    """A network with learnable integers.

    Args:
        network: The float graph.
        activations: Quantized tensors.
        weights: Quantized initializers.
        biases: Node name -> correction to start from.
    """

    def __init__(
        self,
        network: Network,
        activations: dict[str, QParams],
        weights: dict[str, QParams],
        biases: dict[str, FloatArray],
    ) -> None:
        self.network = network
        self.activations = activations
        self.weights = weights
        self._scales = {
            name: torch.tensor(math.log(q.scale[0]), requires_grad=True) for name, q in activations.items()
        }
        self._steps: dict[str, Tensor] = {}
        self._bounds: dict[str, tuple[Tensor, Tensor]] = {}  # up or down, no further
        self._weight_scale: dict[str, Tensor] = {}
        for name, q in weights.items():
            shape = [1] * network.constants[name].ndim
            shape[q.spec.axis or 0] = -1
            self._weight_scale[name] = torch.tensor(q.scale, dtype=torch.float32).reshape(shape)
            limit = q.spec.quant_max
            steps = (network.constants[name] / self._weight_scale[name]).clamp(-limit, limit)
            self._bounds[name] = steps.floor(), steps.ceil()
            self._steps[name] = steps.requires_grad_()
        self._shift = {
            str(node.name): torch.from_numpy(np.array(biases.get(str(node.name), np.float32(0)), np.float32))
            .broadcast_to((_channels(network, node),))
            .clone()
            .requires_grad_()
            for node in network.nodes
            if is_weighted(node) and node.op_type != "MatMul"
        }

    def parameters(self) -> list[dict[str, object]]:
        """Groups for the optimizer, each with its own rate."""
        return [
            {"params": list(self._steps.values()), "lr": WEIGHT_RATE},
            {"params": list(self._scales.values()), "lr": SCALE_RATE},
            {"params": list(self._shift.values()), "lr": BIAS_RATE},
        ]

    def run(self, images: Tensor, edges: set[str], *, apart: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of images, and the outputs of the blocks.

        Args:
            images: (N, C, H, W).
            edges: Names of the tensors between blocks.
            apart: Whether gradients stop at the edges.
        """
        network, outputs = self.network, {}
        values = {network.input: self._activation(network.input, images)}
        for name, steps in self._steps.items():
            values[name] = _round(steps.clamp(*self._bounds[name])) * self._weight_scale[name]
        for node in network.nodes:
            name = str(node.outputs[0].name)
            result = network.apply(node, values)
            if str(node.name) in self._shift:
                result = result + self._shift[str(node.name)].reshape(-1, *[1] * (result.ndim - 2))
            result = self._activation(name, result)
            if name in edges:
                outputs[name] = result
                result = result.detach() if apart else result
            values[name] = result
        return values[network.output], outputs

    def qparams(self) -> dict[str, QParams]:
        """The learned parameters of the activations."""
        return {
            name: replace(q, scale=(math.exp(self._scales[name].item()),))
            for name, q in self.activations.items()
        }

    def biases(self) -> dict[str, FloatArray]:
        """The learned corrections."""
        return {name: np.array(shift.detach().numpy()) for name, shift in self._shift.items()}

    def write_weights(self, model: ir.Model) -> None:
        """Put the learned weights, which lie on their integers' grid, into a graph."""
        for name, steps in self._steps.items():
            learned = (steps.detach().clamp(*self._bounds[name]).round() * self._weight_scale[name]).numpy()
            io.set_constant(model.graph.initializers[name], learned.astype(np.float32))

    def _activation(self, name: str, value: Tensor) -> Tensor:
        if name not in self.activations:
            return value
        spec = self.activations[name].spec
        zero_point = self.activations[name].zero_point[0]
        gain = 1 / math.sqrt(value[0].numel() * spec.quant_max)  # LSQ: evens the gradient out over sizes
        log_scale = self._scales[name] * gain + (self._scales[name] * (1 - gain)).detach()
        scale = log_scale.exp()
        low, high = spec.quant_min - zero_point, spec.quant_max - zero_point
        return _round((value / scale).clamp(low, high)) * scale


def improve(student: Student, probe: FloatArray, *, steps: int = STEPS, seed: int = 0) -> tuple[float, float]:
    """Teach a student on four fifths of the calibration images, and judge it by the others.

    Args:
        student: Starts as the calibrated network.
        probe: Calibration images (N, C, H, W).
        steps: Updates.
        seed: Order of the images; the same seed gives the same result.

    Returns:
        KL divergence from the float network on the images held out, in nats: before, and after.
    """
    held = np.arange(len(probe)) % HELD_OUT == HELD_OUT - 1
    if not held.any():
        held[-1:] = True
    judges = torch.from_numpy(probe[held])
    before = divergence(student, judges)
    _learn(student, torch.from_numpy(probe[~held] if not held.all() else probe), steps, seed)
    return before, divergence(student, judges)


@torch.no_grad()
def divergence(student: Student, images: Tensor) -> float:
    """KL divergence of the student's classes from the float network's, in nats an image."""
    size = _batch(images)
    pairs = [
        (student.network(part), student.run(part, set(), apart=False)[0])
        for part in torch.split(images, size)
    ]
    exact, found = (torch.cat(side).numpy() for side in zip(*pairs, strict=True))
    return kl_divergence(exact, found)


def _learn(student: Student, images: Tensor, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    edges = block_edges(student.network)
    size = min(_batch(images), len(images))
    optimizer = torch.optim.Adam(student.parameters())
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        tell("learning rounding", step, steps)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = _augmented(images[torch.randint(len(images), (size,), generator=generator)], generator)
        loss = _loss(student, batch, edges, whole=step >= steps * (1 - LOGIT_SHARE))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    tell("learning rounding", steps, steps)


def _loss(student: Student, batch: Tensor, edges: set[str], *, whole: bool) -> Tensor:
    """What the blocks (or the logits, with gradients through the whole network) still lack."""
    exact: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        return exact.setdefault(name, value) if name in edges else value

    with torch.no_grad():
        wanted = student.network(batch, keep)
    logits, outputs = student.run(batch, edges, apart=not whole)
    loss = _relative(logits, wanted)
    for name in () if whole else outputs:
        loss = loss + _relative(outputs[name], exact[name])
    return loss


def _batch(images: Tensor) -> int:
    return max(BATCH_PIXELS // int(np.prod(images.shape[2:])), 1)


def block_edges(network: Network) -> set[str]:
    """Tensors that every way through the graph passes: residual blocks lie between them."""
    position = {str(node.outputs[0].name): index for index, node in enumerate(network.nodes)}
    last = {
        str(value.name): index
        for index, node in enumerate(network.nodes)
        for value in node.inputs
        if value is not None and value.const_value is None
    }
    edges, open_until = set(), last.get(network.input, 0)
    for name, index in position.items():
        if open_until <= index and name != network.output and _ends_block(network.nodes[index]):
            edges.add(name)
        open_until = max(open_until, last.get(name, index))
    return edges


def _ends_block(node: ir.Node) -> bool:
    """Whether a tensor is one that later layers read: not a convolution's before its own ReLU."""
    return node.op_type in {"Relu", "Add", "MaxPool", "Clip", "GlobalAveragePool"}


def _round(value: Tensor) -> Tensor:
    """Rounding whose gradient passes straight through."""
    return value + (value.round() - value).detach()


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over squared size."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images mirrored: more to learn from, and nothing the network would not meet."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _channels(network: Network, node: ir.Node) -> int:
    weight = network.constants[str(node.inputs[1].name)]  # type: ignore[union-attr]
    transposed = node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)
    return int(weight.shape[1 if transposed else 0])
