"""Canonical form of old and hand-made files: functions inlined, sorted nodes, opset 13, unique names."""

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

QUANTIZABLE_OPSET = 13  # the first with per-channel scales
_IR_VERSION = 7  # of ONNX 1.8 with opset 13; from 4 on an initializer need not be an input
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def canonicalize(model: ir.Model, *, raised: bool) -> ir.Model:
    """Inline functions, write Sum as Add, sort nodes, give them unique names, make initializers constant.

    Args:
        model: Any graph; it may be changed.
        raised: Whether to convert an older opset to 13.

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
    names, used = Names(model.graph), set()
    for node in model.graph:
        if not node.name or node.name in used:
            node.name = names.new(f"{node.op_type}/{node.outputs[0].name}")
        used.add(node.name)
    return model


def drop_identities(model: ir.Model) -> None:
    """Remove Identity nodes."""
    if not any(node.op_type in _CONTROL for node in model.graph):  # the pass would empty their subgraphs
        IdentityEliminationPass()(model)


def _raised(model: ir.Model) -> ir.Model:
    opset = model.graph.opset_imports.get("", QUANTIZABLE_OPSET)
    if opset >= QUANTIZABLE_OPSET:
        return model
    ir.external_data.load_to_model(model)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), QUANTIZABLE_OPSET)
    except Exception as error:  # the converter raises many types, e.g. RuntimeError and IndexError
        raise ModelError(
            f"opset {opset} cannot be raised to {QUANTIZABLE_OPSET}: {str(error).splitlines()[0]}",
            hint=f"export it again with opset {QUANTIZABLE_OPSET} or newer",
        ) from error
    return ir.serde.deserialize_model(proto)


def _sums_to_adds(graph: ir.Graph) -> None:
    """Replace the n-ary Sum (of residual networks from Caffe) by binary Adds, which every runtime fuses."""
    names = Names(graph)
    for node in list(graph):
        if node.op_type != "Sum" or len(node.inputs) < 2:
            continue
        old, final = node.outputs[0], len(node.inputs) - 1
        partial = node.inputs[0]
        for position, value in enumerate(node.inputs[1:], 1):
            add = ir.node("Add", [partial, value], name=node.name if position == final else None)
            if position != final:
                add.name = names.new(f"{node.name}/{position}")
            graph.insert_before(node, add)
            result = partial = add.outputs[0]
            result.name, result.shape, result.type = names.new(f"{old.name}/{position}"), old.shape, old.type
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        result.name = old.name
        graph.remove(node, safe=True)
