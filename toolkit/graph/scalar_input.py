"""Conversion of a graph to inputs of one scale, as DeepStream computes them: scale * (pixel - offset)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph import edit, io
from edgeship.toolkit.graph.edit import Names
from edgeship.toolkit.graph.pixels import LEVELS, affine, quantized

Form = Literal["unchanged", "first weights", "multiplication"]


@dataclass(frozen=True, slots=True)
class ScalarInput:
    """Inputs of the converted graph: scale * (pixel - offsets), in float32, pixels in 0..255.

    Attributes:
        scale: The same for all channels.
        offsets: One of each channel.
        form: Place of the ratios of the channels' std: none are needed, the weights of the first
            convolutions, or a multiplication in front of them.
        output: Name of the probabilities (N, classes).
    """

    scale: np.float32
    offsets: npt.NDArray[np.float32]
    form: Form
    output: str

    def inputs(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return inputs (N, C, H, W) of pixels (N, H, W, C)."""
        images = pixels.transpose(0, 3, 1, 2).astype(np.float32)
        result: npt.NDArray[np.float32] = (images - self.offsets[:, None, None]) * self.scale
        return result


def to_scalar_input(source: Path, preprocess: Preprocess, out: Path) -> ScalarInput:
    """Convert a classifier, float or with Q/DQ nodes, to inputs with one scale and probabilities as output.

    Float convolutions that read the images get the ratios of the std in their weights; zero padding stays
    zero, since only the mean is subtracted before it. Otherwise (a QuantizeLinear reads the images) one
    multiplication by them is the first node: the scale of a QuantizeLinear cannot hold them, and weights
    quantized per output channel would be rounded anew. Before a QuantizeLinear the offsets are those of
    `affine`: every level of a pixel gets the integer of the float path, which is checked.

    Args:
        source: The ONNX file, input float32 (N, C, H, W).
        preprocess: Mean and std per channel.
        out: The file to write, atomically.

    Raises:
        ModelError: The input is not float32, the number of channels differs, or a level gets another integer.
    """
    classifier = io.read(source)
    graph = classifier.model.graph
    image = next(value for value in graph.inputs if value.name == classifier.input)
    if image.dtype != ir.DataType.FLOAT or classifier.channels != len(preprocess.mean):
        raise ModelError(
            f"{source.name} takes {image.dtype} with {classifier.channels} channels, not float32 with "
            f"{len(preprocess.mean)}",
            hint="run the recipe with --set export.input=float32",
        )
    readers = [use.node for use in image.uses()]
    gain, shift = affine(preprocess, readers)
    scale = np.float32(gain.astype(np.float64).mean())
    ratios = (gain.astype(np.float64) / scale).astype(np.float32)
    form: Form = "unchanged"
    if np.ptp(gain) > 0:
        form = "first weights" if _fold(graph, image, ratios) else "multiplication"
        if form == "multiplication":
            _multiply(graph, image, ratios)
    else:
        ratios = np.ones_like(ratios)
    offsets = (shift.astype(np.float64) / gain.astype(np.float64)).astype(np.float32)
    output = _with_probabilities(graph)
    result = ScalarInput(scale, offsets, form, output)
    _check_levels(result, ratios, preprocess, readers, source.name)
    stated = classifier.model.metadata_props
    for key in [key for key in stated if key.startswith(("preprocess", "model_info"))]:
        del stated[key]  # of the other input
    io.save(classifier.model, out)
    return result


def _fold(graph: ir.Graph, image: ir.Value, ratios: npt.NDArray[np.float32]) -> bool:
    """Multiply the weights of the first layers; return False if a reader is no float convolution."""
    nodes = [use.node for use in image.uses()]
    for node in nodes:
        weight = node.inputs[1] if node.op_type == "Conv" and _is_data(node, image) else None
        if weight is None or weight.const_value is None or node.attributes.get_int("group", 1) != 1:
            return False
    names = Names(graph)
    for node in nodes:
        weight = node.inputs[1]
        assert weight is not None
        old = edit.constant(weight).astype(np.float64)
        factors = ratios.astype(np.float64).reshape(1, -1, *[1] * (old.ndim - 2))
        new = edit.add_constant(graph, f"{weight.name}/scaled", (old * factors).astype(np.float32), names)
        node.replace_input_with(1, new)
    return True


def _is_data(node: ir.Node, image: ir.Value) -> bool:
    """Return True if a tensor is the first input of a node, and no other one."""
    return [value is image for value in node.inputs].index(True) == 0 and image not in node.inputs[1:]


def _multiply(graph: ir.Graph, image: ir.Value, ratios: npt.NDArray[np.float32]) -> None:
    """Make a multiplication per channel the only reader of the images."""
    names = Names(graph)
    uses = list(image.uses())
    constant = edit.add_constant(graph, f"{image.name}/ratios", ratios.reshape(1, -1, 1, 1), names)
    node = ir.node("Mul", [image, constant], name=names.new(f"{image.name}/std"))
    node.outputs[0].name = names.new(f"{image.name}/normalized")
    node.outputs[0].shape, node.outputs[0].type = image.shape, image.type
    graph.insert_before(min((use.node for use in uses), key=graph.index), node)
    for use in uses:
        use.node.replace_input_with(use.idx, node.outputs[0])


def _with_probabilities(graph: ir.Graph) -> str:
    """Append a Softmax unless the graph has one; return the name of its output."""
    logits = graph.outputs[0]
    last = logits.producer()
    if last is not None and last.op_type == "Softmax":
        return str(logits.name)
    names = Names(graph)
    node = ir.node("Softmax", [logits], {"axis": 1}, name=names.new("probabilities"))
    node.outputs[0].name = node.name
    node.outputs[0].shape, node.outputs[0].type = logits.shape, logits.type
    graph.append(node)
    graph.outputs[0] = node.outputs[0]
    return str(node.name)


def _check_levels(
    result: ScalarInput,
    ratios: npt.NDArray[np.float32],
    preprocess: Preprocess,
    readers: list[ir.Node],
    file: str,
) -> None:
    """Raise if a level of a pixel gets another integer of a QuantizeLinear than by the float path."""
    mean, std = (np.asarray(each, np.float32) for each in (preprocess.mean, preprocess.std))
    levels = LEVELS.astype(np.float32)[:, None]
    expected = (levels / np.float32(255) - mean) / std
    computed = (levels - result.offsets) * result.scale * ratios
    for node in readers:
        if node.op_type != "QuantizeLinear" or node.inputs[1] is None:
            continue
        differing = quantized(node, computed)[0] != quantized(node, expected)[0]
        if differing.any():
            level, channel = np.argwhere(differing)[0]
            raise ModelError(
                f"{file}: level {level} of channel {channel} has another integer with one scale",
                hint="run the recipe with --set export.input=uint8, and use another application",
            )
