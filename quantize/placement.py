"""Q/DQ placement: select the tensors to quantize from a graph and a target's scheme.

All consumers of a quantized tensor read its dequantized value, so one tensor has one scale. The inputs of
weighted layers are quantized; the Q/DQ pair moves up through reshapes and, by scheme, through max pools. No
pair stands between a weighted layer and the activation or residual Add that it fuses with.

A float layer requests no pair. If other consumers need its input quantized, it reads the dequantized value: a
second, float copy of the tensor would prevent the fusion in the producer. Operators without weights follow
the layer before them: an Add whose main branch ends in a float layer, and a pool after it, stay in float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from types import MappingProxyType

import onnx_ir as ir

from edgeship.quantization.torch_ops import OPERATIONS
from edgeship.toolkit.core.errors import QuantizationError, nearest
from edgeship.toolkit.core.quant import QuantScheme, QuantSpec
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.edit import Names, add_constant, constant
from edgeship.toolkit.graph.query import weight_axis
from edgeship.toolkit.graph.shift import is_shiftable
from edgeship.toolkit.graph.signs import AVERAGE_OPS, EXTREMUM_OPS, LAYOUT_OPS, SELECTION_OPS, never_negative

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Placement:
    """Tensors of a graph to quantize.

    Attributes:
        activations: Tensor name -> spec, in the order of the graph.
        weights: Initializer name -> spec, in the order of the graph.
        float_layers: Weighted layers that stay in float.
        float_tensors: Tensors without a Q/DQ pair by request.
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
    """Select the quantized tensors of a float graph and their specs.

    Args:
        model: A float graph.
        scheme: Quantization scheme of the target.
        float_layers: Names of weighted layers that stay in float.
        largest: Tensor name -> calibrated largest magnitude: where either of two convolutions may fuse with
            an Add, the result with the smaller range is quantized (smaller error).
        lowest: Tensor name -> calibrated lowest value: the result of an unknown operator counts as
            nonnegative if it is so on all calibration images.
        float_tensors: Names of tensors that stay in float.

    Returns:
        Activations and weights. Weights that are not constant stay in float.

    Raises:
        QuantizationError: A name in `float_layers` is no weighted layer.

    Source:
        OpenVINO: placement by which every convolution and Add executes in INT8 (2026.4, runtime model).
        TensorRT: NVIDIA, "Working with quantized types", recommendations for Q/DQ placement.
    """
    layers = [str(node.name) for node in model.graph if is_weighted(node)]
    for name in float_layers:
        if name not in layers:
            raise QuantizationError(f"no layer named '{name}' to leave in float", hint=nearest(name, layers))
    float_names = frozenset(float_layers)
    quantized = {
        id(value)
        for node in model.graph
        for value in _quantized_inputs(node, scheme, float_names, largest)
        if value.name not in float_tensors
    }
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    return Placement(
        {str(v.name): _activation_spec(v, scheme, lowest, quantized) for v in values if id(v) in quantized},
        {
            str(node.inputs[1].name): QuantSpec(
                "int8", symmetric=True, axis=weight_axis(node), bits=scheme.weight.bits
            )
            for node in model.graph
            if is_weighted(node) and node.inputs[1] is not None and node.name not in float_names
        },
        float_names,
        frozenset(float_tensors),
    )


def quantizable_tensors(model: ir.Model) -> tuple[str, ...]:
    """Return the activations that some scheme quantizes, in graph order."""
    inputs = [value for node in model.graph for value in _quantizable_inputs(node)]
    steps = (LAYOUT_OPS, LAYOUT_OPS | {"MaxPool"}, LAYOUT_OPS | {"MaxPool"} | EXTREMUM_OPS)
    candidates = {id(insertion_point(value, through)) for value in inputs for through in steps}
    # `add_float_bypass` names the quantized copy after the tensor
    candidates |= {id(value) for value in inputs if any(is_residual(use.node) for use in value.uses())}
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    return tuple(str(value.name) for value in values if id(value) in candidates)


def is_weighted(node: ir.Node) -> bool:
    """Return True if a node multiplies by constant weights."""
    return node.op_type in WEIGHTED and _constant(node.inputs[1])


