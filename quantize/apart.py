"""Layers in float read tensors as they were made, while others read them quantized."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass

from quantize.placement import Placement, is_weighted
from toolkit.graph import io


def separate(model: ir.Model, placement: Placement) -> ir.Model:
    """Give layers in float inputs and weights of their own, where quantized ones share them.

    A tensor that is quantized for some keeps its name behind an Identity; before it, `<name>/exact` is what
    layers in float read. So whoever quantizes by name, a simulation or a graph, leaves these alone. Images
    are the exception: a graph's input cannot get another name, so that all who read them read alike.

    Args:
        model: A float graph; it stays as it is.
        placement: What is quantized of it.

    Returns:
        A graph that computes the same.
    """
    if not placement.float_layers:
        return model
    changed = io.copy(model)
    graph = changed.graph
    for node in [node for node in graph if str(node.name) in placement.float_layers and is_weighted(node)]:
        source, weight = node.inputs[0], node.inputs[1]
        if source is not None and str(source.name) in placement.activations and source.producer() is not None:
            node.replace_input_with(0, _exact(graph, source))
        if weight is not None and str(weight.name) in placement.weights:
            name = f"{weight.name}/exact"
            own = graph.initializers.get(name) or io.add_constant(graph, name, io.constant(weight))
            node.replace_input_with(1, own)
    return changed


def joined(model: ir.Model) -> ir.Model:
    """The graph without the Identity nodes that kept readers apart."""
    IdentityEliminationPass()(model)
    return model


def _exact(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A tensor before the Identity that keeps it from those that read it quantized."""
    producer = value.producer()
    assert producer is not None, "images are read alike"
    if producer.op_type == "Identity" and str(producer.inputs[0].name).endswith("/exact"):  # type: ignore[union-attr]
        return producer.inputs[0]  # type: ignore[return-value]
    name, users = str(value.name), list(value.uses())
    value.name = f"{name}/exact"
    identity = ir.node("Identity", [value], name=f"{name}/read")
    read = identity.outputs[0]
    read.name, read.shape, read.type = name, value.shape, value.type
    graph.insert_after(producer, identity)
    for use in users:
        use.node.replace_input_with(use.idx, read)
    return value
