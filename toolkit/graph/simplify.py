"""Constant folding: constants as initializers, computed shapes as constants, constant branches inlined."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from edgeship.toolkit.graph.edit import Names, add_constant, constant

FOLDED = frozenset(  # operators in computations of paddings, shapes, fills and normalized weights
    {
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare", "BatchNormalization", "InstanceNormalization"),
        *("LayerNormalization", "Abs", "Ceil", "Clip", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal"),
        *("Relu", "Round", "Sigmoid", "Sign", "Softmax", "Softplus", "Sqrt", "Tanh"),
        *("Add", "Div", "Max", "Mean", "Min", "Mod", "Mul", "Pow", "Sub", "Sum", "MatMul", "Gemm", "Einsum"),
        *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Where", "Xor"),
        *("Cast", "CastLike", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad"),
        *("Range", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
GROWING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Einsum"})
MAX_FOLDED_VALUES = 2**27  # largest folded constant: 512 MiB in float32


def fold_constants(model: ir.Model) -> bool:
    """Fold constant subgraphs, static shapes included, into initializers.

    Returns:
        True if a node was folded; shape inference may then find more static shapes.
    """
    changed = False
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    names = Names(model.graph)
    for node in list(model.graph):
        if not any(output.uses() for output in node.outputs):
            continue
        results = _evaluate(node)
        if results is None:
            continue
        changed = True
        for output, array in zip(node.outputs, results, strict=True):
            if output.uses():
                value = add_constant(model.graph, f"{output.name}/constant", array, names)
                ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=False)
    RemoveUnusedNodesPass()(model)
    return changed


def inline_constant_branches(model: ir.Model) -> bool:
    """Replace an If with constant condition, as exported for PyTorch's `squeeze()`, by its branch.

    Returns:
        True if an If was replaced; shape inference may then find more static shapes.
    """
    graph, changed = model.graph, False
    for node in list(graph):
        condition = node.inputs[0] if node.op_type == "If" else None
        if condition is None or condition.const_value is None:
            continue
        changed = True
        name = "then_branch" if condition.const_value.numpy().item() else "else_branch"
        branch = node.attributes[name].as_graph()
        nodes, outputs, constants = (
            list(branch),
            list(branch.outputs),
            list(branch.initializers.values()),
        )
        branch.outputs.clear()
        branch.remove(nodes)
        branch.initializers.clear()
        names = Names(graph)
        for value in constants:
            value.name = names.new(str(value.name))
            graph.register_initializer(value)
        for each in nodes:
            each.name = names.new(str(each.name or each.op_type))
            for value in each.outputs:
                value.name = names.new(str(value.name))
        graph.insert_before(node, nodes)
        for old, new in zip(node.outputs, outputs, strict=True):
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            new.name = old.name
        graph.remove(node, safe=True)
    return changed


def fold_reshape_targets(model: ir.Model) -> None:
    """Replace the computed shape of a Reshape that keeps the batch by a constant.

    `x.view(x.size(0), -1)` is exported as Shape, Gather and Concat; a zero in the shape is equivalent.

    Source:
        ONNX operators, Reshape: a zero copies the dimension of the input.
    """
    for node in list(model.graph):
        if node.op_type != "Reshape" or node.attributes.get_int("allowzero", 0) != 0:
            continue
        if len(node.inputs) < 2:  # before opset 5 the shape is an attribute
            continue
        data, target = node.inputs
        if data is None or target is None or target.const_value is not None or data.shape is None:
            continue
        sizes = _symbolic_sizes(target)
        if sizes is None or any(isinstance(size, str) for size in sizes[len(data.shape) :]):
            continue
        names = [None if isinstance(dim, int) else dim.value for dim in data.shape]
        shape = [
            0 if isinstance(size, str) and size == name else size
            for size, name in zip_longest(sizes, names[: len(sizes)])
        ]
        if any(isinstance(size, str) for size in shape):
            continue
        name = f"{node.outputs[0].name}/shape"
        node.replace_input_with(1, add_constant(model.graph, name, np.array(shape, np.int64)))
    RemoveUnusedNodesPass()(model)


def _symbolic_sizes(value: ir.Value) -> list[int | str] | None:
    """Return the elements of a shape computed from other shapes: numbers, and names of dimensions."""
    if value.const_value is not None:
        return [int(size) for size in constant(value).reshape(-1)]
    node = value.producer()
    first = node.inputs[0] if node is not None and node.inputs else None
    if node is None or first is None:
        return None
    if node.op_type == "Shape" and first.shape is not None and not {"start", "end"} & node.attributes.keys():
        dims = [dim if isinstance(dim, int) else dim.value for dim in first.shape]
        return None if None in dims else [dim for dim in dims if dim is not None]
    if node.op_type in {"Cast", "Unsqueeze", "Squeeze"}:
        return _symbolic_sizes(first)
    if node.op_type == "Concat":
        parts = [None if part is None else _symbolic_sizes(part) for part in node.inputs]
        return None if None in parts else [size for part in parts if part is not None for size in part]
    if node.op_type == "Gather" and (index := node.inputs[1]) is not None and index.const_value is not None:
        sizes = _symbolic_sizes(first)
        return None if sizes is None else [sizes[i] for i in constant(index).reshape(-1)]
    return None


def _evaluate(node: ir.Node) -> list[np.ndarray[Any, Any]] | None:
    """Return the constant results of a node; None if they depend on images or it is not folded."""
    if node.op_type not in FOLDED or node.domain not in {"", "ai.onnx"} or node.graph is None:
        return None
    if node.op_type == "Shape" and node.inputs[0] is not None:
        dims = node.inputs[0].shape
        if dims is None or not all(isinstance(dim, int) for dim in dims):
            return None
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
        return [np.array([int(dim) for dim in dims][start:end], np.int64)]  # type: ignore[arg-type]
    if node.op_type == "Gather" and (sizes := _symbolic_sizes(node.outputs[0])) is not None:
        shape, index = node.inputs
        if shape is not None and index is not None and all(isinstance(size, int) for size in sizes):
            dtype = np.dtype(np.int64) if shape.dtype is None else shape.dtype.numpy()
            return [np.array(sizes, dtype).reshape(constant(index).shape)]
    inputs = [value for value in node.inputs if value is not None]
    if not inputs or any(value.const_value is None or value.is_graph_input() for value in inputs):
        return None
    if not _result_size(node) <= MAX_FOLDED_VALUES:
        return None
    version = node.graph.opset_imports.get("") or onnx.defs.onnx_opset_version()
    submodel = onnx.helper.make_model(
        onnx.helper.make_graph(
            [ir.to_proto(node)],
            "alone",
            [],
            [onnx.helper.make_empty_tensor_value_info(str(v.name)) for v in node.outputs if v.name],
            [onnx.numpy_helper.from_array(constant(value), value.name) for value in inputs],
        ),
        opset_imports=[onnx.helper.make_opsetid("", version)],
    )
    try:
        with np.errstate(all="ignore"):  # `read_classifier` rejects infinite and NaN weights
            results = iter(ReferenceEvaluator(submodel).run(None, {}))
    except Exception:  # an invalid node, reported by shape inference
        return None
    return [np.asarray(next(results)) if value.name else np.empty(0) for value in node.outputs]


def _result_size(node: ir.Node) -> float:
    """Return the number of result values of a node with constant inputs; infinity if unknown."""
    shape = node.outputs[0].shape
    sizes = [dim for dim in shape or () if isinstance(dim, int)]
    if shape is not None and len(sizes) == len(shape):
        return float(math.prod(sizes))
    if node.op_type in GROWING:
        return math.inf
    return float(math.prod(constant(value).size for value in node.inputs if value is not None))
