"""A graph that takes decoded pixels: layout, mean and standard deviation become its first nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.edit import Names
from edgeship.toolkit.graph.normalization import find_input_normalization

LEVELS = np.arange(256)  # values of a pixel
Doubles = npt.NDArray[np.float64]


def take_pixels(source: Path, preprocess: Preprocess, out: Path) -> None:
    """Write a classifier, float or with Q/DQ nodes, whose input is uint8 (N, H, W, C) instead.

    Its input keeps its name. The first nodes are Cast, Mul, Sub and Transpose: the order in which OpenVINO
    makes one integer pass of them and the first QuantizeLinear, and TensorRT takes a uint8 input at all
    (only a Cast may read it). No pixel becomes another integer than by calibration/preprocess.py.

    Args:
        source: The ONNX file.
        preprocess: Mean and standard deviation of each channel; the rest is of no matter here. Where these
            give raw pixels to a graph that normalizes them itself, its own nodes for that are replaced.
        out: The file to write; it appears complete or not at all.

    Raises:
        ModelError: The graph has no float32 input, or another number of channels.

    Source:
        OpenVINO 2026.4, runtime model and latency of the possible orders. NVIDIA/TensorRT issue 3985.
    """
    found = io.read(source)
    graph = found.model.graph
    old = next(value for value in graph.inputs if value.name == found.input)
    if old.dtype != ir.DataType.FLOAT:
        raise ModelError(f"{source.name} takes {old.dtype}, not float32", hint="give it the float32 form")
    if len(preprocess.mean) != found.channels:
        raise ModelError(
            f"{source.name} takes {found.channels} channels, its preprocessing has {len(preprocess.mean)}",
            hint="give mean and std one number for each channel of the images",
        )
    ready, preprocess = _normalized(found, old, preprocess)
    uses = list(ready.uses())
    names = Names(graph)
    old.name = names.new(f"{found.input}/normalized")
    pixels = ir.Value(
        name=found.input,
        shape=ir.Shape([old.shape[0] if old.shape else None, found.height, found.width, found.channels]),
        type=ir.TensorType(ir.DataType.UINT8),
    )
    gain, shift = affine(preprocess, [use.node for use in uses])
    nodes = [ir.node("Cast", [pixels], {"to": ir.DataType.FLOAT})]
    for kind, name, array in (("Mul", "gain", gain), ("Sub", "shift", shift)):
        row = (
            np.tile(array, (found.width, 1)) if found.width else array
        )  # runtimes are slow at repeating 3 numbers
        constant = io.add_constant(graph, f"{found.input}/{name}", row, names)
        nodes.append(ir.node(kind, [nodes[-1].outputs[0], constant]))
    nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [0, 3, 1, 2]}))
    for node in nodes:
        node.name = names.new(f"{found.input}/{node.op_type.lower()}")
        node.outputs[0].name = node.name
    result = nodes[-1].outputs[0]
    result.shape, result.type = old.shape, old.type
    graph.insert_before(min((use.node for use in uses), key=graph.index), nodes)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    graph.inputs[graph.inputs.index(old)] = pixels
    if ready is not old:
        RemoveUnusedNodesPass()(found.model)
    io.save(found.model, out)


def _normalized(found: io.Classifier, image: ir.Value, preprocess: Preprocess) -> tuple[ir.Value, Preprocess]:
    """The tensor to compute of pixels, and how: the input, or what the graph makes of raw pixels."""
    normalization = find_input_normalization(found.model)
    if normalization is None or not normalization.output:
        return image, preprocess
    raw = normalization.raw
    if (preprocess.mean, preprocess.std) != (raw.mean, raw.std):
        return image, preprocess
    values = (value for node in found.model.graph for value in node.outputs)
    ready = next(value for value in values if value.name == normalization.output)
    return ready, replace(preprocess, mean=normalization.mean, std=normalization.std)


def affine(
    preprocess: Preprocess, readers: list[ir.Node]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Gain and shift of each channel: pixel * gain - shift is (pixel / 255 - mean) / std.

    Where the result is quantized, the shift is moved to the middle of those that give all 256 pixels the
    integers of the float path: however a runtime rounds or fuses, these are then the integers. (Of several
    pixels of a channel that lie exactly between two integers, one may become the other of its two.)

    Args:
        preprocess: Mean and standard deviation.
        readers: Nodes that read the result; the QuantizeLinear among them count.
    """
    mean, std = np.asarray(preprocess.mean, np.float64), np.asarray(preprocess.std, np.float64)
    gain, shift = (1 / (255 * std)).astype(np.float32), mean / std
    for channel, nominal in enumerate(shift):
        bounds = list(_bounds(preprocess, channel, float(gain[channel]), readers))
        low, high = max((b[0] for b in bounds), default=-np.inf), min((b[1] for b in bounds), default=np.inf)
        shift[channel] = (low + high) / 2 if np.isfinite([low, high]).all() else np.clip(nominal, low, high)
    return gain, shift.astype(np.float32)


def _bounds(
    preprocess: Preprocess, channel: int, gain: float, readers: list[ir.Node]
) -> Iterator[tuple[float, float]]:
    """Least and greatest shift with which each QuantizeLinear gives the integers of the float path."""
    mean, std = (np.float32(values[channel]) for values in (preprocess.mean, preprocess.std))
    normalized = (LEVELS.astype(np.float32) / np.float32(255) - mean) / std
    for node in readers:
        if node.op_type != "QuantizeLinear" or node.inputs[1] is None:
            continue
        scale = io.constant(node.inputs[1])
        third = node.inputs[2] if len(node.inputs) > 2 else None
        zero_point = np.zeros((), np.uint8) if third is None else io.constant(third)
        ends, zero = np.iinfo(zero_point.dtype), float(zero_point.reshape(-1)[0])
        integers = np.clip(np.round(normalized / scale.reshape(-1)[0]) + zero, ends.min, ends.max)
        step = float(scale.reshape(-1)[0])
        low, high = (LEVELS * gain - (integers - zero + half) * step for half in (0.5, -0.5))
        yield (
            float(
                low[integers < ends.max].max(initial=-np.inf)
            ),  # what is cut off there is free to go beyond
            float(high[integers > ends.min].min(initial=np.inf)),
        )
