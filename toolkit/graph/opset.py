"""Conversion of a graph to an older opset, if every operator has an equivalent form there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.graph.edit import Names, Replacement, add_constant, constant
from edgeship.toolkit.graph.fused import gelu, swish
from edgeship.toolkit.graph.padding import expand_pads

PORTABLE_OPSET = 17  # supported from TensorRT 8.4 on
FLOAT_OPSET = 19  # QuantizeLinear and DequantizeLinear take FP16 and FP8 from here on
FLOAT_IR_VERSION = 9  # of ONNX 1.14, which brought opset 19
IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8}  # opset -> IR version of its first ONNX release
REDUCTIONS = frozenset(
    f"Reduce{kind}"
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)


def downgrade_opset(model: ir.Model, opset: int) -> str | None:
    """Convert a graph to an older opset, completely or not at all.

    Args:
        model: A graph with inferred shapes, constants as initializers; changed.
        opset: The opset, 13 or newer.

    Returns:
        The operator without a form there, as "OPERATOR (node 'NAME')"; None after a conversion.

    Source:
        ONNX Operator Changelog; the definitions of the installed onnx package.
    """
    source = model.graph.opset_imports.get("", opset)
    if source <= opset:
        return None
    trial = model.clone()
    if (unsupported := _convert(trial, source, opset)) is not None:
        return unsupported
    _convert(model, source, opset)
    for graph in model.graphs():
        graph.opset_imports[""] = opset
    model.ir_version = min(model.ir_version or IR_VERSIONS[17], IR_VERSIONS.get(opset, IR_VERSIONS[17]))
    return None


def raise_opset(model: ir.Model) -> None:
    """Raise the opset to 19; axes of reductions and the parts of a Split changed in opset 18.

    Source:
        ONNX Operator Changelog, opset 18.
    """
    graph, names = model.graph, Names(model.graph)
    opset = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))
    for node in list(graph) if opset < 18 else ():
        if node.op_type in REDUCTIONS - {"ReduceSum"} and "axes" in node.attributes:
            axes = np.array(node.attributes.pop("axes").as_ints(), np.int64)
            node.resize_inputs(2)
            node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}_axes", axes, names))
        if node.op_type == "Split" and len(node.inputs) == 1:
            node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    for domain in graph.opset_imports:
        if domain in ("", "ai.onnx"):
            graph.opset_imports[domain] = max(opset, FLOAT_OPSET)
    model.ir_version = max(model.ir_version or 0, FLOAT_IR_VERSION)


def _convert(model: ir.Model, source: int, opset: int) -> str | None:
    names = Names(model.graph)
    for node in list(model.graph):
        expand = _EXPANSIONS.get(node.op_type)
        if expand is None or node.domain not in {"", "ai.onnx"} or opset >= expand[0]:
            continue
        replacement = Replacement(model.graph, node, names)
        if not expand[1](node, replacement):
            return f"{node.op_type} (node '{node.name}')"
        replacement.finish()
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain in {"", "ai.onnx"} and not _convert_node(model.graph, node, source, opset, names):
            return f"{node.op_type} (node '{node.name}')"
    return None


def _convert_node(graph: ir.Graph, node: ir.Node, source: int, opset: int, names: Names) -> bool:
    """Convert one node to the older opset; return False without an equivalent form."""
    from onnx import defs

    try:
        newer = defs.get_schema(node.op_type, max_inclusive_version=source)
        older = defs.get_schema(node.op_type, max_inclusive_version=opset)
    except defs.SchemaError:
        return False
    if newer.since_version == older.since_version:
        return True
    change = _CHANGES.get(node.op_type)
    if change is not None and not change(graph, node, opset, names):
        return False
    _trim_inputs(node)
    for name, attribute in list(node.attributes.items()):
        if name in older.attributes:
            continue
        if attribute.value != _default(newer, name):
            return False
        del node.attributes[name]
    for name in set(newer.attributes) & set(older.attributes) - set(node.attributes):
        if _default(newer, name) != _default(older, name):
            return False
    required = (name for name, attribute in older.attributes.items() if attribute.required)
    return len(node.inputs) <= older.max_input and all(name in node.attributes for name in required)


def _default(schema: Any, name: str) -> Any:
    """Return the default of an attribute; None without one."""
    from onnx import helper

    default = schema.attributes[name].default_value if name in schema.attributes else None
    if default is None or not default.name:
        return None
    value = helper.get_attribute_value(default)
    return value.decode() if isinstance(value, bytes) else value


def _trim_inputs(node: ir.Node) -> None:
    """Remove absent inputs at the end."""
    count = len(node.inputs)
    while count and node.inputs[count - 1] is None:
        count -= 1
    if count < len(node.inputs):
        node.resize_inputs(count)


def _reduction(graph: ir.Graph, node: ir.Node, opset: int, names: Names) -> bool:
    """Move the axes of a reduction from an input to an attribute."""
    del graph, names
    if opset >= (13 if node.op_type == "ReduceSum" else 18):
        return True
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None and (axes.const_value is None or axes.dtype != ir.DataType.INT64):
        return False
    numbers = [] if axes is None else [int(axis) for axis in constant(axes).reshape(-1)]
    if not numbers and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return False
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)
    if numbers:
        node.attributes["axes"] = ir.AttrInt64s("axes", numbers)
    return True


def _split(graph: ir.Graph, node: ir.Node, opset: int, names: Names) -> bool:
    """Replace the number of parts of a Split by their sizes."""
    del opset
    attribute, data = node.attributes.get("num_outputs"), node.inputs[0]
    if attribute is None or (len(node.inputs) > 1 and node.inputs[1] is not None):
        return True
    axis = int(node.attributes.get_int("axis", 0))
    size = data.shape[axis] if data is not None and data.shape is not None else None
    if not isinstance(size, int) or node.graph is not graph:
        return False
    parts = attribute.as_int()
    part_size = -(-size // parts)
    sizes = np.array([*[part_size] * (parts - 1), size - part_size * (parts - 1)], np.int64)
    node.resize_inputs(2)
    node.replace_input_with(1, add_constant(graph, f"{node.name}/split", sizes, names))
    del node.attributes["num_outputs"]
    return True


def _pad(graph: ir.Graph, node: ir.Node, opset: int, names: Names) -> bool:
    """Expand the pads of a Pad to every axis."""
    del opset, names
    if node.graph is graph:
        expand_pads(graph, node)
    return node.attributes.get_string("mode", "constant") != "wrap"


def _average_pool(graph: ir.Graph, node: ir.Node, opset: int, names: Names) -> bool:
    """Remove dilations of 1."""
    del graph, opset, names
    dilations = node.attributes.get("dilations")
    if dilations is not None and set(dilations.as_ints()) == {1}:
        del node.attributes["dilations"]
    return True


def _resize(graph: ir.Graph, node: ir.Node, opset: int, names: Names) -> bool:
    del graph, opset, names
    return node.attributes.get_string("coordinate_transformation_mode", "") != "half_pixel_symmetric"


def _grid_sample(graph: ir.Graph, node: ir.Node, opset: int, names: Names) -> bool:
    del graph, names
    old = {"linear": "bilinear", "cubic": "bicubic"}
    mode = node.attributes.get_string("mode", "linear") or "linear"
    if opset < 20:
        node.attributes["mode"] = ir.AttrString("mode", old.get(mode, mode))
    return True


def _expand_gelu(node: ir.Node, new: Replacement) -> bool:
    assert node.inputs[0] is not None, "a valid Gelu"
    gelu(node.inputs[0], new, tanh=node.attributes.get_string("approximate", "none") == "tanh")
    return True


def _expand_swish(node: ir.Node, new: Replacement) -> bool:
    assert node.inputs[0] is not None, "a valid Swish"
    swish(node.inputs[0], new, node.attributes.get_float("alpha", 1.0))
    return True


def _expand_mish(node: ir.Node, new: Replacement) -> bool:
    x = node.inputs[0]
    new.emit("Mul", [x, new.emit("Tanh", [new.emit("Softplus", [x])])])
    return True


def _expand_group_norm(node: ir.Node, new: Replacement) -> bool:
    """Emit GroupNormalization as InstanceNormalization of the groups, as exporters did before opset 18."""
    x, scale, bias = node.inputs[:3]
    shape = list(x.shape or ()) if x is not None else []
    sides = [dim for dim in shape[1:] if isinstance(dim, int)]
    if scale is None or bias is None or len(sides) < 2 or len(sides) < len(shape) - 1:
        return False
    if scale.const_value is None or bias.const_value is None:
        return False
    groups, channels = node.attributes["num_groups"].as_int(), sides[0]
    factors = [constant(each) for each in (scale, bias)]
    factors = [each if each.size == channels else np.repeat(each, channels // groups) for each in factors]
    grouped = new.emit("Reshape", [x, new.constant("groups", np.array([0, groups, -1], np.int64))])
    plain = [
        new.constant("ones", np.ones(groups, np.float32)),
        new.constant("zeros", np.zeros(groups, np.float32)),
    ]
    epsilon = float(node.attributes.get_float("epsilon", 1e-5))
    normal = new.emit("InstanceNormalization", [grouped, *plain], epsilon=epsilon)
    back = new.emit("Reshape", [normal, new.constant("shape", np.array([0, *sides], np.int64))])
    rows = [each.reshape(-1, *[1] * (len(sides) - 1)) for each in factors]
    scaled = new.emit("Mul", [back, new.constant("scale", rows[0])])
    new.emit("Add", [scaled, new.constant("bias", rows[1])])
    return True


_EXPANSIONS: dict[
    str, tuple[int, Callable[[ir.Node, Replacement], bool]]
] = {  # operator -> (its first opset, expansion)
    "Gelu": (20, _expand_gelu),
    "Swish": (24, _expand_swish),
    "Mish": (18, _expand_mish),
    "GroupNormalization": (21, _expand_group_norm),
}
_CHANGES: dict[str, Callable[[ir.Graph, ir.Node, int, Names], bool]] = {
    **dict.fromkeys(REDUCTIONS, _reduction),
    "Split": _split,
    "Pad": _pad,
    "AveragePool": _average_pool,
    "Resize": _resize,
    "GridSample": _grid_sample,
}
