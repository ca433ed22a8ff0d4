"""Where Q/DQ pairs go: the one file that knows, for every target, by its scheme.

A *point* is a float tensor that is quantized; everything that reads it then reads the dequantized
value, so one tensor has one scale. Weighted layers want their input quantized; a max pool hands the
wish on to its own input or keeps it, a reshape always hands it on. The output of a weighted layer
that an activation or a residual Add follows is never quantized in between: that would forbid the fusion.

A layer that stays in float wants nothing. If others want its input quantized it reads what they read: a
second, exact copy of the tensor would take the fusion from the layer that makes it. What has no weights
follows the layer before it: an Add whose main branch ends in a float layer, or a pool after it, is in float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from toolkit.core.errors import QuantizationError, nearest
from toolkit.core.quant import QuantScheme, QuantSpec
from toolkit.graph import io

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
POOLED = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})
MOVED = frozenset({"Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Dropout"})
NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt"})


@dataclass(frozen=True, slots=True)
class Placement:
    """Quantized tensors of a graph.

    Attributes:
        activations: Tensor name -> spec, in the order of the graph.
        weights: Initializer name -> spec, in the order of the graph.
        float_layers: Weighted layers that stay in float.
    """

    activations: dict[str, QuantSpec]
    weights: dict[str, QuantSpec]
    float_layers: frozenset[str] = frozenset()


def place(
    model: ir.Model,
    scheme: QuantScheme,
    float_layers: Collection[str] = (),
    largest: Mapping[str, float] = MappingProxyType({}),
    lowest: Mapping[str, float] = MappingProxyType({}),
) -> Placement:
    """Decide which tensors of a float graph are quantized, and how.

    Args:
        model: A float graph.
        scheme: What the target wants.
        float_layers: Names of weighted layers that stay in float.
        largest: Tensor name -> its largest magnitude, where it is known: of two convolutions that meet, the
            one with the smaller range is quantized where the target lets us choose, for it loses less.
        lowest: Tensor name -> its lowest value, where it is known: the result of an unknown operator
            counts as never negative where it is so on all calibration images.

    Returns:
        Points and weights. Weights that are not constant stay in float.

    Raises:
        QuantizationError: There is no such layer.

    Source:
        OpenVINO: placement by which every convolution and Add executes in INT8 (2026.4, runtime model).
        TensorRT: NVIDIA, "Working with quantized types", recommendations for Q/DQ placement.
    """
    layers = [str(node.name) for node in model.graph if is_weighted(node)]
    for name in float_layers:
        if name not in layers:
            raise QuantizationError(f"no layer named '{name}' to leave in float", hint=nearest(name, layers))
    exact = frozenset(float_layers)
    wanted = {id(value) for node in model.graph for value in _wanted(node, scheme, exact, largest)}
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    if not scheme.signed_concat:
        wanted -= {id(value) for value in values if not never_negative(value) and _concatenated(value)}
    return Placement(
        {str(v.name): _activation_spec(v, scheme, lowest) for v in values if id(v) in wanted},
        {
            str(node.inputs[1].name): QuantSpec(
                "int8", symmetric=True, axis=weight_axis(node), bits=scheme.weight.bits
            )
            for node in model.graph
            if is_weighted(node) and node.inputs[1] is not None and node.name not in exact
        },
        exact,
    )


def candidates(model: ir.Model) -> tuple[str, ...]:
    """Every activation that some scheme could quantize, in the order of the graph."""
    read = [value for node in model.graph for value in _readable(node)]
    wanted = {id(_stand(value, pools=pools)) for value in read for pools in (False, True)}
    wanted |= {id(value) for value in read if any(is_residual(use.node) for use in value.uses())}  # `fork`
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    return tuple(str(value.name) for value in values if id(value) in wanted)


def is_weighted(node: ir.Node) -> bool:
    """Whether a node multiplies by constant weights."""
    return node.op_type in WEIGHTED and _constant(node.inputs[1])


def is_residual(node: ir.Node) -> bool:
    """Whether a node adds two activations."""
    return node.op_type == "Add" and not any(_constant(value) for value in node.inputs)


def weight_axis(node: ir.Node) -> int:
    """The axis of the weights along which the outputs lie."""
    if node.op_type == "Conv" or (
        node.op_type == "Gemm" and int(node.attributes.get_int("transB", 0) or 0) != 0
    ):
        return 0
    return 1


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Bounds of a Clip, where they are constants: inputs, or before opset 11 attributes."""
    found: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = node.inputs[index] if len(node.inputs) > index else None
        known = value is not None and value.const_value is not None
        found.append(float(io.constant(value)) if known and value else node.attributes.get_float(name, None))
    return found[0], found[1]