def is_residual(node: ir.Node) -> bool:
    """Return True if a node adds two activations."""
    return node.op_type == "Add" and not any(_constant(value) for value in node.inputs)


def _quantized_inputs(
    node: ir.Node, scheme: QuantScheme, float_layers: frozenset[str], largest: Mapping[str, float]
) -> Iterator[ir.Value]:
    """Yield the tensors to quantize for a node."""
    if float_layers and (str(node.name) if is_weighted(node) else preceding_layer(node)) in float_layers:
        return
    if _reads_float(node, scheme):
        return
    through = LAYOUT_OPS | ({"MaxPool"} if scheme.max_pool == "input" else set())
    through |= EXTREMUM_OPS if scheme.reduced_max == "input" else set()
    for value in _quantizable_inputs(node):
        if node.op_type == "BatchNormalization":
            quantized = scheme.batch_norm and not (scheme.concat_offset and _is_concat(value))
        else:
            quantized = not is_residual(node) or _quantizes_add_input(node, value, scheme, largest)
        if quantized:
            yield insertion_point(value, through)


def _quantizable_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the inputs of a node that some scheme quantizes."""
    if is_weighted(node) or _is_quantizable_pool(node) or _is_unfused_batch_norm(node):
        inputs = node.inputs[:1]
    elif is_residual(node):
        inputs = node.inputs
    else:
        return
    yield from (value for value in inputs if value is not None and value.dtype in {None, ir.DataType.FLOAT})


def _is_quantizable_pool(node: ir.Node) -> bool:
    """Return True if a node averages a tensor that an INT8 operator may compute."""
    return node.op_type in AVERAGE_OPS and not _is_from_unknown_operator(node.inputs[0])


def _is_from_unknown_operator(value: ir.Value | None) -> bool:
    """Return True if, up through pools and reshapes, an operator outside `torch_ops` computes a tensor."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in LAYOUT_OPS | AVERAGE_OPS | {"MaxPool", "GlobalMaxPool"}:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type not in OPERATIONS


def _is_unfused_batch_norm(node: ir.Node) -> bool:
    """Return True if a BatchNormalization is not fused into a convolution (pre-activation networks).

    Without a Q/DQ pair at its input, OpenVINO would store the tensor before it in float. Behind a Concat it
    does: 2026.4 ends in a segmentation fault where a pair with another zero point than 0 stands between a
    Concat, of a fixed batch, and a BatchNormalization with a pair behind it.
    """
    first = node.inputs[0] if node.op_type == "BatchNormalization" else None
    return first is not None and first.producer() is not None and not _is_layer_output(first, single_use=True)


def insertion_point(value: ir.Value, through: Set[str]) -> ir.Value:
    """Return the Q/DQ insertion point of a tensor: walk up through the operator types in `through`."""
    node = value.producer()
    while node is not None and node.inputs and node.inputs[0] is not None and node.op_type in through:
        value = node.inputs[0]
        node = value.producer()
    return value


def _concatenated(value: ir.Value) -> bool:
    """Return True if a tensor enters or leaves a Concat, also through layout and selection operators."""
    node = insertion_point(value, LAYOUT_OPS | SELECTION_OPS).producer()
    if node is not None and node.op_type == "Concat":
        return True
    return any(
        consumer.op_type == "Concat"
        or (consumer.op_type in LAYOUT_OPS | SELECTION_OPS and any(map(_concatenated, consumer.outputs)))
        for consumer in value.consumers()
    )


def _is_concat(value: ir.Value) -> bool:
    node = insertion_point(value, LAYOUT_OPS).producer()
    return node is not None and node.op_type == "Concat"


def _quantizes_add_input(
    node: ir.Node, value: ir.Value, scheme: QuantScheme, largest: Mapping[str, float]
) -> bool:
    """Return True if an input of a residual Add is quantized.

    The convolution that ends the main branch fuses with the Add, so that its result stays in float. OpenVINO
    fuses it without a pair only if the shortcut is a convolution too, with the Add as its one consumer;
    otherwise the main branch needs a pair. With two convolutions either may fuse: the result with the smaller
    range has the pair, without statistics that of the branch with fewer layers.
    """
    if scheme.add_inputs == "all":
        return True
    first, second = (v for v in node.inputs if v is not None)
    fusable = [_is_layer_output(v, single_use=scheme.add_inputs == "both") for v in (first, second)]
    if not any(fusable):
        return True
    if all(fusable):
        sizes = [largest.get(str(v.name), 0.0) for v in (first, second)]
        if sizes[0] == sizes[1]:
            sizes = [float(_depth(v)) for v in (first, second)]
        return value is (first if sizes[0] < sizes[1] else second)
    main = first if fusable[0] else second
    return value is not main or scheme.add_inputs == "both"


