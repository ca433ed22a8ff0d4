"""Bias correction: restore the float channel means of layer outputs."""

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

TRIMMED = 10  # one image in so many is excluded at either end


def corrections(
    network: TorchExecutor,
    probe: FloatArray,
    activations: Mapping[str, QParams],
    weights: Mapping[str, Tensor],
    means: Mapping[str, Tensor],
) -> dict[str, FloatArray]:
    """Compute the bias correction of every convolution and Gemm that restores its output's channel means.

    The quantized network runs layer by layer, each corrected before the next one runs, so that a layer
    corrects only the remaining error.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W), all in memory at once.
        activations: Quantized tensors.
        weights: Initializer name -> values on their grid.
        means: Output means of these images in the float network, from `second_moments.collect_moments`.

    Returns:
        Node name -> correction for each of its output channels.

    Source:
        Nagel et al. 2019, arXiv:1906.04721, sec. 4.2, empirical and sequential; the trimmed mean is ours.
    """
    images = network.parts(probe)
    running = [_Part(network, part, activations, weights) for part in images]
    shifts: dict[str, FloatArray] = {}
    remaining_reads = dict(network.reads)
    for node in track(network.nodes, "correcting biases"):
        inputs = network.inputs[str(node.name)]
        for name in inputs:
            remaining_reads[name] -= 1
        unused = [name for name in inputs if not remaining_reads[name]]
        if not _has_bias(node):  # memory: free the input of a part before the next part runs
            for _ in side_by_side(lambda part: part.run_uncorrected(node, unused), running):  # noqa: B023 (used at once)
                pass
            continue
        actual = list(side_by_side(lambda part: part.run(node), running))  # noqa: B023
        shift = _trimmed_mean(means[str(node.outputs[0].name)] - torch.cat(actual))
        shifts[str(node.name)] = np.array(shift.numpy())
        for _ in side_by_side(lambda part: part.correct(node, shift, unused), running):  # noqa: B023
            pass
    del running
    release_freed_memory()
    return shifts


class _Part:
    """State of the quantized network for some images; quantized tensors are stored as integers."""

    def __init__(
        self,
        network: TorchExecutor,
        images: Tensor,
        activations: Mapping[str, QParams],
        weights: Mapping[str, Tensor],
    ) -> None:
        self._network, self._activations, self._weights = network, activations, weights
        self._values = {network.input: self._stored(network.input, images)}

    @torch.inference_mode()
    def run(self, node: ir.Node) -> Tensor:
        """Run a node with rounded weights; return the mean of every image and channel."""
        inputs = set(self._network.inputs[str(node.name)])
        values = {name: self._value(name) for name in inputs & self._values.keys()}
        values |= {name: self._weights[name] for name in inputs & self._weights.keys()}
        results = self._network.apply(node, values)
        self._values |= results
        return channel_means(results[str(node.outputs[0].name)]) if _has_bias(node) else torch.empty(0)

    def run_uncorrected(self, node: ir.Node, unused: Iterable[str]) -> None:
        """Run a node without a bias, quantize its result, free unused tensors."""
        self.run(node)
        self.correct(node, None, unused)

    @torch.inference_mode()
    def correct(self, node: ir.Node, shift: Tensor | None, unused: Iterable[str]) -> None:
        """Add the bias correction to the result of a node, quantize it, free unused tensors."""
        for name in (str(value.name) for value in node.outputs if value.name):
            result = self._values[name]
            if shift is not None:
                result = result.add_(shift.reshape(-1, *[1] * (result.ndim - 2)))
            self._values[name] = self._stored(name, result)
        for each in unused:
            self._values.pop(each, None)

    def _stored(self, name: str, values: Tensor) -> Tensor:
        qparams = self._activations.get(name)
        return values if qparams is None else quantized(values, qparams)

    def _value(self, name: str) -> Tensor:
        qparams = self._activations.get(name)
        return self._values[name] if qparams is None else dequantized(self._values[name], qparams)


def _has_bias(node: ir.Node) -> bool:
    """Return True if a node is a weighted layer with an (optional) bias input."""
    return is_weighted(node) and node.op_type != "MatMul"


def _trimmed_mean(error: Tensor) -> Tensor:
    """Average errors (N, C) over images to (C,), without a tenth of them at either end.

    Clipped outliers of a single image cause errors far from those of all others.
    """
    cut = len(error) // TRIMMED
    return error.sort(0).values[cut : len(error) - cut].mean(0)
