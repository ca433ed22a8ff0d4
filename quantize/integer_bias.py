"""Room for biases that a runtime adds as 32-bit integers.

ONNX Runtime rounds a bias to steps of s_x s_w, the product of the scales of its layer's input and weights,
and adds it to the sum of products. A filter of zeros, or of 1e-9, has so small a scale that its bias does not
fit; so has every filter of a layer whose input is zero on all calibration images. It is cut off at 2^31 then,
and the channel computes something else.

A filter whose bias needs a larger scale can do with one: were it not larger, all K products together would
not reach K 127 255 / 2^30 of the bias, which is one in a thousand for 32 channels of 1 x 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeship.quantization.placement import MOVED, is_weighted, stand
from edgeship.toolkit.core.quant import FloatArray, QParams
from edgeship.toolkit.graph import io

LARGEST_BIAS = 2**30  # steps; as many again are left to the sum: 33,000 products of 127 and 255


def roomy(
    model: ir.Model, activations: Mapping[str, QParams], weights: Mapping[str, QParams]
) -> dict[str, QParams]:
    """Enlarge scales of filters so that the bias of each is at most `LARGEST_BIAS` steps.

    Args:
        model: The float graph.
        activations: Quantized tensors.
        weights: Quantized initializers; one for each output channel.

    Returns:
        The weights' parameters; those of filters whose bias fits stay as they are.
    """
    widened = dict(weights)
    for weight, read, bias in _biased(model):
        if weight not in widened or read not in activations:
            continue
        least = np.abs(bias) / (activations[read].scale[0] * LARGEST_BIAS)
        scale = np.maximum(widened[weight].scale, least)
        widened[weight] = replace(widened[weight], scale=tuple(scale.tolist()))
    return widened


def _biased(model: ir.Model) -> Iterator[tuple[str, str, FloatArray]]:
    """Layers with a bias: the names of the weights and of the tensor that is quantized for them; the bias."""
    for node in model.graph:
        if not is_weighted(node) or node.op_type == "MatMul" or len(node.inputs) < 3:
            continue
        read, weight, bias = node.inputs[:3]
        if read is None or weight is None or bias is None or bias.const_value is None:
            continue
        array = io.constant(bias).astype(np.float32)
        names = {str(stand(read, through).name) for through in (frozenset(), MOVED, MOVED | {"MaxPool"})}
        for name in names:
            yield str(weight.name), name, array.reshape(-1)
