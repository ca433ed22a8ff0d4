"""Weight scales that avoid overflow of 32-bit integer biases.

ONNX Runtime rounds a bias to steps of s_x s_w, the product of the input and weight scales of its layer, and
clips it at 2^31. The bias overflows for very small scales: filters of zeros or of 1e-9, and layers whose
input is zero on all calibration images.

A larger weight scale for such a filter is harmless: at the smaller scale the sum of its K products is below
K 127 255 / 2^30 of the bias, one in a thousand for 32 channels of 1 x 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeship.quantization.placement import insertion_point, is_weighted
from edgeship.toolkit.core.quant import FloatArray, QParams
from edgeship.toolkit.graph import edit
from edgeship.toolkit.graph.signs import LAYOUT_OPS

LARGEST_BIAS = 2**30  # steps; reserves as many for the sum: 33,000 products of 127 and 255


def widen_scales(
    model: ir.Model, activations: Mapping[str, QParams], weights: Mapping[str, QParams]
) -> dict[str, QParams]:
    """Enlarge the scales of filters whose bias exceeds `LARGEST_BIAS` steps.

    Args:
        model: The float graph.
        activations: Quantized tensors.
        weights: Quantized initializers, one scale per output channel.

    Returns:
        Parameters of all weights; unchanged for filters whose bias fits.
    """
    widened = dict(weights)
    for weight, source, bias in _biased_layers(model):
        if weight not in widened or source not in activations:
            continue
        least = np.abs(bias) / (activations[source].scale[0] * LARGEST_BIAS)
        scale = np.maximum(widened[weight].scale, least)
        widened[weight] = replace(widened[weight], scale=tuple(scale.tolist()))
    return widened


def _biased_layers(model: ir.Model) -> Iterator[tuple[str, str, FloatArray]]:
    """Yield layers with a bias: (weight name, candidate name of the quantized input, bias)."""
    for node in model.graph:
        if not is_weighted(node) or node.op_type == "MatMul" or len(node.inputs) < 3:
            continue
        source, weight, bias = node.inputs[:3]
        if source is None or weight is None or bias is None or bias.const_value is None:
            continue
        array = edit.constant(bias).astype(np.float32)
        names = {
            str(insertion_point(source, through).name)
            for through in (frozenset(), LAYOUT_OPS, LAYOUT_OPS | {"MaxPool"})
        }
        for name in names:
            yield str(weight.name), name, array.reshape(-1)
