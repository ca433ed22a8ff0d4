"""Graphs that take images as (N, H, W, C), or as uint8: read as float32 (N, C, H, W)."""

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
MOVES = frozenset(  # operators that compute nothing: their output has the type of their input
    {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Flatten", "Identity"}
)


@dataclass(frozen=True, slots=True)
class InputForm:
    """The form in which a graph takes images.

    Attributes:
        layout: "NCHW" or "NHWC".
        dtype: "float32", or "uint8" for decoded pixels (0..255).
    """

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.dtype} ({', '.join(self.layout)})"


def input_form_of(image: ir.Value) -> InputForm:
    """Return the form of a graph input by its shape and type.

    Channels are the dimension of 1 or 3; where both may be, pixels have them last and floats first.
    """
    dtype: Literal["float32", "uint8"] = "uint8" if image.dtype == ir.DataType.UINT8 else "float32"
    shape = image.shape
    if shape is None or len(shape) != 4 or shape[3] not in COLOURS:
        return InputForm("NCHW", dtype)
    as_pixels = dtype == "uint8" and shape[1] == shape[2]
    return InputForm("NHWC" if shape[1] not in COLOURS or as_pixels else "NCHW", dtype)


def convert_input_to_nchw(model: ir.Model, image: ir.Value) -> bool:
    """Have a float graph take float32 (N, C, H, W), and compute in that layout.

    A uint8 input becomes float32 of the same values (0..255), without its Cast. Transposes are moved
    towards the output and cancel each other, so that a graph whose convolutions are wrapped in them
    becomes the one without.

    Args:
        model: A float graph, shapes inferred; it is changed.
        image: Its image input.

    Returns:
        Whether anything was changed; shapes are inferred anew then.

    Raises:
        ModelError: Pixels are read by something other than a Cast.
    """
    form, graph = input_form_of(image), model.graph
    changed = False
    if form.dtype == "uint8":
        image.dtype = ir.DataType.FLOAT
        _drop_casts(graph, image)
        changed = True
    uses = list(image.uses())
    if form.layout == "NHWC" and image.shape is not None and uses:
        turned = ir.node("Transpose", [image], {"perm": TO_LAST}, name=f"{image.name}/channels_last")
        result = turned.outputs[0]
        result.name = Names(graph).new(str(turned.name))
        result.shape, result.type = image.shape, image.type
        image.shape = ir.Shape([image.shape[place] for place in TO_FIRST])
        graph.insert_before(min((use.node for use in uses), key=graph.index), turned)
        for use in uses:
            use.node.replace_input_with(use.idx, result)
        changed = True
    changed |= push_transposes(graph)
    if changed:
        RemoveUnusedNodesPass()(model)
        clear_shapes(model)  # of the other layout
        infer(model)
    return changed


def _drop_casts(graph: ir.Graph, image: ir.Value) -> None:
    """Remove the Casts that made floats of pixels, behind operators that only move them."""
    waiting = [image]
    while waiting:
        value = waiting.pop()
        for use in list(value.uses()):
            node = use.node
            if node.op_type == "Cast":
                if node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
                    ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
                    graph.remove(node, safe=True)
            elif node.op_type in MOVES and use.idx == 0:
                for output in node.outputs:
                    output.dtype = ir.DataType.FLOAT
                    waiting.append(output)
            elif node.op_type != "Shape":
                raise ModelError(
                    f"'{image.name}' is uint8 and read by node '{node.name}' ({node.op_type}); a Cast to "
                    "float is expected",
                    hint="export the network with a float32 input",
                )
