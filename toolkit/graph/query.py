"""Queries of a graph: constants, Q/DQ pairs, weights and their axes. Absent inputs are None."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def label(node: ir.Node) -> str:
    """Return the name of a node, else that of its first output."""
    return str(node.name or next((value.name for value in node.outputs), "") or node.op_type)


def input_at(node: ir.Node, place: int) -> ir.Value | None:
    """Return an input of a node; None if it is absent."""
    return node.inputs[place] if place < len(node.inputs) else None


def producer(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes a tensor; None for graph inputs and initializers."""
    return value.producer() if value is not None else None


def array(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Return the array of an initializer; None if the tensor is computed or absent."""
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())


def dtype(value: ir.Value | None) -> str:
    """Return the element type of an initializer, e.g. "int8"; "" if the tensor is computed or absent."""
    stored = array(value)
    return "" if stored is None else str(stored.dtype)


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute of a node; the default if it is absent or of another type."""
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None and attribute.type == ir.AttributeType.INT else default


def is_dequantized(value: ir.Value | None) -> bool:
    """Return True if a DequantizeLinear computes a tensor."""
    node = producer(value)
    return node is not None and node.op_type == DEQUANTIZE


def before_pair(value: ir.Value | None) -> ir.Value | None:
    """Return the tensor before the Q/DQ pair, or before the DQ alone, that computes a tensor; else itself."""
    for kind in (DEQUANTIZE, QUANTIZE):
        node = producer(value)
        if node is not None and node.op_type == kind:
            value = input_at(node, 0)
    return value


def is_constant_weight(value: ir.Value | None) -> bool:
    """Return True for an initializer, also behind Q and DQ."""
    while (node := producer(value)) is not None and node.op_type in (QUANTIZE, DEQUANTIZE):
        value = input_at(node, 0)
    return value is not None and value.const_value is not None


def weight_axis(layer: ir.Node) -> int:
    """Return the output-channel axis of a layer's weights."""
    is_transposed = layer.op_type == "Gemm" and integer(layer, "transB", 0) != 0
    return 0 if layer.op_type == "Conv" or is_transposed else 1
