"""Cross-layer equalization of channel ranges, residual streams included.

A ReLU network is invariant to dividing a channel by a factor in all layers that write it and multiplying by
it in all layers that read it. Per-tensor quantization has least error if channel ranges are equal, so every
channel space (the tensors of a residual stream, or inside a block) is divided by a power of its channel
ranges: about half way, since the quantization error of the reading layers' weights grows.

Source:
    Nagel et al. 2019, arXiv:1906.04721, sec. 4.1, for pairs of layers; here for spaces with any
    number of writers and readers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgeship.quantization.onnx_node import read_names
from edgeship.quantization.placement import is_weighted
from edgeship.quantization.statistics import Statistics, TensorStatistics
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.threads import ordered_map
from edgeship.toolkit.graph import edit, io
from edgeship.toolkit.graph.query import weight_axis

HOMOGENEOUS = frozenset({"Relu", "MaxPool", "Add", "GlobalAveragePool", "AveragePool", "Flatten", "Identity"})
LARGEST_FACTOR = 16.0


@dataclass(slots=True)
class Space:
    """Tensors with common channels, and the layers that write and read them."""

    writers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)


def equalize(model: ir.Model, statistics: Statistics, strength: float) -> tuple[ir.Model, Statistics]:
    """Equalize the channel ranges of every scalable space.

    Args:
        model: A float graph, not modified.
        statistics: Its calibration statistics.
        strength: Exponent of the ranges: 0 for no change, 1 for equal ranges.

    Returns:
        An equivalent graph, and its statistics.
    """
    changed = io.copy(model)
    tensors = dict(statistics.tensors)
    factors: dict[ir.Value, list[FloatArray]] = {}
    for space in spaces(changed):
        factor = _factor([statistics.tensors[t] for t in space.tensors if t in statistics.tensors], strength)
        if factor is None or not _fits(space, len(factor)):
            continue
        for writer in space.writers:
            for value in filter(None, writer.inputs[1:]):
                axis = weight_axis(writer) if value is writer.inputs[1] else 0
                factors.setdefault(value, []).append(_along(value, axis, np.reciprocal(factor)))
        for reader in space.readers:
            weight = reader.inputs[1]
            assert weight is not None
            factors.setdefault(weight, []).append(_along_inputs(reader, weight, factor))
        for name in space.tensors:
            if name in tensors:
                tensors[name] = tensors[name].scaled(factor)
    for value, array in zip(factors, ordered_map(_scaled, factors.items(), chunk=1), strict=True):
        edit.set_constant(value, array)
    return changed, replace(statistics, tensors=tensors)


def spaces(model: ir.Model) -> list[Space]:
    """Find the channel spaces of a graph that only weighted layers write and read."""
    graph = model.graph
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    def activations(node: ir.Node) -> list[str]:
        constants = {str(v.name) for v in node.inputs if v is not None and v.const_value is not None}
        inputs = [name for name in read_names(node) if name not in constants]
        return [*inputs, *(str(v.name) for v in node.outputs)]

    fixed = {str(v.name) for v in (*graph.inputs, *graph.outputs)}
    for node in graph:
        if node.op_type in HOMOGENEOUS and not any(
            v is not None and v.const_value is not None for v in node.inputs
        ):
            names = activations(node)
            for name in names:
                parent[root(name)] = root(names[0])
        elif not is_weighted(node) or _unscalable(node):
            fixed.update(activations(node))
    by_root: dict[str, Space] = {}
    for node in graph:
        if is_weighted(node):
            by_root.setdefault(root(str(node.outputs[0].name)), Space()).writers.append(node)
            by_root.setdefault(root(str(node.inputs[0].name)), Space()).readers.append(node)  # type: ignore[union-attr]
    for name in list(parent):
        if root(name) in by_root:
            by_root[root(name)].tensors.append(name)
    blocked = {root(name) for name in fixed}
    return [
        s for key, s in by_root.items() if key not in blocked and s.writers and s.readers and _own_weights(s)
    ]


def _unscalable(node: ir.Node) -> bool:
    """Return True if the weights of a layer cannot be scaled along both axes."""
    scaled = node.op_type == "Gemm" and (node.attributes.get_float("alpha", 1.0) != 1.0)
    return scaled or any(v is not None and v.const_value is None for v in node.inputs[1:])


def _groups(node: ir.Node) -> int:
    """Return the number of groups of a convolution."""
    return node.attributes.get_int("group", 1)


def _own_weights(space: Space) -> bool:
    """Return True if no layer outside the space shares the weights of its layers."""
    return all(
        value is None or len(value.consumers()) == 1
        for node in (*space.writers, *space.readers)
        for value in node.inputs[1:]
    )


def _fits(space: Space, channels: int) -> bool:
    """Return True if every layer has one weight row or column per channel (not so after Flatten of a map)."""

    def sides(node: ir.Node) -> tuple[int, int]:
        """Return output and input channels."""
        assert node.inputs[1] is not None
        shape, axis = edit.constant(node.inputs[1]).shape, weight_axis(node)
        return shape[axis], shape[1 - axis] * _groups(node)

    return all(sides(node)[0] == channels for node in space.writers) and all(
        sides(node)[1] == channels for node in space.readers
    )


def _factor(tensors: list[TensorStatistics], strength: float) -> FloatArray | None:
    """Return the divisor of every channel; None without usable ranges."""
    ranges = [np.maximum(-s.low, s.high) for s in tensors]
    ranges = [r / r.max() for r in ranges if len(r) > 1 and r.max() > 0]
    if not ranges or len({len(r) for r in ranges}) != 1:
        return None
    even = np.maximum(np.mean(ranges, axis=0), 1e-3) ** strength
    even /= np.exp(np.log(even).mean())
    factor: FloatArray = np.clip(even, 1 / LARGEST_FACTOR, LARGEST_FACTOR).astype(np.float32)
    return factor


def _along(value: ir.Value, axis: int, factor: FloatArray) -> FloatArray:
    """Reshape a factor to broadcast along an axis of a constant."""
    shape = [1] * edit.constant(value).ndim
    shape[axis] = -1
    return factor.reshape(shape)


def _along_inputs(reader: ir.Node, weight: ir.Value, factor: FloatArray) -> FloatArray:
    """Reshape a factor to broadcast along a layer's input channels, by group in grouped convolutions."""
    groups = _groups(reader)
    if groups == 1:
        return _along(weight, 1 - weight_axis(reader), factor)
    outputs, inputs, *kernel = edit.constant(weight).shape
    each = np.repeat(factor.reshape(groups, inputs), outputs // groups, axis=0)
    return each.reshape(outputs, inputs, *[1] * len(kernel))


def _scaled(item: tuple[ir.Value, list[FloatArray]]) -> FloatArray:
    """Multiply the array of a constant by its factors."""
    value, factors = item
    array = np.array(edit.constant(value), np.float32)
    for factor in factors:
        array *= factor
    return array