def never_negative(value: ir.Value) -> bool:
    """Whether a tensor cannot be negative, by the operations that made it."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type in NEVER_NEGATIVE:
        return True
    if node.op_type == "Clip":
        low, _ = clip_bounds(node)
        return low is not None and low >= 0
    first = node.inputs[0] if node.inputs else None
    if node.op_type in MOVED | POOLED | {"MaxPool", "Slice", "GlobalMaxPool", "Identity"}:
        return first is not None and never_negative(first)
    if node.op_type in {"Concat", "Add"}:
        return all(value is not None and never_negative(value) for value in node.inputs)
    return False


def _wanted(
    node: ir.Node, scheme: QuantScheme, exact: frozenset[str], largest: Mapping[str, float]
) -> Iterator[ir.Value]:
    if exact and (str(node.name) if is_weighted(node) else _layer_before(node)) in exact:
        return
    for value in _readable(node):
        if node.op_type == "BatchNormalization":
            wants = scheme.add_inputs == "both"
        else:
            wants = not is_residual(node) or _add_wants(node, value, scheme, largest)
        if wants:
            yield _stand(value, pools=scheme.max_pool == "input")


def _readable(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs of a node that some target may want quantized."""
    if is_weighted(node) or _pools_integers(node) or _stays_apart(node):
        inputs = node.inputs[:1]
    elif is_residual(node):
        inputs = node.inputs
    else:
        return
    yield from (value for value in inputs if value is not None and value.dtype in {None, ir.DataType.FLOAT})


def _pools_integers(node: ir.Node) -> bool:
    """Whether a node pools what may be made in INT8: not what an unknown operator computes in float."""
    return node.op_type in POOLED and not _of_unknown(node.inputs[0])


def _of_unknown(value: ir.Value | None) -> bool:
    """Whether a tensor is made by an operator not in `operations.OPERATIONS`, and pooled or moved at most."""
    from quantize.operations import OPERATIONS, key  # which takes the bounds of a Clip from here

    node = value.producer() if value is not None else None
    while node is not None and node.op_type in MOVED | POOLED | {"MaxPool", "GlobalMaxPool"}:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and key(node) not in OPERATIONS


def _stays_apart(node: ir.Node) -> bool:
    """Whether a node is a BatchNormalization that no convolution takes in (of a pre-activation network).

    OpenVINO would write in float whatever is made before it, were it not quantized.
    """
    first = node.inputs[0] if node.op_type == "BatchNormalization" else None
    return first is not None and first.producer() is not None and not _made_by_convolution(first, alone=True)


def _stand(value: ir.Value, *, pools: bool) -> ir.Value:
    """Where the Q/DQ pair of a wish stands: before what only moves values around, and max pools if asked."""
    node = value.producer()
    while node is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type not in MOVED and not (pools and node.op_type == "MaxPool"):
            break
        value = node.inputs[0]
        node = value.producer()
    return value


def _concatenated(value: ir.Value) -> bool:
    """Whether a tensor goes into a Concat or comes out of one, pooled or moved around at most."""
    node = _stand(value, pools=True).producer()
    if node is not None and node.op_type == "Concat":
        return True
    return any(
        reader.op_type == "Concat"
        or (reader.op_type in MOVED | {"MaxPool"} and _concatenated(reader.outputs[0]))
        for reader in value.consumers()
    )