def _is_layer_output(value: ir.Value, *, single_use: bool) -> bool:
    """Return True if a weighted layer computes a tensor and, if `single_use`, it has one consumer."""
    node = value.producer()
    return node is not None and is_weighted(node) and (not single_use or len(value.uses()) == 1)


def _depth(value: ir.Value) -> int:
    """Return the number of weighted layers on the longest path from the graph input to a tensor."""
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
    """Insert a float bypass around the Q/DQ pair for residual Adds and pools that read floats.

    Args:
        model: A float graph, not modified.
        scheme: Quantization scheme of the target: which residual Adds and pools read floats.

    Returns:
        An equivalent graph: if float and quantized consumers share a tensor, the quantized ones read it
        through an Identity that takes the tensor's name.
    """
    if not any(_reads_float(node, scheme) for node in model.graph):
        return model
    changed = io.copy(model)
    names = Names(changed.graph)
    for node in list(changed.graph):
        for value in node.outputs:
            quantized_uses = [use for use in value.uses() if not _reads_float(use.node, scheme)]
            if value.is_graph_output() or len(quantized_uses) in (0, len(value.uses())):
                continue
            identity = ir.node("Identity", [value], name=names.new(f"{value.name}/identity"))
            copy = identity.outputs[0]
            copy.name, copy.shape, copy.type = value.name, value.shape, value.type
            value.name = names.new(f"{value.name}/exact")
            changed.graph.insert_after(node, identity)
            for use in quantized_uses:
                use.node.replace_input_with(use.idx, copy)
    return changed


def duplicate_shared_weights(model: ir.Model, placement: Placement) -> ir.Model:
    """Copy weights that float layers share with quantized layers.

    Args:
        model: A float graph, not modified.
        placement: Its quantized tensors.

    Returns:
        An equivalent graph.
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
        own = add_constant(changed.graph, f"{node.name}/{weight.name}", constant(weight))
        node.replace_input_with(1, own)
    return changed


def _reads_float(node: ir.Node, scheme: QuantScheme) -> bool:
    """Return True if a node reads a tensor in float even if other consumers read it quantized."""
    if is_residual(node):
        return scheme.float_adds
    if node.op_type != "AveragePool" or scheme.padded_average:
        return False
    first = node.inputs[0]
    counted = node.attributes.get_int("count_include_pad", 0) and _padded(node)
    return bool(counted) and first is not None and not never_negative(first)


def _padded(node: ir.Node) -> bool:
    """Return True if a pool has, or may have, padding."""
    pads = node.attributes.get("pads")
    return node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or (
        pads is not None and any(pads.as_ints())
    )


def preceding_layer(node: ir.Node) -> str | None:
    """Return the nearest weighted layer before a node; at a join, along the deepest branch."""
    layer: ir.Node | None = node
    while layer is not None and (layer is node or not is_weighted(layer)):
        inputs = [value for value in layer.inputs if value is not None and not _constant(value)]
        layer = max(inputs, key=_depth).producer() if inputs else None
    return str(layer.name) if layer is not None else None


def _activation_spec(
    value: ir.Value, scheme: QuantScheme, lowest: Mapping[str, float], quantized: Set[int]
) -> QuantSpec:
    if scheme.shifted_activation is not None and is_shiftable(value, quantized):
        return scheme.shifted_activation
    unsigned = never_negative(value) or (
        _is_from_unknown_operator(value) and lowest.get(str(value.name), -1.0) >= 0
    )
    if scheme.unsigned_activation is not None and unsigned:
        return scheme.unsigned_activation
    if scheme.concat_offset and _concatenated(value):
        return replace(scheme.activation, offset=scheme.concat_offset)
    return scheme.activation


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None
