"""Edits of a graph: constants, unique names, replacement of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError

EXPORT_AGAIN = "export it again as a float32 image classifier"


class Names:
    """Unique names for new tensors and nodes of a graph, subgraphs included.

    Args:
        graph: The graph; names added later by other means are not tracked.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._used = {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
        for node in ir.traversal.RecursiveGraphIterator(graph):
            self._used.add(str(node.name))
            self._used.update(str(value.name) for value in node.outputs)
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    inner = attribute.as_graph()
                    self._used.update(str(v.name) for v in (*inner.inputs, *inner.initializers.values()))

    def new(self, base: str) -> str:
        """Reserve `base`, or `base` with a numeric suffix if it is used."""
        name = base
        for number in count(1):
            if name not in self._used:
                break
            name = f"{base}_{number}"
        self._used.add(name)
        return name


def constant(value: ir.Value) -> np.ndarray[Any, Any]:
    """Return the array of an initializer.

    Raises:
        ModelError: The tensor is not constant.
    """
    if value.const_value is None:
        raise ModelError(f"'{value.name}' is not a constant; an initializer is expected", hint=EXPORT_AGAIN)
    return np.asarray(value.const_value.numpy())


def set_constant(value: ir.Value, array: np.ndarray[Any, Any]) -> None:
    """Replace the array of an initializer."""
    value.const_value = ir.tensor(array, name=value.name)


def add_constant(
    graph: ir.Graph, name: str, array: np.ndarray[Any, Any], names: Names | None = None
) -> ir.Value:
    """Add an initializer to a graph and return it.

    Args:
        graph: The graph.
        name: Its name; a numeric suffix is added if it is used.
        array: Its values.
        names: Names of the graph, to add several constants.
    """
    name = (names or Names(graph)).new(name)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def add_to_bias(graph: ir.Graph, node: ir.Node, shift: np.ndarray[Any, Any]) -> None:
    """Add a value for each output channel to the bias of a layer; of a layer without one it becomes the bias.

    A bias that other nodes read too is copied. A MatMul has no bias and is not changed.

    Args:
        graph: The graph of the node.
        node: A Conv, Gemm or BatchNormalization.
        shift: One value per output channel.
    """
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and len(bias.consumers()) == 1:
        set_constant(bias, (constant(bias) + shift).astype(np.float32))
    elif node.op_type != "MatMul":
        corrected = shift if bias is None else constant(bias) + shift
        value = add_constant(graph, f"{node.name}/bias", corrected.astype(np.float32))
        inputs = [*node.inputs[:2], value, *node.inputs[3:]]
        attributes = list(node.attributes.values())
        _replace(graph, node, ir.Node(node.domain, node.op_type, inputs, attributes, name=node.name))


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    result, before = new.outputs[0], old.outputs[0]
    result.shape, result.type = before.shape, before.type
    graph.insert_after(old, new)
    before.replace_all_uses_with(result, replace_graph_outputs=True)
    name = before.name
    graph.remove(old, safe=True)
    result.name = name


class Replacement:
    """Replacement of one node by several; the last emitted one computes its result.

    Args:
        graph: The graph.
        node: The node; `finish` removes it.
        names: Names of the graph.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node, names: Names) -> None:
        self._graph, self._node, self._names = graph, node, names
        self._emitted: list[ir.Node] = []

    def emit(
        self, kind: str, inputs: Sequence[ir.Value | None], *, keeps_name: bool = False, **attributes: Any
    ) -> ir.Value:
        """Add a node and return its result; with `keeps_name` it has the name of the replaced node."""
        name = str(self._node.name)
        new = ir.node(kind, inputs, attributes=attributes)
        new.name = name if keeps_name else self._names.new(f"{name}/{kind.lower()}")
        result = new.outputs[0]
        result.name = self._names.new(f"{self._node.outputs[0].name}/{kind.lower()}")
        result.type = self._node.outputs[0].type
        self._emitted.append(new)
        return result

    def constant(self, suffix: str, array: Any) -> ir.Value:
        """Add an initializer."""
        return add_constant(self._graph, f"{self._node.name}/{suffix}", np.asarray(array), self._names)

    def finish(self) -> None:
        """Insert the nodes; the result keeps its name, shape and type."""
        old, new = self._node.outputs[0], self._emitted[-1].outputs[0]
        self._graph.insert_before(self._node, self._emitted)
        new.shape, new.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        name = old.name
        self._graph.remove(self._node, safe=True)
        new.name = name
