"""What a weighted layer can do itself: BatchNormalization after it, another order of channels before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph import io

Doubles = npt.NDArray[np.float64]


def fold_batchnorms(model: ir.Model) -> None:
    """Fold every BatchNormalization into the Conv or Gemm before it, in float64, where it alone reads that.

    Layers with computed weights, and Gemm with factors or a bias that is not one number an output, stay as
    they are. The output keeps the name it had behind the BatchNormalization.

    Raises:
        ModelError: A variance is so far below zero that there is no standard deviation.
    """
    graph = model.graph
    for node in list(graph):
        layer = node.inputs[0].producer() if node.op_type == "BatchNormalization" and node.inputs[0] else None
        if layer is None or not _folds(graph, layer, node):
            continue
        weight, *bias = _arrays(layer.inputs[1:])
        gain, shift = _affine(node)
        axis = int(layer.op_type == "Gemm" and layer.attributes.get_int("transB", 0) == 0)
        shape = [-1 if position == axis else 1 for position in range(weight.ndim)]
        before = bias[0].reshape(-1) if bias else np.zeros(1)
        layer.resize_inputs(3)
        _give(graph, layer, 1, weight * gain.reshape(shape))
        _give(graph, layer, 2, before * gain + shift)
        old, new = node.outputs[0], layer.outputs[0]
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        new.name = old.name
    for value in [value for value in graph.initializers.values() if not value.uses()]:
        graph.initializers.pop(str(value.name))


def fold_channel_permutations(model: ir.Model) -> None:
    """Have convolutions read channels in the order that they come in: a network of BGR reads RGB.

    OpenVINO would do it later, and then other products meet in a pair sum than those that were looked at.
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
            _give(graph, layer, 1, np.take(io.constant(weight), np.argsort(order), axis=1))
            layer.replace_input_with(0, data)
        graph.remove(node, safe=True)


def channel_permutation(node: ir.Node) -> npt.NDArray[np.int64] | None:
    """Return the channels of its input that a node gives, in order, if that is all it does; else None."""
    if node.op_type not in {"Gather", "Slice"} or any(v is None for v in node.inputs):
        return None
    data, *numbers = node.inputs
    shape = data.shape if data is not None else None
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        return None
    if any(value.const_value is None for value in numbers if value is not None):
        return None
    arrays = [io.constant(value).reshape(-1) for value in numbers if value is not None]
    every = np.arange(shape[1])
    if node.op_type == "Gather":
        order = every[arrays[0]] if node.attributes.get_int("axis", 0) == 1 else None
    else:
        start, end, axis, step = (list(map(int, each)) for each in arrays) if len(arrays) == 4 else [[]] * 4
        order = every[start[0] : end[0] : step[0]] if axis == [1] else None
    return None if order is None or sorted(order) != every.tolist() else order


def _reads_all(layer: ir.Node) -> bool:
    """Whether each output of a convolution reads every channel, with constant weights."""
    weight = layer.inputs[1] if layer.op_type == "Conv" else None
    return weight is not None and weight.const_value is not None and layer.attributes.get_int("group", 1) == 1


def _give(graph: ir.Graph, layer: ir.Node, place: int, array: Doubles) -> None:
    """Set the weight (1) or bias (2) of a layer, under the name it has if no other layer uses that."""
    value, rounded = layer.inputs[place], array.astype(np.float32)
    if value is not None and len(value.uses()) == 1:
        io.set_constant(value, rounded)
        value.shape = ir.Shape(rounded.shape)
        return
    weight = layer.inputs[1]
    stem = str(weight.name if weight is not None else layer.name).removesuffix(".weight")
    name = f"{stem}.{'weight' if place == 1 else 'bias'}"
    layer.replace_input_with(place, io.add_constant(graph, name, rounded))


def _folds(graph: ir.Graph, layer: ir.Node, batchnorm: ir.Node) -> bool:
    """Whether this BatchNormalization alone reads the layer, and all their numbers are constants."""
    if layer.op_type not in {"Conv", "Gemm"} or batchnorm.attributes.get_int("training_mode", 0) != 0:
        return False
    numbers = [value for value in (*layer.inputs[1:], *batchnorm.inputs[1:]) if value is not None]
    if any(value.const_value is None for value in numbers):
        return False
    _, *bias = _arrays(layer.inputs[1:])
    channels = _arrays(batchnorm.inputs[1:])[0].size
    plain = all(layer.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    fits = not bias or bias[0].size in {1, channels}
    out = layer.outputs[0]
    return plain and fits and len(out.uses()) == 1 and out not in graph.outputs


def _affine(batchnorm: ir.Node) -> tuple[Doubles, Doubles]:
    """Gain and shift of each channel."""
    gamma, beta, mean, variance = _arrays(batchnorm.inputs[1:])
    spread = variance + batchnorm.attributes.get_float("epsilon", 1e-5)
    if not (spread > 0).all():
        raise ModelError(
            f"BatchNormalization '{batchnorm.name}' has a variance of {variance.min():g}",
            hint="the file is damaged, or the training went wrong; use another checkpoint",
        )
    gain = gamma / np.sqrt(spread)
    return gain, beta - mean * gain


def _arrays(values: Sequence[ir.Value | None]) -> list[Doubles]:
    return [io.constant(value).astype(np.float64) for value in values if value is not None]
