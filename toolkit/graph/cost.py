"""Cost of a graph: multiply-accumulates and parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeship.toolkit.graph.edit import constant
from edgeship.toolkit.graph.io import Classifier, read
from edgeship.toolkit.graph.query import before_pair


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates of one image, None if sizes are open; and number of weights and biases."""

    macs: int | None
    parameters: int


def cost(path: Path) -> Cost:
    """Count the multiply-accumulates of convolutions and matrix products, attention included, for one image.

    Raises:
        ModelError: The file cannot be read.
    """
    graph = read(path)
    batch = _batch(graph)
    macs = sum(
        count(node, batch, math.nan) for node in graph.model.graph for count in (_macs, _macs_of_activations)
    )
    return Cost(None if math.isnan(macs) else int(macs), graph.parameters)


def cost_shares(path: Path) -> dict[str, float]:
    """Return node name -> share of the network's cost.

    It is the mean of the shares of multiply-accumulates and of memory traffic (weights, input, output),
    since the bottleneck depends on the device. Open sides count as 1.

    Raises:
        ModelError: The file cannot be read.
    """
    graph = read(path)
    counted = ((node, _macs(node, _batch(graph), open_side=1)) for node in graph.model.graph)
    layers = {str(node.name): (macs, _values(node)) for node, macs in counted if macs}
    totals = [sum(column) for column in zip(*layers.values(), strict=True)]
    return {
        name: sum(part / total for part, total in zip(parts, totals, strict=True)) / len(totals)
        for name, parts in layers.items()
    }


def _values(node: ir.Node) -> int:
    """Count the values that a node reads and writes for one image; dynamic dimensions count as 1."""
    tensors = [*(value for value in node.inputs if value is not None), *node.outputs]
    return sum(
        math.prod(d for d in value.shape[(value.const_value is None) :] if isinstance(d, int))
        for value in tensors
        if value.shape is not None
    )


def _macs(node: ir.Node, batch: object, open_side: float) -> float:
    """Count the multiply-accumulates of a node with constant weights for one image; 0 for other nodes."""
    weight = before_pair(node.inputs[1]) if node.op_type in {"Conv", "Gemm", "MatMul"} else None
    if weight is None or weight.const_value is None:
        return 0
    images, *sides = _sides(node.outputs[0], batch, open_side)
    places = sides[1:] if node.op_type == "Conv" else sides[:-1]
    return int(constant(weight).size) * images * math.prod(places)


def _macs_of_activations(node: ir.Node, batch: object, open_side: float) -> float:
    """Count the multiply-accumulates of a product of two activations, as in attention; 0 for other nodes."""
    first, second = node.inputs if node.op_type == "MatMul" else (None, None)
    if first is None or second is None or before_pair(second).const_value is not None:  # type: ignore[union-attr]
        return 0
    return math.prod(_sides(node.outputs[0], batch, open_side)) * _sides(first, batch, open_side)[-1]


def _batch(graph: Classifier) -> object:
    """Return the first dimension of the input: a number or an open side."""
    image = next(value for value in graph.model.graph.inputs if value.name == graph.input)
    return image.shape[0] if image.shape else None


def _sides(value: ir.Value, batch: object, open_side: float) -> list[float]:
    """Return the dimensions of a tensor, the first one for each image of the batch."""
    if value.shape is None:  # four sides, so that each use has an open one
        return [open_side] * 4
    images, *sides = value.shape
    if isinstance(images, int) and isinstance(batch, int):
        whole: float = max(images // batch, 1)
    else:  # as open as the batch, or a product of it that is not known
        whole = 1 if images == batch else open_side
    return [whole, *(side if isinstance(side, int) else open_side for side in sides)]
