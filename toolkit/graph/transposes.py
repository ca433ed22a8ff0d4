"""Propagation of Transposes of feature maps towards the output, where pairs of them cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.graph.edit import Names, add_constant

UNARY = frozenset(  # elementwise in the first input; other inputs are scalars
    {
        *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Clip", "Sigmoid", "HardSigmoid"),
        *("HardSwish", "Softplus", "Softsign", "Tanh", "Mish", "Gelu", "Erf", "Abs", "Neg", "Exp", "Log"),
        *("Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Cast", "Dropout", "Identity"),
    }
)
BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean", "Pow", "PRelu"})
REDUCE = frozenset(
    {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2"}
)
RANK = 4
Permutation = tuple[int, ...]
Array = np.ndarray[Any, Any]


def push_transposes(graph: ir.Graph) -> bool:
    """Move every Transpose of a feature map (N, ...) after its consumer, where the operator allows it.

    An operator moves before the transposes of its inputs if all have the same permutation; constants are
    permuted inversely. Two transposes in a row become one or none; one of 1 x 1 maps before a reshape is
    dropped. Operators along other axes (MatMul, a Reshape of whole maps) block the propagation.

    Args:
        graph: A graph with inferred shapes and constants as initializers; changed to an equivalent one.

    Returns:
        True if the graph was changed.

    Source:
        ONNX operators, Transpose: output dimension i is input dimension perm[i].
    """
    changed, names = False, Names(graph)
    for node in list(graph):  # in topological order: a transpose moves past several operators
        if node.graph is None:
            continue
        if node.op_type == "Transpose":
            changed |= _merge_pair(graph, node)
        else:
            permutation = _common_permutation(graph, node, names)
            if permutation is not None:
                changed |= _push(graph, node, permutation, names)
    return changed


def permutation_of(value: ir.Value | None) -> Permutation | None:
    """Return the permutation of the Transpose that produces a value (N, three axes); None without one."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return None
    perm = node.attributes.get_ints("perm", None)
    return tuple(perm) if perm is not None and len(perm) == RANK and perm[0] == 0 else None


def _common_permutation(graph: ir.Graph, node: ir.Node, names: Names) -> Permutation | None:
    """Return the common permutation of all non-constant inputs of a node; None without one.

    For a vector (N, 1, 1, C), e.g. of squeeze-and-excitation, an inverse pair of Transposes is inserted.
    """
    values = [value for value in node.inputs if value is not None and value.const_value is None]
    permutations = {permutation_of(value) for value in values}
    if node.op_type in BROADCAST and len(permutations) == 2 and None in permutations:
        vectors = [value for value in values if permutation_of(value) is None]
        perm = next(each for each in permutations if each is not None)
        if all(map(_is_vector, vectors)):
            for value in vectors:
                _insert_inverse_pair(graph, node, value, perm, names)
            return perm
    return permutations.pop() if len(permutations) == 1 else None


def _is_vector(value: ir.Value) -> bool:
    """Return True if at most one axis of a value (N, three axes) is longer than 1."""
    shape = value.shape
    return shape is not None and len(shape) == RANK and sum(dim != 1 for dim in list(shape)[1:]) <= 1


def _insert_inverse_pair(
    graph: ir.Graph, node: ir.Node, value: ir.Value, perm: Permutation, names: Names
) -> None:
    """Insert two transposes that cancel, the second with `perm`, before a node's input."""
    for permutation in (np.argsort(perm).tolist(), list(perm)):
        transpose = ir.node(
            "Transpose", [value], {"perm": permutation}, name=names.new(f"{value.name}/transpose")
        )
        transpose.outputs[0].name = transpose.name
        transpose.outputs[0].type = value.type
        if value.shape is not None:
            transpose.outputs[0].shape = ir.Shape([value.shape[axis] for axis in permutation])
        graph.insert_before(node, transpose)
        for position, input_value in enumerate(node.inputs):
            if input_value is value:
                node.replace_input_with(position, transpose.outputs[0])
        value = transpose.outputs[0]


