"""Folding of BatchNormalization and of channel permutations into weighted layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph.edit import add_constant, constant, set_constant

Doubles = npt.NDArray[np.float64]


def fold_batchnorms(model: ir.Model) -> None:
    """Fold every BatchNormalization that is the only consumer of a Conv or Gemm into it, in float64.

    Layers with computed weights, and a Gemm with factors or without one bias per output, are unchanged.
    The output has the name of the BatchNormalization's output.

    Raises:
        ModelError: Variance + epsilon is not positive.
    """
    graph = model.graph
    for node in list(graph):
        layer = node.inputs[0].producer() if node.op_type == "BatchNormalization" and node.inputs[0] else None
        if layer is None or not _is_foldable(graph, layer, node):
            continue
        weight, *bias = _arrays(layer.inputs[1:])
        gain, shift = _gain_and_shift(node)
        axis = int(layer.op_type == "Gemm" and layer.attributes.get_int("transB", 0) == 0)
        shape = [-1 if position == axis else 1 for position in range(weight.ndim)]
        before = bias[0].reshape(-1) if bias else np.zeros(1)
        layer.resize_inputs(3)
        _set_parameter(graph, layer, 1, weight * gain.reshape(shape))
        _set_parameter(graph, layer, 2, before * gain + shift)
        old, new = node.outputs[0], layer.outputs[0]
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        new.name = old.name
    for value in [value for value in graph.initializers.values() if not value.uses()]:
        graph.initializers.pop(str(value.name))


def fold_channel_permutations(model: ir.Model) -> None:
    """Fold channel permutations before convolutions into their weights, e.g. RGB to BGR.

    OpenVINO would reorder channels later, which invalidates the pair-sum overflow analysis.
    """
    graph = model.graph
    for node in list(graph):
        order, result = channel_permutation(node), node.outputs[0]
        layers = [use.node for use in result.uses()]
        if order is None or result in graph.outputs or not all(map(_reads_all, layers)):
            continue
        data = node.inputs[0]
        for layer in layers:
            weight = layer.inputs[1]
            assert weight is not None and data is not None
            _set_parameter(graph, layer, 1, np.take(constant(weight), np.argsort(order), axis=1))
            layer.replace_input_with(0, data)
        graph.remove(node, safe=True)


def channel_permutation(node: ir.Node) -> npt.NDArray[np.int64] | None:
    """Return the channel permutation of a Gather or Slice; None if the node is not a permutation."""
    if node.op_type not in {"Gather", "Slice"} or any(v is None for v in node.inputs):
        return None
    data, *numbers = node.inputs
    shape = data.shape if data is not None else None
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        return None
    if any(value.const_value is None for value in numbers if value is not None):
        return None
    arrays = [constant(value).reshape(-1) for value in numbers if value is not None]
    all_channels = np.arange(shape[1])
    if node.op_type == "Gather":
        order = all_channels[arrays[0]] if node.attributes.get_int("axis", 0) == 1 else None
    else:
        start, end, axis, step = (list(map(int, each)) for each in arrays) if len(arrays) == 4 else [[]] * 4
        order = all_channels[start[0] : end[0] : step[0]] if axis == [1] else None
    return None if order is None or sorted(order) != all_channels.tolist() else order


def _reads_all(layer: ir.Node) -> bool:
    """Return True for an ungrouped convolution with constant weights."""
    weight = layer.inputs[1] if layer.op_type == "Conv" else None
    return weight is not None and weight.const_value is not None and layer.attributes.get_int("group", 1) == 1


def _set_parameter(graph: ir.Graph, layer: ir.Node, place: int, array: Doubles) -> None:
    """Set the weight (1) or bias (2) of a layer, in place if no other layer uses it."""
    value, rounded = layer.inputs[place], array.astype(np.float32)
    if value is not None and len(value.uses()) == 1:
        set_constant(value, rounded)
        value.shape = ir.Shape(rounded.shape)
        return
    weight = layer.inputs[1]
    stem = str(weight.name if weight is not None else layer.name).removesuffix(".weight")
    name = f"{stem}.{'weight' if place == 1 else 'bias'}"
    layer.replace_input_with(place, add_constant(graph, name, rounded))


def _is_foldable(graph: ir.Graph, layer: ir.Node, batchnorm: ir.Node) -> bool:
    """Return True if the BatchNormalization is the layer's only consumer and all parameters are constant."""
    if layer.op_type not in {"Conv", "Gemm"} or batchnorm.attributes.get_int("training_mode", 0) != 0:
        return False
    parameters = [value for value in (*layer.inputs[1:], *batchnorm.inputs[1:]) if value is not None]
    if any(value.const_value is None for value in parameters):
        return False
    _, *bias = _arrays(layer.inputs[1:])
    channels = _arrays(batchnorm.inputs[1:])[0].size
    is_unscaled = all(layer.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    has_fitting_bias = not bias or bias[0].size in {1, channels}
    output = layer.outputs[0]
    return is_unscaled and has_fitting_bias and len(output.uses()) == 1 and output not in graph.outputs


def _gain_and_shift(batchnorm: ir.Node) -> tuple[Doubles, Doubles]:
    """Return gain and shift of each channel."""
    gamma, beta, mean, variance = _arrays(batchnorm.inputs[1:])
    spread = variance + batchnorm.attributes.get_float("epsilon", 1e-5)
    if not (spread > 0).all():
        raise ModelError(
            f"BatchNormalization '{batchnorm.name}' has a variance of {variance.min():g}; "
            "positive variances are expected",
            hint="give another checkpoint",
        )
    gain = gamma / np.sqrt(spread)
    return gain, beta - mean * gain


def _arrays(values: Sequence[ir.Value | None]) -> list[Doubles]:
    return [constant(value).astype(np.float64) for value in values if value is not None]
