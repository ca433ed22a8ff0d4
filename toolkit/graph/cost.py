"""What a graph costs: multiply-accumulates and parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from toolkit.graph.io import constant, read


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates of one image, and float parameters."""

    macs: int
    parameters: int


def cost(path: Path) -> Cost:
    """Count the multiply-accumulates of convolutions and matrix products for one image.

    Raises:
        ModelError: The file cannot be read.
    """
    found = read(path)
    return Cost(sum(_macs(node) for node in found.model.graph), found.parameters)


def _macs(node: ir.Node) -> int:
    if node.op_type not in {"Conv", "Gemm", "MatMul"}:
        return 0
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return 0
    output = node.outputs[0].shape
    positions = (
        math.prod(d for d in output[2:] if isinstance(d, int)) if output and node.op_type == "Conv" else 1
    )
    return int(constant(weight).size) * positions
