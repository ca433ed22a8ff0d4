"""Static image size for a graph with dynamic height or width."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeship.toolkit.core.tensors import Size, sides
from edgeship.toolkit.graph.shapes import clear_shapes, infer

if TYPE_CHECKING:
    from edgeship.toolkit.graph.io import Classifier


def fix_size(graph: Classifier, size: Size) -> Classifier:
    """Set height and width of the input of a graph with input (N, C, H, W).

    Args:
        graph: The classifier; its model is changed.
        size: Height and width in pixels.
    """
    model = graph.model
    image = next(value for value in model.graph.inputs if value.name == graph.input)
    assert image.shape is not None, "a classifier"
    height, width = sides(size)
    clear_shapes(model)
    image.shape = ir.Shape([image.shape[0], graph.channels, height, width])
    infer(model)
    return replace(graph, height=height, width=width)
