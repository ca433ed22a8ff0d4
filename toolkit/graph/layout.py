"""Conversion of graphs with (N, H, W, C) or uint8 inputs to float32 (N, C, H, W)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph.edit import Names
from edgeship.toolkit.graph.shapes import clear_shapes, infer
from edgeship.toolkit.graph.transposes import push_transposes

COLOURS = (1, 3)  # channels of grey and RGB images
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # permutations to and from (N, H, W, C)
MOVE_OPS = frozenset(  # operators that only move values: same type of input and output
    {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Flatten", "Identity"}
)


@dataclass(frozen=True, slots=True)
class InputForm:
    """Layout and type of a graph's image input.

    Attributes:
        layout: "NCHW" or "NHWC".
        dtype: "float32", or "uint8" for decoded pixels (0..255).
    """

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"

    def __str__(self) -> str:
        """Return the form for messages, e.g. "float32 (N, C, H, W)"."""
        return f"{self.dtype} ({', '.join(self.layout)})"


def input_form_of(image: ir.Value) -> InputForm:
    """Infer the form of a graph input from its shape and type.

    The channel dimension has size 1 or 3; if two dimensions do, it is the last for uint8, else the first.
    """
    dtype: Literal["float32", "uint8"] = "uint8" if image.dtype == ir.DataType.UINT8 else "float32"
    shape = image.shape
    if shape is None or len(shape) != 4 or shape[3] not in COLOURS:
        return InputForm("NCHW", dtype)
    as_pixels = dtype == "uint8" and shape[1] == shape[2]
    return InputForm("NHWC" if shape[1] not in COLOURS or as_pixels else "NCHW", dtype)


def convert_input_to_nchw(model: ir.Model, image: ir.Value) -> bool:
    """Convert the input of a float graph to float32 (N, C, H, W), and its layers to that layout.

    A uint8 input becomes float32 with the same values (0..255), without its Cast. Transposes around
    convolutions are propagated towards the output, where they cancel.

    Args:
        model: A float graph, shapes inferred; changed.
        image: Its image input.

    Returns:
        True if the graph was changed; its shapes are then inferred again.

    Raises:
        ModelError: A consumer of a uint8 input is not a Cast.
    """
    form, graph = input_form_of(image), model.graph
    changed = False
    if form.dtype == "uint8":
        image.dtype = ir.DataType.FLOAT
        _remove_pixel_casts(graph, image)
        changed = True
    uses = list(image.uses())
    if form.layout == "NHWC" and image.shape is not None and uses:
        transpose = ir.node("Transpose", [image], {"perm": TO_LAST}, name=f"{image.name}/channels_last")
        result = transpose.outputs[0]
        result.name = Names(graph).new(str(transpose.name))
        result.shape, result.type = image.shape, image.type
        image.shape = ir.Shape([image.shape[place] for place in TO_FIRST])
        graph.insert_before(min((use.node for use in uses), key=graph.index), transpose)
        for use in uses:
            use.node.replace_input_with(use.idx, result)
        changed = True
    changed |= push_transposes(graph)
    if changed:
        RemoveUnusedNodesPass()(model)
        clear_shapes(model)  # stale: other layout
        infer(model)
    return changed


def _remove_pixel_casts(graph: ir.Graph, image: ir.Value) -> None:
    """Remove the Casts from uint8 to float, also after operators that only move values."""
    pending = [image]
    while pending:
        value = pending.pop()
        for use in list(value.uses()):
            node = use.node
            if node.op_type == "Cast":
                if node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
                    ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
                    graph.remove(node, safe=True)
            elif node.op_type in MOVE_OPS and use.idx == 0:
                for output in node.outputs:
                    output.dtype = ir.DataType.FLOAT
                    pending.append(output)
            elif node.op_type != "Shape":
                raise ModelError(
                    f"'{image.name}' is uint8 and read by node '{node.name}' ({node.op_type}); a Cast to "
                    "float is expected",
                    hint="export the network with a float32 input",
                )
