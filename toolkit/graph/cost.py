"""Cost of a graph: multiply-accumulates and parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeship.toolkit.graph.edit import constant
from edgeship.toolkit.graph.io import read
from edgeship.toolkit.graph.query import before_pair


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates of one image, and number of weights and biases."""

    macs: int
    parameters: int


def cost(path: Path) -> Cost:
    """Count the multiply-accumulates of convolutions and matrix products for one image.

    Raises:
        ModelError: The file cannot be read.
    """
    graph = read(path)
    return Cost(sum(_macs(node) for node in graph.model.graph), graph.parameters)


def cost_shares(path: Path) -> dict[str, float]:
    """Return node name -> share of the network's cost.

    It is the mean of the shares of multiply-accumulates and of memory traffic (weights, input, output),
    since the bottleneck depends on the device.

    Raises:
        ModelError: The file cannot be read.
    """
    layers = {str(node.name): (_macs(node), _values(node)) for node in read(path).model.graph if _macs(node)}
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


def _macs(node: ir.Node) -> int:
    if node.op_type not in {"Conv", "Gemm", "MatMul"}:
        return 0
    weight = before_pair(node.inputs[1])
    if weight is None or weight.const_value is None:
        return 0
    output = node.outputs[0].shape
    positions = (
        math.prod(d for d in output[2:] if isinstance(d, int)) if output and node.op_type == "Conv" else 1
    )
    return int(constant(weight).size) * positions
