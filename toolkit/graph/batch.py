"""Graphs exported for a fixed number of images: what writes that number down is made to copy it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


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
            name=f"{node.outputs[0].name}/shape",
            const_value=ir.tensor(np.array([0, *sizes[1:]], np.int64)),
        )
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)
