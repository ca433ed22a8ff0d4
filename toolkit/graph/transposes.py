"""Transposes of feature maps moved towards the output, where pairs of them cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.graph.edit import Names

UNARY = frozenset(  # one output value for each input value; more inputs are single numbers
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
    """Move every Transpose of a feature map (N, ...) behind the operator that reads it, where it can be.

    An operator moves in front of the transposes of its inputs if all of these are the same, and constants
    are turned the other way. Two transposes in a row become one or none; one whose maps are 1 x 1 in front
    of a reshape is dropped. What computes along other axes (MatMul, a Reshape of whole maps) stops them.

    Args:
        graph: A graph with inferred shapes and constants as initializers; it is changed, and computes the
            same.

    Returns:
        Whether anything was changed.

    Source:
        ONNX operators, Transpose: output dimension i is input dimension perm[i].
    """
    changed, names = False, Names(graph)
    for node in list(graph):  # in order: a transpose is pushed on to each operator after the one before
        if node.graph is None:
            continue
        if node.op_type == "Transpose":
            changed |= _merge(graph, node)
        else:
            permutation = _common(graph, node, names)
            if permutation is not None:
                changed |= _push(graph, node, permutation, names)
    return changed


def permutation_of(value: ir.Value | None) -> Permutation | None:
    """Return the permutation of a Transpose that makes a value (N, three axes); None if none does."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return None
    perm = node.attributes.get_ints("perm", None)
    return tuple(perm) if perm is not None and len(perm) == RANK and perm[0] == 0 else None


def _common(graph: ir.Graph, node: ir.Node, names: Names) -> Permutation | None:
    """The permutation of all inputs of a node that are no constants.

    The other way is cheap for a vector (N, 1, 1, C), e.g. of squeeze-and-excitation: it is transposed.
    """
    values = [value for value in node.inputs if value is not None and value.const_value is None]
    found = {permutation_of(value) for value in values}
    if node.op_type in BROADCAST and len(found) == 2 and None in found:
        vectors = [value for value in values if permutation_of(value) is None]
        perm = next(each for each in found if each is not None)
        if all(map(_is_vector, vectors)):
            for value in vectors:
                _transposed_twice(graph, node, value, perm, names)
            return perm
    return found.pop() if len(found) == 1 else None


def _is_vector(value: ir.Value) -> bool:
    """Whether a value (N, three axes) has one axis at most that is longer than 1."""
    shape = value.shape
    return shape is not None and len(shape) == RANK and sum(dim != 1 for dim in list(shape)[1:]) <= 1


def _transposed_twice(
    graph: ir.Graph, node: ir.Node, value: ir.Value, perm: Permutation, names: Names
) -> None:
    """Have a node read a value through two transposes that cancel, the second one by `perm`."""
    for permutation in (np.argsort(perm).tolist(), list(perm)):
        turned = ir.node(
            "Transpose", [value], {"perm": permutation}, name=names.new(f"{value.name}/transpose")
        )
        turned.outputs[0].name = turned.name
        turned.outputs[0].type = value.type
        if value.shape is not None:
            turned.outputs[0].shape = ir.Shape([value.shape[axis] for axis in permutation])
        graph.insert_before(node, turned)
        for place, read in enumerate(node.inputs):
            if read is value:
                node.replace_input_with(place, turned.outputs[0])
        value = turned.outputs[0]


def _merge(graph: ir.Graph, node: ir.Node) -> bool:
    """Make one Transpose, or none, of two in a row."""
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
    """Move a node in front of the transposes of its inputs, if it can be."""
    if node.op_type in UNARY and _numbers(node.inputs[1:]):
        return _swap(graph, node, perm, names)
    if node.op_type in BROADCAST:
        return _broadcast(graph, node, perm, names)
    if node.op_type in {"Concat", "Split", "Softmax", "LogSoftmax", "Gather"}:
        return _along(graph, node, perm, names)
    if node.op_type == "Slice":
        return _slice(graph, node, perm, names)
    if node.op_type == "Pad":
        return _pad(graph, node, perm, names)
    if node.op_type in REDUCE or node.op_type == "Squeeze":
        return _reduce(graph, node, perm, names)
    if node.op_type in {"Reshape", "Flatten"}:
        return _flatten(node, perm)
    return False


def _numbers(values: Sequence[ir.Value | None]) -> bool:
    return all(
        value is None or (value.const_value is not None and value.const_value.size == 1) for value in values
    )


