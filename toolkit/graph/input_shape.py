"""Batch and image size of a graph: opened or fixed on request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from toolkit.core.tensors import Size, sides
from toolkit.graph.transposes import Names

if TYPE_CHECKING:
    from toolkit.graph.io import Classifier

BATCH = "batch"  # name of the dynamic dimension


def with_input_shape(graph: Classifier, batch: int | None, size: Size | None) -> Classifier:
    """Set the input of a graph that takes (N, C, H, W) to a batch and an image size.

    Args:
        graph: What was read of a file; its model is changed.
        batch: Images of one inference; None: any number.
        size: In pixels; None: any.
    """
    model = graph.model
    image = next(value for value in model.graph.inputs if value.name == graph.input)
    open_batch(model, image)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None  # inferred anew
    height, width = sides(size) if size is not None else (None, None)
    first = BATCH if batch is None else batch
    image.shape = ir.Shape([first, graph.channels, height or "height", width or "width"])
    model.graph.outputs[0].shape = ir.Shape([first, graph.classes])
    ShapeInferencePass()(model)
    return replace(graph, batch=batch, height=height, width=width)


def open_batch(model: ir.Model, image: ir.Value) -> None:
    """Have every Reshape that writes the fixed batch of a graph copy it from its input instead.

    The graph computes the same; with another batch in the shape of its input it is right, too.

    Args:
        model: A graph with inferred shapes and constants as initializers; it is changed.
        image: Its image input.

    Source:
        ONNX operators, Reshape: a zero copies the dimension of the input.
    """
    batch = image.shape[0] if image.shape is not None and len(image.shape) else None
    if not isinstance(batch, int):
        return
    names = Names(model.graph)
    for node in model.graph:
        if node.op_type != "Reshape" or node.attributes.get_int("allowzero", 0) != 0 or len(node.inputs) < 2:
            continue
        before, wanted = node.inputs
        if before is None or before.shape is None or wanted is None or wanted.const_value is None:
            continue
        sizes = wanted.const_value.numpy().astype(np.int64).reshape(-1)
        if not len(sizes) or not len(before.shape) or (before.shape[0], sizes[0]) != (batch, batch):
            continue
        value = ir.Value(
            name=names.new(f"{node.outputs[0].name}/shape"),
            const_value=ir.tensor(np.array([0, *sizes[1:]], np.int64)),
        )
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)
