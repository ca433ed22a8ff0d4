"""Conversion of a graph to uint8 pixel input: layout, mean and standard deviation become its first nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph import edit, io
from edgeship.toolkit.graph.edit import Names
from edgeship.toolkit.graph.normalization import find_input_normalization

LEVELS = np.arange(256)  # values of a pixel
Doubles = npt.NDArray[np.float64]


def add_pixel_input(source: Path, preprocess: Preprocess, out: Path) -> None:
    """Convert the input of a classifier, float or with Q/DQ nodes, to uint8 (N, H, W, C).

    The input keeps its name. The first nodes are Cast, Mul, Sub and Transpose: OpenVINO fuses this order
    with the first QuantizeLinear, and TensorRT allows only a Cast as consumer of a uint8 input. Every pixel
    is quantized to the same integer as by calibration/preprocess.py.

    Args:
        source: The ONNX file.
        preprocess: Mean and standard deviation per channel; other fields are ignored. If they select raw
            pixels for a graph with its own normalization, its normalization nodes are replaced.
        out: The file to write, atomically.

    Raises:
        ModelError: The input is not float32, or the number of channels differs.

    Source:
        OpenVINO 2026.4, runtime model and latency of the possible orders. NVIDIA/TensorRT issue 3985.
    """
    classifier = io.read(source)
    graph = classifier.model.graph
    old = next(value for value in graph.inputs if value.name == classifier.input)
    if old.dtype != ir.DataType.FLOAT:
        raise ModelError(f"{source.name} takes {old.dtype}, not float32", hint="give the float32 file")
    if len(preprocess.mean) != classifier.channels:
        raise ModelError(
            f"{source.name} takes {classifier.channels} channels, its preprocessing has "
            f"{len(preprocess.mean)}",
            hint="set mean and std to one number for each channel of the images",
        )
    ready, preprocess = _normalized_input(classifier, old, preprocess)
    uses = list(ready.uses())
    names = Names(graph)
    old.name = names.new(f"{classifier.input}/normalized")
    pixels = ir.Value(
        name=classifier.input,
        shape=ir.Shape(
            [old.shape[0] if old.shape else None, classifier.height, classifier.width, classifier.channels]
        ),
        type=ir.TensorType(ir.DataType.UINT8),
    )
    gain, shift = affine(preprocess, [use.node for use in uses])
    nodes = [ir.node("Cast", [pixels], {"to": ir.DataType.FLOAT})]
    for kind, name, array in (("Mul", "gain", gain), ("Sub", "shift", shift)):
        row = (
            np.tile(array, (classifier.width, 1)) if classifier.width else array
        )  # broadcasting 3 values is slow
        constant = edit.add_constant(graph, f"{classifier.input}/{name}", row, names)
        nodes.append(ir.node(kind, [nodes[-1].outputs[0], constant]))
    nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [0, 3, 1, 2]}))
    for node in nodes:
        node.name = names.new(f"{classifier.input}/{node.op_type.lower()}")
        node.outputs[0].name = node.name
    result = nodes[-1].outputs[0]
    result.shape, result.type = old.shape, old.type
    graph.insert_before(min((use.node for use in uses), key=graph.index), nodes)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    graph.inputs[graph.inputs.index(old)] = pixels
    if ready is not old:
        RemoveUnusedNodesPass()(classifier.model)
    io.save(classifier.model, out)


def _normalized_input(
    classifier: io.Classifier, image: ir.Value, preprocess: Preprocess
) -> tuple[ir.Value, Preprocess]:
    """Return the tensor to compute from pixels (the input, or the graph's normalized tensor), and how."""
    normalization = find_input_normalization(classifier.model)
    if normalization is None or not normalization.output:
        return image, preprocess
    raw = normalization.raw
    if (preprocess.mean, preprocess.std) != (raw.mean, raw.std):
        return image, preprocess
    values = (value for node in classifier.model.graph for value in node.outputs)
    ready = next(value for value in values if value.name == normalization.output)
    return ready, replace(preprocess, mean=normalization.mean, std=normalization.std)


def affine(
    preprocess: Preprocess, readers: list[ir.Node]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return gain and shift per channel: pixel * gain - shift is (pixel / 255 - mean) / std.

    Before a QuantizeLinear, the shift is centred in the interval in which all 256 pixel values get the
    integers of the float path, to be robust against a runtime's rounding and fusion. (Of several pixel
    values of a channel exactly between two integers, one may be rounded to the other.)

    Args:
        preprocess: Mean and standard deviation.
        readers: Consumers of the result; each QuantizeLinear among them bounds the shift.
    """
    mean, std = np.asarray(preprocess.mean, np.float64), np.asarray(preprocess.std, np.float64)
    gain, shift = (1 / (255 * std)).astype(np.float32), mean / std
    for channel, nominal in enumerate(shift):
        bounds = list(_shift_bounds(preprocess, channel, float(gain[channel]), readers))
        low, high = max((b[0] for b in bounds), default=-np.inf), min((b[1] for b in bounds), default=np.inf)
        shift[channel] = (low + high) / 2 if np.isfinite([low, high]).all() else np.clip(nominal, low, high)
    return gain, shift.astype(np.float32)


def _shift_bounds(
    preprocess: Preprocess, channel: int, gain: float, readers: list[ir.Node]
) -> Iterator[tuple[float, float]]:
    """Yield the least and greatest shift for which each QuantizeLinear gets the float path's integers."""
    mean, std = (np.float32(values[channel]) for values in (preprocess.mean, preprocess.std))
    normalized = (LEVELS.astype(np.float32) / np.float32(255) - mean) / std
    for node in readers:
        if node.op_type != "QuantizeLinear" or node.inputs[1] is None or _is_float8(node):
            continue
        integers, zero, ends = quantized(node, normalized)
        step = float(edit.constant(node.inputs[1]).reshape(-1)[0])
        lower_bounds, upper_bounds = (LEVELS * gain - (integers - zero + half) * step for half in (0.5, -0.5))
        yield (
            float(lower_bounds[integers < ends.max].max(initial=-np.inf)),  # clipped values do not bound it
            float(upper_bounds[integers > ends.min].min(initial=np.inf)),
        )


def _is_float8(node: ir.Node) -> bool:
    third = node.inputs[2] if len(node.inputs) > 2 else None
    return third is not None and third.dtype == ir.DataType.FLOAT8E4M3FN


def quantized(
    node: ir.Node, values: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], float, np.iinfo[Any]]:
    """Return the integers of a QuantizeLinear with one scale, its zero point, and the limits of its type."""
    assert node.inputs[1] is not None
    third = node.inputs[2] if len(node.inputs) > 2 else None
    zero_point = np.zeros((), np.uint8) if third is None else edit.constant(third)
    ends, zero = np.iinfo(zero_point.dtype), float(zero_point.reshape(-1)[0])
    scale = edit.constant(node.inputs[1]).reshape(-1)[0]
    return np.clip(np.round(values / scale) + zero, ends.min, ends.max), zero, ends