def _add_wants(node: ir.Node, value: ir.Value, scheme: QuantScheme, largest: Mapping[str, float]) -> bool:
    """Whether an input of a residual Add is quantized.

    The convolution that ends the main branch fuses with the Add and stays in float. OpenVINO fuses
    by itself only where the shortcut is a convolution too, that nothing else reads; else it wants the
    main branch quantized. Of two convolutions either may fuse there;
    TensorRT looks for the quantized shortcut, which is the shorter way.
    """
    if scheme.float_adds:
        return False
    if scheme.add_inputs == "all":
        return True
    first, second = (v for v in node.inputs if v is not None)
    made_by_convolution = [
        _made_by_convolution(v, alone=scheme.add_inputs == "both") for v in (first, second)
    ]
    if not any(made_by_convolution):
        return True
    if all(made_by_convolution):
        sizes = [largest.get(str(v.name), 0.0) for v in (first, second)]
        if scheme.add_inputs == "skip" or sizes[0] == sizes[1]:
            sizes = [float(_depth(v)) for v in (first, second)]
        return value is (first if sizes[0] < sizes[1] else second)
    main = first if made_by_convolution[0] else second
    return value is not main or scheme.add_inputs == "both"


def _made_by_convolution(value: ir.Value, *, alone: bool) -> bool:
    """Whether a weighted layer makes a tensor; `alone`: and only one node reads it."""
    node = value.producer()
    return node is not None and is_weighted(node) and (not alone or len(value.uses()) == 1)


def _depth(value: ir.Value) -> int:
    """Weighted layers from the input of the graph to a value, on the longest way."""
    deepest: dict[int, int] = {}
    stack = [value]
    while stack:
        top = stack[-1]
        node = top.producer()
        before = [v for v in node.inputs if v is not None and not _constant(v)] if node is not None else []
        missing = [v for v in before if id(v) not in deepest]
        if missing:
            stack.extend(missing)
            continue
        own = int(node is not None and node.op_type in WEIGHTED)
        deepest[id(top)] = own + max((deepest[id(v)] for v in before), default=0)
        stack.pop()
    return deepest[id(value)]


def fork(model: ir.Model) -> ir.Model:
    """Let residual Adds read what was made, where others read it quantized.

    Args:
        model: A float graph; it stays as it is.

    Returns:
        A graph that computes the same: what a layer and an Add read together goes to all but the Adds through
        an Identity, which takes the tensor's name.
    """
    changed = io.copy(model)
    for node in list(changed.graph):
        for value in node.outputs:
            readers = [use for use in value.uses() if not is_residual(use.node)]
            if value.is_graph_output() or len(readers) in (0, len(value.uses())):
                continue
            identity = ir.node("Identity", [value], name=f"{value.name}/identity")
            copy = identity.outputs[0]
            copy.name, copy.shape, copy.type = value.name, value.shape, value.type
            value.name = f"{value.name}/exact"
            changed.graph.insert_after(node, identity)
            for use in readers:
                use.node.replace_input_with(use.idx, copy)
    return changed


def unshare(model: ir.Model, placement: Placement) -> ir.Model:
    """Give layers in float weights of their own, where quantized ones read the same.

    Args:
        model: A float graph; it stays as it is.
        placement: What is quantized of it.

    Returns:
        A graph that computes the same.
    """
    shared = [
        str(node.name)
        for node in model.graph
        if str(node.name) in placement.float_layers and str(node.inputs[1].name) in placement.weights  # type: ignore[union-attr]
    ]
    if not shared:
        return model
    changed = io.copy(model)
    for node in [node for node in changed.graph if str(node.name) in shared]:
        weight = node.inputs[1]
        assert weight is not None, "a weighted layer"
        own = io.add_constant(changed.graph, f"{node.name}/{weight.name}", io.constant(weight))
        node.replace_input_with(1, own)
    return changed


def _layer_before(node: ir.Node) -> str | None:
    """The weighted layer whose result a node reads, through what has no weights; of a join's, the deepest."""
    found: ir.Node | None = node
    while found is not None and (found is node or not is_weighted(found)):
        read = [value for value in found.inputs if value is not None and not _constant(value)]
        found = max(read, key=_depth).producer() if read else None
    return str(found.name) if found is not None else None


def _activation_spec(value: ir.Value, scheme: QuantScheme, lowest: Mapping[str, float]) -> QuantSpec:
    unsigned = never_negative(value) or (_of_unknown(value) and lowest.get(str(value.name), -1.0) >= 0)
    if scheme.unsigned_activation is not None and unsigned:
        return scheme.unsigned_activation
    return scheme.activation


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None
