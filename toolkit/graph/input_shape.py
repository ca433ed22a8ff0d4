"""Image size of a graph that leaves it open, fixed on request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeship.toolkit.core.tensors import Size, sides
from edgeship.toolkit.graph.shapes import forget_shapes, infer

if TYPE_CHECKING:
    from edgeship.toolkit.graph.io import Classifier


def fix_size(graph: Classifier, size: Size) -> Classifier:
    """Set height and width of the input of a graph that takes (N, C, H, W).

    Args:
        graph: What was read of a file; its model is changed.
        size: In pixels.
    """
    model = graph.model
    image = next(value for value in model.graph.inputs if value.name == graph.input)
    assert image.shape is not None, "a classifier"
    height, width = sides(size)
    forget_shapes(model)
    image.shape = ir.Shape([image.shape[0], graph.channels, height, width])
    infer(model)
    return replace(graph, height=height, width=width)