def _swap(
    graph: ir.Graph,
    node: ir.Node,
    perm: Permutation,
    names: Names,
    constants: Callable[[Array], Array] | None = None,
    after: Permutation | None = None,
) -> bool:
    """Have a node read what its inputs are transposes of, and transpose its outputs instead.

    `constants` turns its constant inputs; `after` is the permutation of the outputs if it is another.
    """
    for place, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.const_value is None:
            source = value.producer()
            assert source is not None
            node.replace_input_with(place, source.inputs[0])
        elif constants is not None and value.const_value.size > 1:
            array = constants(np.asarray(value.const_value.numpy()))
            node.replace_input_with(place, _constant(graph, names, f"{value.name}/turned", array))
    after = perm if after is None else after
    if after == tuple(range(len(after))):
        return True
    for output in node.outputs:
        uses, is_output, name = list(output.uses()), output.is_graph_output(), str(output.name)
        if not uses and not is_output:
            continue
        turned = ir.node("Transpose", [output], {"perm": list(after)}, name=names.new(f"{name}/transpose"))
        result = turned.outputs[0]
        result.shape, result.type = output.shape, output.type
        if output.shape is not None:
            output.shape = ir.Shape([output.shape[after.index(axis)] for axis in range(len(after))])
        graph.insert_after(node, turned)
        if is_output:
            graph.outputs[graph.outputs.index(output)] = result
        for use in uses:
            use.node.replace_input_with(use.idx, result)
        output.name = names.new(f"{name}/turned")
        result.name = name
    return True


def _broadcast(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    constants = [value for value in node.inputs if value is not None and value.const_value is not None]
    if any(len(value.const_value.shape) > RANK for value in constants):  # type: ignore[union-attr]
        return False

    def turned(array: Array) -> Array:
        full = array.reshape((1,) * (RANK - array.ndim) + array.shape)
        return np.ascontiguousarray(full.transpose(np.argsort(perm)))

    return _swap(graph, node, perm, names, turned)


def _along(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    """Operators with one axis: Concat, Split, Softmax, and Gather of a list."""
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
    return _swap(graph, node, perm, names)


def _slice(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    starts, axes = _integers(node.inputs[1]), [*node.inputs, None, None][3]
    given = list(range(len(starts))) if starts is not None and axes is None else _integers(axes)
    if given is None:
        return False
    turned = np.array([perm[axis % RANK] for axis in given], np.int64)
    node.resize_inputs(max(len(node.inputs), 4))
    node.replace_input_with(3, _constant(graph, names, f"{node.name}/axes", turned))
    return _swap(graph, node, perm, names)


def _pad(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    inputs = [*node.inputs, None, None, None][:4]
    pads, axes = inputs[1], inputs[3]
    if pads is None or pads.const_value is None or not _numbers([inputs[2]]):
        return False
    given = range(RANK) if axes is None else _integers(axes)
    if given is None:
        return False
    amounts = np.asarray(pads.const_value.numpy()).reshape(2, -1)
    full = np.zeros((2, RANK), np.int64)
    for column, axis in enumerate(given):
        full[:, perm[axis % RANK]] = amounts[:, column]
    node.replace_input_with(1, _constant(graph, names, f"{pads.name}/turned", full.reshape(-1)))
    if axes is not None:
        node.resize_inputs(3)
    return _swap(graph, node, perm, names)


def _reduce(graph: ir.Graph, node: ir.Node, perm: Permutation, names: Names) -> bool:
    """Reductions and Squeeze: what is left of the axes may be in order already."""
    written = node.attributes.get_ints("axes", None)
    second = node.inputs[1] if len(node.inputs) > 1 else None
    given = written if second is None else _integers(second)
    if given is None:
        return False
    axes = sorted(perm[axis % RANK] for axis in given)
    if second is None:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    else:
        node.replace_input_with(1, _constant(graph, names, f"{second.name}/turned", np.array(axes, np.int64)))
    if node.op_type != "Squeeze" and node.attributes.get_int("keepdims", 1) != 0:
        return _swap(graph, node, perm, names)
    left = [axis for axis in perm if axis not in axes]
    return _swap(graph, node, perm, names, after=tuple(sorted(left).index(axis) for axis in left))


def _flatten(node: ir.Node, perm: Permutation) -> bool:
    """A reshape gives the same values in the same order where only axes of length 1 were moved."""
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


def _constant(graph: ir.Graph, names: Names, name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=names.new(name))
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
