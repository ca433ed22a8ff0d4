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

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from types import MappingProxyType

import onnx_ir as ir

from edgeship.toolkit.core.errors import QuantizationError, nearest
from edgeship.toolkit.core.quant import QuantScheme, QuantSpec
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.edit import Names

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
POOLED = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})
MOVED = frozenset({"Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Dropout"})
LARGEST = frozenset(
    {"GlobalMaxPool", "ReduceMax", "ReduceMin"}
)  # of many integers one: rounding stays as it is
RESAMPLED = frozenset(  # results are values of the first input, or means of some
    {
        *("Slice", "Split", "Pad", "Tile", "Expand", "Gather", "Resize", "Upsample"),
        *("DepthToSpace", "SpaceToDepth", "Identity", "MaxPool", "AveragePool"),
    }
)
NEVER_NEGATIVE = frozenset(
    {
        *("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp", "Sqrt"),
        *("ReduceL1", "ReduceL2", "ReduceSumSquare", "LpPool", "GlobalLpPool"),
    }
)
SIGN_KEPT = frozenset(  # never negative if the first input is not
    {
        *("ReduceSum", "LRN", "Cast", "Floor", "Ceil", "Round", "Sign", "Erf", "Tanh", "Softsign"),
        *("LeakyRelu", "PRelu", "Elu", "Selu", "HardSwish", "Gelu", "Mish"),
    }
)
JOINED = frozenset({"Concat", "Add", "Sum", "Mean", "Mul", "Div", "Min"})  # if no input is negative


@dataclass(frozen=True, slots=True)
class Placement:
    """Quantized tensors of a graph.

    Attributes:
        activations: Tensor name -> spec, in the order of the graph.
        weights: Initializer name -> spec, in the order of the graph.
        float_layers: Weighted layers that stay in float.
        float_tensors: Tensors that stay in float, with all that read them.
    """

    activations: dict[str, QuantSpec]
    weights: dict[str, QuantSpec]
    float_layers: frozenset[str] = frozenset()
    float_tensors: frozenset[str] = frozenset()


