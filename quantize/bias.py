"""Bias correction: the mean of every channel stays what it was."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quantize.network import Network
from quantize.placement import is_weighted
from quantize.simulate import fake_quantize, quantizing
from toolkit.core.progress import track
from toolkit.core.quant import FloatArray, QParams

TRIMMED = 10  # one image in so many is left out at either end


@torch.inference_mode()
def corrections(
    network: Network, probe: FloatArray, activations: Mapping[str, QParams], weights: Mapping[str, QParams]
) -> dict[str, FloatArray]:
    """What to add to the bias of every weighted layer, so that its output keeps its channel means.

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
    change = quantizing(activations)
    images = torch.from_numpy(probe)
    exact: dict[str, Tensor] = {network.input: images}
    coarse: dict[str, Tensor] = {network.input: change(network.input, images)}
    found: dict[str, FloatArray] = {}
    uses = {str(v.name): len(v.consumers()) for node in network.nodes for v in node.inputs if v is not None}
    for node in track(network.nodes, "correcting biases"):
        name = str(node.outputs[0].name)
        exact[name] = network.apply(node, exact)
        result = _apply_quantized(network, node, coarse, weights)
        if is_weighted(node):
            shift = _typical(exact[name] - result)
            result = result + shift.reshape(-1, *[1] * (result.ndim - 2))
            found[str(node.name)] = np.array(shift.numpy())
        coarse[name] = change(name, result)
        for value in {str(v.name) for v in node.inputs if v is not None}:
            uses[value] -= sum(str(v.name) == value for v in node.inputs if v is not None)
            if uses[value] <= 0 and value != network.output:
                exact.pop(value, None)
                coarse.pop(value, None)
    return found


def _typical(error: Tensor) -> Tensor:
    """Mean error of every channel (C,) of (N, C, ...), without the tenth of images at either end.

    An image whose outlier is clipped errs far from all others; correcting for it would harm them.
    """
    each = error.flatten(2).mean(2) if error.ndim > 2 else error
    cut = len(each) // TRIMMED
    return each.sort(0).values[cut : len(each) - cut].mean(0)


def _apply_quantized(
    network: Network, node: ir.Node, values: dict[str, Tensor], weights: Mapping[str, QParams]
) -> Tensor:
    weight = node.inputs[1] if is_weighted(node) else None
    if weight is None or str(weight.name) not in weights:
        return network.apply(node, values)
    name = str(weight.name)
    return network.apply(node, {**values, name: fake_quantize(network.constants[name], weights[name])})
