"""Bias correction: the mean of every channel stays what it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quantize.network import Network
from quantize.placement import is_weighted
from quantize.simulate import fake_quantize
from toolkit.core.progress import track
from toolkit.core.quant import FloatArray, QParams

TRIMMED = 10  # one image in so many is left out at either end
PART_PIXELS = 2**17  # images run at once: 32 at 64 px, 2 at 224 px; larger tensors leave the caches


@torch.inference_mode()
def corrections(
    network: Network, probe: FloatArray, activations: Mapping[str, QParams], weights: Mapping[str, QParams]
) -> dict[str, FloatArray]:
    """What to add to the bias of every convolution and Gemm, so that its output keeps its channel means.

    The float and the quantized network run side by side, once, layer by layer; a layer is corrected
    before the next one is run, so that each corrects only what is left of the errors before it.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W), all in memory at once.
        activations: Quantized tensors.
        weights: Quantized initializers.

    Returns:
        Node name -> correction for each of its output channels.

    Source:
        Nagel et al. 2019, arXiv:1906.04721, sec. 4.2, empirical and sequential; the trimmed mean is ours.
    """
    size = max(PART_PIXELS // int(np.prod(probe.shape[2:])), 1)
    parts = [_Part(network, images, activations) for images in torch.split(torch.from_numpy(probe), size)]
    found: dict[str, FloatArray] = {}
    unread = dict(network.reads)
    for node in track(network.nodes, "correcting biases"):
        rounded = _rounded_weight(network, node, weights)
        errors = [part.run(node, rounded) for part in parts]
        shift = None
        if _has_bias(node):
            shift = _typical(torch.cat(errors))
            found[str(node.name)] = np.array(shift.numpy())
        for part in parts:
            part.correct(node, shift)
        for value in node.inputs:
            if value is not None:
                unread[str(value.name)] -= 1
        for part in parts:
            part.forget(
                name for name in {str(v.name) for v in node.inputs if v is not None} if not unread[name]
            )
    return found


class _Part:
    """Some images on their way through the float and the quantized network."""

    def __init__(self, network: Network, images: Tensor, activations: Mapping[str, QParams]) -> None:
        self._network, self._activations = network, activations
        self._exact: dict[str, Tensor] = {network.input: images}
        self._coarse: dict[str, Tensor] = {network.input: self._round(network.input, images.clone())}

    def run(self, node: ir.Node, rounded: dict[str, Tensor]) -> Tensor:
        """Run a node in both networks; the mean error of every image and channel, (N, C)."""
        name = str(node.outputs[0].name)
        self._exact[name] = self._network.apply(node, self._exact)
        self._coarse[name] = self._network.apply(node, {**self._coarse, **rounded})
        if not _has_bias(node):
            return torch.empty(0)
        error = self._exact[name] - self._coarse[name]
        return error.mean(tuple(range(2, error.ndim))) if error.ndim > 2 else error

    def correct(self, node: ir.Node, shift: Tensor | None) -> None:
        """Add what its layer is corrected by to the result of a node, and quantize it."""
        name = str(node.outputs[0].name)
        result = self._coarse[name]
        if shift is not None:
            result.add_(shift.reshape(-1, *[1] * (result.ndim - 2)))
        self._coarse[name] = self._round(name, result)

    def forget(self, names: Iterable[str]) -> None:
        """Free tensors that nobody reads any more."""
        for name in names:
            self._exact.pop(name, None)
            self._coarse.pop(name, None)

    def _round(self, name: str, values: Tensor) -> Tensor:
        qparams = self._activations.get(name)
        return values if qparams is None else fake_quantize(values, qparams)


def _has_bias(node: ir.Node) -> bool:
    """Whether a weighted layer has, or may be given, a bias."""
    return is_weighted(node) and node.op_type != "MatMul"


def _typical(error: Tensor) -> Tensor:
    """Mean error of every channel (C,) of (N, C), without the tenth of images at either end.

    An image whose outlier is clipped errs far from all others; correcting for it would harm them.
    """
    cut = len(error) // TRIMMED
    return error.sort(0).values[cut : len(error) - cut].mean(0)


def _rounded_weight(network: Network, node: ir.Node, weights: Mapping[str, QParams]) -> dict[str, Tensor]:
    """The weight of a node on its grid, if it is quantized."""
    name = str(node.inputs[1].name) if is_weighted(node) and node.inputs[1] is not None else ""
    return {name: fake_quantize(network.constants[name], weights[name])} if name in weights else {}