def place(
    model: ir.Model,
    scheme: QuantScheme,
    float_layers: Collection[str] = (),
    largest: Mapping[str, float] = MappingProxyType({}),
    lowest: Mapping[str, float] = MappingProxyType({}),
    float_tensors: Collection[str] = (),
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
        float_tensors: Names of tensors that stay in float.

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
    return Placement(
        {
            str(v.name): _activation_spec(v, scheme, lowest)
            for v in values
            if id(v) in wanted and v.name not in float_tensors
        },
        {
            str(node.inputs[1].name): QuantSpec(
                "int8", symmetric=True, axis=weight_axis(node), bits=scheme.weight.bits
            )
            for node in model.graph
            if is_weighted(node) and node.inputs[1] is not None and node.name not in exact
        },
        exact,
        frozenset(float_tensors),
    )


def quantizable_tensors(model: ir.Model) -> tuple[str, ...]:
    """Every activation that some scheme could quantize, in the order of the graph."""
    read = [value for node in model.graph for value in _readable(node)]
    steps = (MOVED, MOVED | {"MaxPool"}, MOVED | {"MaxPool"} | LARGEST)
    wanted = {id(stand(value, through)) for value in read for through in steps}
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
    return _never_negative(value, {})


def _never_negative(value: ir.Value, known: dict[int, bool]) -> bool:
    """Return the same; `known` holds results for other tensors, so that joins of joins take linear time."""
    if id(value) not in known:
        known[id(value)] = _result_never_negative(value, known)
    return known[id(value)]


def _result_never_negative(value: ir.Value, known: dict[int, bool]) -> bool:
    node = value.producer()
    if node is None:
        return _constant(value) and bool((io.constant(value) >= 0).all())
    kind, inputs = node.op_type, [each for each in node.inputs if each is not None]
    if kind in NEVER_NEGATIVE:
        return True
    if not inputs or kind not in MOVED | POOLED | LARGEST | RESAMPLED | SIGN_KEPT | JOINED | {"Clip", "Max"}:
        return False
    if kind == "Mul" and len(inputs) == 2 and inputs[0] is inputs[1]:
        return True
    if kind == "Max":
        return any(_never_negative(each, known) for each in inputs)
    if kind in JOINED:
        return all(_never_negative(each, known) for each in inputs)
    if kind == "Clip":
        low, high = clip_bounds(node)
        if high is not None and high < 0:
            return False
        return (low is not None and low >= 0) or _never_negative(inputs[0], known)
    if kind == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
        fill = node.inputs[2] if len(node.inputs) > 2 else None
        if fill is not None and not _never_negative(fill, known):
            return False
    if kind == "Resize" and node.attributes.get_string("mode", "nearest") == "cubic":
        return False  # it overshoots
    return _never_negative(inputs[0], known)


def _wanted(
    node: ir.Node, scheme: QuantScheme, exact: frozenset[str], largest: Mapping[str, float]
) -> Iterator[ir.Value]:
    if exact and (str(node.name) if is_weighted(node) else layer_before(node)) in exact:
        return
    if _reads_exact(node, scheme):
        return
    through = MOVED | ({"MaxPool"} if scheme.max_pool == "input" else set())
    through |= LARGEST if scheme.reduced_max == "input" else set()
    for value in _readable(node):
        if node.op_type == "BatchNormalization":
            wants = scheme.add_inputs == "both"
        else:
            wants = not is_residual(node) or _add_wants(node, value, scheme, largest)
        if wants:
            yield stand(value, through)


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
    from edgeship.quantization.torch_ops import OPERATIONS, key  # which takes the bounds of a Clip from here

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


def stand(value: ir.Value, through: Set[str]) -> ir.Value:
    """Return the tensor whose Q/DQ pair serves another: walk up through operations that a pair may pass."""
    node = value.producer()
    while node is not None and node.inputs and node.inputs[0] is not None and node.op_type in through:
        value = node.inputs[0]
        node = value.producer()
    return value


def _concatenated(value: ir.Value) -> bool:
    """Whether a tensor goes into a Concat or comes out of one, moved around, pooled or resized at most."""
    node = stand(value, MOVED | RESAMPLED).producer()
    if node is not None and node.op_type == "Concat":
        return True
    return any(
        reader.op_type == "Concat"
        or (reader.op_type in MOVED | RESAMPLED and any(map(_concatenated, reader.outputs)))
        for reader in value.consumers()
    )


def _add_wants(node: ir.Node, value: ir.Value, scheme: QuantScheme, largest: Mapping[str, float]) -> bool:
    """Whether an input of a residual Add is quantized.

    The convolution that ends the main branch fuses with the Add and stays in float. OpenVINO fuses
    by itself only where the shortcut is a convolution too, that nothing else reads; else it wants the
    main branch quantized. Of two convolutions either may fuse there;
    TensorRT looks for the quantized shortcut, which is the shorter way.
    """
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


def add_float_bypass(model: ir.Model, scheme: QuantScheme) -> ir.Model:
    """Let nodes that stay in float read what was made, where others read it quantized.

    Args:
        model: A float graph; it stays as it is.
        scheme: What the target wants: which residual Adds and pools read floats.

    Returns:
        A graph that computes the same: what a layer and an Add read together goes to all but the Adds through
        an Identity, which takes the tensor's name.
    """
    if not any(_reads_exact(node, scheme) for node in model.graph):
        return model
    changed = io.copy(model)
    names = Names(changed.graph)
    for node in list(changed.graph):
        for value in node.outputs:
            readers = [use for use in value.uses() if not _reads_exact(use.node, scheme)]
            if value.is_graph_output() or len(readers) in (0, len(value.uses())):
                continue
            identity = ir.node("Identity", [value], name=names.new(f"{value.name}/identity"))
            copy = identity.outputs[0]
            copy.name, copy.shape, copy.type = value.name, value.shape, value.type
            value.name = names.new(f"{value.name}/exact")
            changed.graph.insert_after(node, identity)
            for use in readers:
                use.node.replace_input_with(use.idx, copy)
    return changed


def duplicate_shared_weights(model: ir.Model, placement: Placement) -> ir.Model:
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


def _reads_exact(node: ir.Node, scheme: QuantScheme) -> bool:
    """Return True if a node reads floats even where others read the same tensor quantized."""
    if is_residual(node):
        return scheme.float_adds
    if node.op_type != "AveragePool" or scheme.padded_average:
        return False
    first = node.inputs[0]
    counted = node.attributes.get_int("count_include_pad", 0) and _padded(node)
    return bool(counted) and first is not None and not never_negative(first)


def _padded(node: ir.Node) -> bool:
    """Return True if a pool is padded, or may be."""
    pads = node.attributes.get("pads")
    return node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or (
        pads is not None and any(pads.as_ints())
    )


def layer_before(node: ir.Node) -> str | None:
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
    if scheme.concat_offset and _concatenated(value):
        return replace(scheme.activation, offset=scheme.concat_offset)
    return scheme.activation


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None
