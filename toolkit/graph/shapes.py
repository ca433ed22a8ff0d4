"""Shape and type inference of a graph from its inputs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgeship.toolkit.core.errors import ModelError

MAX_TENSOR_VALUES = 2**28  # largest tensor: 1 GiB in float32


def mark_dynamic_dimensions(model: ir.Model) -> None:
    """Make dimensions below 1 dynamic (some exporters write -1 or 0), and name an unnamed batch."""
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)):
        if value.shape is None:
            continue
        dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        dims = [None if (isinstance(dim, int) and dim < 1) or dim == "" else dim for dim in dims]
        if value in graph.inputs and dims and dims[0] is None:
            dims[0] = "batch"
        value.shape = ir.Shape(dims)


def clear_shapes(model: ir.Model) -> None:
    """Remove the shapes of all results but the outputs; `infer` keeps declared shapes it cannot infer."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def infer(model: ir.Model) -> None:
    """Infer the shape and type of every result; keep declared ones that cannot be inferred.

    Raises:
        ModelError: A tensor has more than `MAX_TENSOR_VALUES` values.
    """
    declared = [(value, value.shape, value.type) for node in model.graph for value in node.outputs]
    for value, _, _ in declared:
        value.shape, value.type = None, None
    with _failures() as failures:
        ShapeInferencePass()(model)
        if failures:  # an invalid or non-standard node
            ShapeInferencePass(check_type=False, strict_mode=False)(model)
    fixed = all(value.shape and isinstance(value.shape[0], int) for value in model.graph.inputs)
    for value, shape, kind in declared:
        if value.shape is None:
            value.shape = shape if fixed or not shape else ir.Shape([None, *list(shape)[1:]])
        value.type = kind if value.type is None else value.type
    for value in (*model.graph.inputs, *(value for value, _, _ in declared)):
        _check_size(value)


def _check_size(value: ir.Value) -> None:
    sizes = [dim for dim in value.shape or () if isinstance(dim, int)]
    if math.prod(sizes) > MAX_TENSOR_VALUES:
        raise ModelError(
            f"tensor '{value.name}' of shape {sizes} has {math.prod(sizes):.1e} values, more than "
            f"{MAX_TENSOR_VALUES:.1e}",
            hint="export it for smaller images or a smaller batch",
        )


@contextmanager
def _failures() -> Iterator[list[str]]:
    """Collect the messages of the pass instead of logging them with tracebacks."""
    messages: list[str] = []
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")

    def collect(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    logger.addFilter(collect)
    try:
        yield messages
    finally:
        logger.removeFilter(collect)
