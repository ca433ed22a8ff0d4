"""Bias correction: the mean of every channel stays what it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeship.quantization.fake_quant import dequantized, quantized
from edgeship.quantization.placement import is_weighted
from edgeship.quantization.second_moments import channel_means
from edgeship.quantization.torch_executor import TorchExecutor, side_by_side
from edgeship.toolkit.core.memory import release_freed_memory
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray, QParams

TRIMMED = 10  # one image in so many is left out at either end


def corrections(
    network: TorchExecutor,
    probe: FloatArray,
    activations: Mapping[str, QParams],
    weights: Mapping[str, Tensor],
    means: Mapping[str, Tensor],
) -> dict[str, FloatArray]:
    """What to add to the bias of every convolution and Gemm, so that its output keeps its channel means.

    The quantized network runs layer by layer; a layer is corrected before the next one is run, so that each
    corrects only what is left of the errors before it.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W), all in memory at once.
        activations: Quantized tensors.
        weights: Initializer name -> values on their grid.
        means: What `moments.observe` saw of these images in the float network.

    Returns:
        Node name -> correction for each of its output channels.

    Source:
        Nagel et al. 2019, arXiv:1906.04721, sec. 4.2, empirical and sequential; the trimmed mean is ours.
    """
    images = network.parts(probe)
    running = [_Part(network, part, activations, weights) for part in images]
    found: dict[str, FloatArray] = {}
    unread = dict(network.reads)
    for node in track(network.nodes, "correcting biases"):
        read = network.inputs[str(node.name)]
        for name in read:
            unread[name] -= 1
        done = [name for name in read if not unread[name]]
        if not _has_bias(node):  # memory: a part's input goes before the next part's result comes
            for _ in side_by_side(lambda part: part.through(node, done), running):  # noqa: B023 (used at once)
                pass
            continue
        seen = list(side_by_side(lambda part: part.run(node), running))  # noqa: B023
        shift = _typical(means[str(node.outputs[0].name)] - torch.cat(seen))
        found[str(node.name)] = np.array(shift.numpy())
        for _ in side_by_side(lambda part: part.correct(node, shift, done), running):  # noqa: B023
            pass
    del running
    release_freed_memory()
    return found


class _Part:
    """Some images on their way through the quantized network; what is quantized is kept as integers."""

    def __init__(
        self,
        network: TorchExecutor,
        images: Tensor,
        activations: Mapping[str, QParams],
        weights: Mapping[str, Tensor],
    ) -> None:
        self._network, self._activations, self._weights = network, activations, weights
        self._values = {network.input: self._kept(network.input, images)}

    @torch.inference_mode()
    def run(self, node: ir.Node) -> Tensor:
        """Run a node, with its weights rounded; the mean of every image and channel."""
        read = set(self._network.inputs[str(node.name)])
        values = {name: self._value(name) for name in read & self._values.keys()}
        values |= {name: self._weights[name] for name in read & self._weights.keys()}
        results = self._network.apply(node, values)
        self._values |= results
        return channel_means(results[str(node.outputs[0].name)]) if _has_bias(node) else torch.empty(0)

    def through(self, node: ir.Node, done: Iterable[str]) -> None:
        """Run a node that nothing corrects, quantize its result, forget what is done."""
        self.run(node)
        self.correct(node, None, done)

    @torch.inference_mode()
    def correct(self, node: ir.Node, shift: Tensor | None, done: Iterable[str]) -> None:
        """Add what its layer is corrected by to the result of a node, quantize it, forget what is done."""
        for name in (str(value.name) for value in node.outputs if value.name):
            result = self._values[name]
            if shift is not None:
                result = result.add_(shift.reshape(-1, *[1] * (result.ndim - 2)))
            self._values[name] = self._kept(name, result)
        for each in done:
            self._values.pop(each, None)

    def _kept(self, name: str, values: Tensor) -> Tensor:
        qparams = self._activations.get(name)
        return values if qparams is None else quantized(values, qparams)

    def _value(self, name: str) -> Tensor:
        qparams = self._activations.get(name)
        return self._values[name] if qparams is None else dequantized(self._values[name], qparams)


def _has_bias(node: ir.Node) -> bool:
    """Whether a weighted layer has, or may be given, a bias."""
    return is_weighted(node) and node.op_type != "MatMul"


def _typical(error: Tensor) -> Tensor:
    """Mean error of every channel (C,) of (N, C), without the tenth of images at either end.

    An image whose outlier is clipped errs far from all others; correcting for it would harm them.
    """
    cut = len(error) // TRIMMED
    return error.sort(0).values[cut : len(error) - cut].mean(0)
