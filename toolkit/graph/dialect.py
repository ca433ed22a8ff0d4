"""What old and hand-made files say, said as today's exporters do."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    InlinePass,
    RemoveInitializersFromInputsPass,
    TopologicalSortPass,
)

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph.edit import Names

QUANTIZABLE_OPSET = 13  # brought scales by channel, which no graph of an older one may have
_IR_VERSION = 7  # of ONNX 1.8, which brought opset 13; from 4 on an initializer need not be an input
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def settle(model: ir.Model, *, raised: bool) -> ir.Model:
    """Functions inlined, sums by Add, nodes in order and each with its own name.

    Initializers are constants afterwards, and no longer inputs that a caller may replace.

    Args:
        model: Any graph; it may be changed.
        raised: Whether to raise it to opset 13, if it is of an older one.

    Raises:
        ModelError: An operator has no counterpart in opset 13.
    """
    if model.functions:
        model = InlinePass()(model).model
    TopologicalSortPass()(model)
    RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version or 0, _IR_VERSION)
    if raised:
        model = _raised(model)
    _sums_to_adds(model.graph)
    drop_identities(model)
    names, seen = Names(model.graph), set()
    for node in model.graph:
        if not node.name or node.name in seen:
            node.name = names.new(f"{node.op_type}/{node.outputs[0].name}")
        seen.add(node.name)
    return model


def drop_identities(model: ir.Model) -> None:
    """Have readers of an Identity read its input."""
    if not any(node.op_type in _CONTROL for node in model.graph):  # it would empty what these contain
        IdentityEliminationPass()(model)


def _raised(model: ir.Model) -> ir.Model:
    opset = model.graph.opset_imports.get("", QUANTIZABLE_OPSET)
    if opset >= QUANTIZABLE_OPSET:
        return model
    ir.external_data.load_to_model(model)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), QUANTIZABLE_OPSET)
    except Exception as error:  # the converter raises RuntimeError, IndexError, ... by operator
        raise ModelError(
            f"opset {opset} cannot be raised to {QUANTIZABLE_OPSET}: {str(error).splitlines()[0]}",
            hint=f"export the model again with opset {QUANTIZABLE_OPSET} or newer",
        ) from error
    return ir.serde.deserialize_model(proto)


def _sums_to_adds(graph: ir.Graph) -> None:
    """Add two by two what residual networks from Caffe add at once: every runtime fuses an Add."""
    names = Names(graph)
    for node in list(graph):
        if node.op_type != "Sum" or len(node.inputs) < 2:
            continue
        old, last = node.outputs[0], len(node.inputs) - 1
        so_far = node.inputs[0]
        for place, value in enumerate(node.inputs[1:], 1):
            add = ir.node("Add", [so_far, value], name=node.name if place == last else None)
            if place != last:
                add.name = names.new(f"{node.name}/{place}")
            graph.insert_before(node, add)
            total = so_far = add.outputs[0]
            total.name, total.shape, total.type = names.new(f"{old.name}/{place}"), old.shape, old.type
        ir.convenience.replace_all_uses_with(old, total, replace_graph_outputs=True)
        total.name = old.name
        graph.remove(node, safe=True)