def _merge_pair(graph: ir.Graph, node: ir.Node) -> bool:
    """Merge two Transposes in a row into one or none."""
    first, second = permutation_of(node.inputs[0]), permutation_of(node.outputs[0])
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if first is None or second is None or source is None or source.inputs[0] is None:
        return False
    data = source.inputs[0]
    both = tuple(first[axis] for axis in second)
    if both == tuple(range(RANK)) and not (data.is_graph_input() and node.outputs[0].is_graph_output()):
        name, is_output = node.outputs[0].name, node.outputs[0].is_graph_output()
        ir.convenience.replace_all_uses_with(node.outputs[0], data, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        if is_output:
            data.name = name
    else:
        node.replace_input_with(0, data)
        node.attributes["perm"] = ir.AttrInt64s("perm", both)
    return True


def _push(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    """Move a node before the transposes of its inputs; return False if the operator does not allow it."""
    if node.op_type in UNARY and _are_scalars(node.inputs[1:]):
        return _swap_with_transpose(graph, node, perm, names)
    if node.op_type in BROADCAST:
        return _push_broadcast(graph, node, perm, names)
    if node.op_type in {"Concat", "Split", "Softmax", "LogSoftmax", "Gather"}:
        return _push_along_axis(graph, node, perm, names)
    if node.op_type == "Slice":
        return _push_slice(graph, node, perm, names)
    if node.op_type == "Pad":
        return _push_pad(graph, node, perm, names)
    if node.op_type in REDUCE or node.op_type == "Squeeze":
        return _push_reduction(graph, node, perm, names)
    if node.op_type in {"Reshape", "Flatten"}:
        return _drop_before_reshape(node, perm)
    return False


def _are_scalars(values: Sequence[ir.Value | None]) -> bool:
    return all(
        value is None or (value.const_value is not None and value.const_value.size == 1) for value in values
    )


def _swap_with_transpose(
    graph: ir.Graph,
    node: ir.Node,
    perm: Permutation,
    names: Names,
    constants: Callable[[Array], Array] | None = None,
    output_perm: Permutation | None = None,
) -> bool:
    """Bypass the transposes of a node's inputs, and transpose its outputs instead.

    `constants` permutes its constant inputs; `output_perm` is the permutation of the outputs if different.
    """
    for position, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.const_value is None:
            source = value.producer()
            assert source is not None
            node.replace_input_with(position, source.inputs[0])
        elif constants is not None and value.const_value.size > 1:
            array = constants(np.asarray(value.const_value.numpy()))
            node.replace_input_with(position, add_constant(graph, f"{value.name}/turned", array, names))
    output_perm = perm if output_perm is None else output_perm
    if output_perm == tuple(range(len(output_perm))):
        return True
    for output in node.outputs:
        uses, is_output, name = list(output.uses()), output.is_graph_output(), str(output.name)
        if not uses and not is_output:
            continue
        transpose = ir.node(
            "Transpose", [output], {"perm": list(output_perm)}, name=names.new(f"{name}/transpose")
        )
        result = transpose.outputs[0]
        result.shape, result.type = output.shape, output.type
        if output.shape is not None:
            output.shape = ir.Shape(
                [output.shape[output_perm.index(axis)] for axis in range(len(output_perm))]
            )
        graph.insert_after(node, transpose)
        if is_output:
            graph.outputs[graph.outputs.index(output)] = result
        for use in uses:
            use.node.replace_input_with(use.idx, result)
        output.name = names.new(f"{name}/turned")
        result.name = name
    return True


def _push_broadcast(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    constants = [value for value in node.inputs if value is not None and value.const_value is not None]
    if any(len(value.const_value.shape) > RANK for value in constants):  # type: ignore[union-attr]
        return False

    def permuted(array: Array) -> Array:
        full = array.reshape((1,) * (RANK - array.ndim) + array.shape)
        return np.ascontiguousarray(full.transpose(np.argsort(perm)))

    return _swap_with_transpose(graph, node, perm, names, permuted)


def _push_along_axis(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    """Push through operators with one axis: Concat, Split, Softmax, and Gather of a list."""
    if node.op_type == "Gather":
        index = node.inputs[1]
        if index is None or index.const_value is None or len(index.const_value.shape) != 1:
            return False
    if node.op_type == "Concat" and any(
        value is None or value.const_value is not None for value in node.inputs
    ):
        return False
    default = 0 if node.op_type in {"Split", "Gather"} else -1
    axis = node.attributes.get_int("axis", default)
    node.attributes["axis"] = ir.AttrInt64("axis", perm[axis % RANK])
    return _swap_with_transpose(graph, node, perm, names)


def _push_slice(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    starts, axes = _integers(node.inputs[1]), [*node.inputs, None, None][3]
    sliced_axes = list(range(len(starts))) if starts is not None and axes is None else _integers(axes)
    if sliced_axes is None:
        return False
    permuted = np.array([perm[axis % RANK] for axis in sliced_axes], np.int64)
    node.resize_inputs(max(len(node.inputs), 4))
    node.replace_input_with(3, add_constant(graph, f"{node.name}/axes", permuted, names))
    return _swap_with_transpose(graph, node, perm, names)


def _push_pad(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    inputs = [*node.inputs, None, None, None][:4]
    pads, axes = inputs[1], inputs[3]
    if pads is None or pads.const_value is None or not _are_scalars([inputs[2]]):
        return False
    padded_axes = range(RANK) if axes is None else _integers(axes)
    if padded_axes is None:
        return False
    amounts = np.asarray(pads.const_value.numpy()).reshape(2, -1)
    full = np.zeros((2, RANK), np.int64)
    for column, axis in enumerate(padded_axes):
        full[:, perm[axis % RANK]] = amounts[:, column]
    node.replace_input_with(1, add_constant(graph, f"{pads.name}/turned", full.reshape(-1), names))
    if axes is not None:
        node.resize_inputs(3)
    return _swap_with_transpose(graph, node, perm, names)


def _push_reduction(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    """Push through reductions and Squeeze; no Transpose remains if the remaining axes are in order."""
    attribute = node.attributes.get_ints("axes", None)
    axes_input = node.inputs[1] if len(node.inputs) > 1 else None
    reduced_axes = attribute if axes_input is None else _integers(axes_input)
    if reduced_axes is None:
        return False
    axes = sorted(perm[axis % RANK] for axis in reduced_axes)
    if axes_input is None:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    else:
        node.replace_input_with(
            1, add_constant(graph, f"{axes_input.name}/turned", np.array(axes, np.int64), names)
        )
    if node.op_type != "Squeeze" and node.attributes.get_int("keepdims", 1) != 0:
        return _swap_with_transpose(graph, node, perm, names)
    remaining = [axis for axis in perm if axis not in axes]
    output_perm = tuple(sorted(remaining).index(axis) for axis in remaining)
    return _swap_with_transpose(graph, node, perm, names, output_perm=output_perm)


def _drop_before_reshape(node: ir.Node, perm: Permutation) -> bool:
    """Drop a Transpose before a reshape if it moves only axes of length 1."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    data = source.inputs[0] if source is not None else None
    shape = data.shape if data is not None else None
    if shape is None or data is None:
        return False
    longer = [axis for axis in perm if shape[axis] != 1]
    if longer != sorted(longer):
        return False
    if node.op_type == "Flatten":
        if node.attributes.get_int("axis", 1) != 1:
            return False
    else:
        sizes = _integers(node.inputs[1])
        if sizes is None or 0 in sizes[1:] or node.attributes.get_int("allowzero", 0) != 0:
            return False
    node.replace_input_with(0, data)
    return True


def _integers(value: ir.Value | None) -> list[int] | None:
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().reshape(-1)]
