"""Shift of never-negative tensors by 128 steps: signed integers without a zero point hold 8 bits of them.

TensorRT reads int8 with a zero point of 0: a tensor behind a ReLU uses 7 of the 8 bits. Stored as x - c with
c = 128 scale it uses all of them. The saturation at -128 is the ReLU, so that the node is dropped; c is
subtracted in the bias of the layer before, and c times the sum of its weights is added to the bias of each
layer that reads the tensor (to that of the convolution which meets it, where a residual Add does). Nothing is
computed in addition.

This is exact where zero padding never meets the shifted tensor: the padding would be read as c. Readers are
therefore convolutions without padding (1 x 1 ones), fully connected layers and residual Adds.

Source:
    The zero point's share of a sum of products: Jacob et al. 2018, arXiv:1712.05877, sec. 2.3; here in the
    biases of a graph that has no zero points.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph import edit
from edgeship.toolkit.graph.query import (
    DEQUANTIZE,
    QUANTIZE,
    array,
    before_pair,
    input_at,
    integer,
    is_constant_weight,
    is_dequantized,
    label,
    producer,
    weight_axis,
)
from edgeship.toolkit.graph.signs import LAYOUT_OPS, never_negative

ZERO_POINT = -128  # of a shifted tensor, before its biases absorb it
MARK = "shifted_zero_point"  # ends the name of its zero point afterwards, which is 0
UNSHIFTED = 255 / 127  # ratio of the scale of 7 bits to that of 8, for the same range
_PASSING = LAYOUT_OPS - {"Dropout"}


def is_shiftable(value: ir.Value, quantized: Set[int] = frozenset()) -> bool:
    """Return True if the layers around a tensor can absorb its shift.

    Args:
        value: A tensor of a float graph, or the one before a Q/DQ pair.
        quantized: Identities of the tensors of a float graph that will have a Q/DQ pair.
    """
    if value.is_graph_output() or not value.uses():
        return False
    source = producer(value)
    if source is not None and source.op_type == "Identity":  # quantized copy of a float tensor
        absorbed = source.inputs[0] is not None and never_negative(source.inputs[0])
    else:
        relu = _relu(value)
        absorbed = relu is not None and _writer(relu.inputs[0], quantized) is not None
    return absorbed and all(_absorbing(node, place, quantized) for node, place in _readers(value))


def absorb(model: ir.Model) -> None:
    """Replace the zero point of each shifted tensor by biases, in place.

    Args:
        model: A Q/DQ graph. Shifted tensors have int8 integers and a zero point of `ZERO_POINT`.

    Raises:
        ModelError: A layer around such a tensor cannot absorb the shift.
    """
    graph, names = model.graph, edit.Names(model.graph)
    for quantize in [node for node in graph if node.op_type == QUANTIZE]:
        value, zero = quantize.inputs[0], array(input_at(quantize, 2))
        if value is None or zero is None or zero.size != 1 or zero.dtype != np.int8 or zero != ZERO_POINT:
            continue
        if not is_shiftable(value):
            raise ModelError(
                f"{label(quantize)} has the zero point {ZERO_POINT}, and the layers around '{value.name}' "
                "cannot absorb it: expected a ReLU after a layer with a bias, and readers without padding",
                hint="quantize the float graph again for this target",
            )
        constant = _constant(quantize)
        _shift_readers(graph, value, constant)
        _replace_zero_point(graph, quantize, np.int8(0), f"{value.name}/{MARK}", names)
        _subtract(graph, value, constant, names)


def restore(model: ir.Model) -> None:
    """Undo `absorb` in place: each shifted tensor has its ReLU, biases without the shift, and 7 bits.

    For hardware whose saturation is no ReLU, or that runs some layers without integers. The range of a tensor
    does not change.

    Args:
        model: A Q/DQ graph; one without shifted tensors is not changed.
    """
    graph, names = model.graph, edit.Names(model.graph)
    for quantize in [node for node in graph if node.op_type == QUANTIZE]:
        zero = input_at(quantize, 2)
        if zero is None or MARK not in str(zero.name):
            continue
        value, constant = quantize.inputs[0], _constant(quantize)
        assert value is not None, "a valid QuantizeLinear"
        _shift_readers(graph, value, -constant)
        _add_shift(graph, value, constant, names)
        scale = edit.constant(quantize.inputs[1]) * UNSHIFTED  # type: ignore[arg-type]
        widened = edit.add_constant(graph, f"{value.name}/unshifted_scale", scale.astype(np.float32), names)
        for node in _pair(quantize):
            node.replace_input_with(1, widened)
        _replace_zero_point(graph, quantize, np.int8(0), f"{value.name}/zero_point", names)


def _constant(quantize: ir.Node) -> float:
    """Return the shift of a tensor, c = 128 scale."""
    return -ZERO_POINT * float(edit.constant(quantize.inputs[1]).reshape(()))  # type: ignore[arg-type]


def _pair(quantize: ir.Node) -> list[ir.Node]:
    return [quantize, *(node for node in quantize.outputs[0].consumers() if node.op_type == DEQUANTIZE)]


def _replace_zero_point(
    graph: ir.Graph, quantize: ir.Node, zero: np.int8, name: str, names: edit.Names
) -> None:
    constant = edit.add_constant(graph, name, np.asarray(zero), names)
    for node in _pair(quantize):
        node.replace_input_with(2, constant)


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield the nodes that read a tensor, and the input's place, through Q/DQ pairs and layout operators."""
    for use in value.uses():
        moves = use.node.op_type in {QUANTIZE, DEQUANTIZE} | _PASSING and use.idx == 0
        if moves and not use.node.outputs[0].is_graph_output():
            yield from _readers(use.node.outputs[0])
        else:
            yield use.node, use.idx


def _absorbing(node: ir.Node, place: int, quantized: Set[int]) -> bool:
    """Return True if a reader, or the layer that it adds to a tensor, absorbs the shift of its input."""
    if node.op_type == "Add":
        return _writer_before(node, 1 - place, quantized) is not None
    if place != 0 or not _has_constant_bias(node) or node.op_type not in {"Conv", "Gemm"}:
        return False
    return not integer(node, "transA", 0) and not _is_padded(node)


def _is_padded(node: ir.Node) -> bool:
    """Return True if a layer has, or may have, zero padding."""
    pads = node.attributes.get("pads")
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
    return automatic or (pads is not None and any(pads.as_ints()))


def _has_constant_bias(node: ir.Node) -> bool:
    """Return True for a layer with constant weights and a bias that a value per channel can be added to."""
    if node.op_type == "BatchNormalization":
        return array(input_at(node, 2)) is not None
    if node.op_type not in {"Conv", "Gemm"} or not is_constant_weight(input_at(node, 1)):
        return False
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    bias = input_at(node, 2)
    stored = array(bias)
    return not scaled and (bias is None or (stored is not None and stored.ndim == 1))


def _writer(value: ir.Value | None, quantized: Set[int]) -> ir.Node | None:
    """Return the layer whose bias shifts a float tensor: its own, or that before the residual Add."""
    node = producer(value)
    if value is None or node is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    if id(value) in quantized:
        return None
    if node.op_type == "Add" and not any(array(each) is not None for each in node.inputs):
        return _writer_before(node, 0, quantized) or _writer_before(node, 1, quantized)
    return node if _has_constant_bias(node) else None


def _writer_before(add: ir.Node, place: int, quantized: Set[int]) -> ir.Node | None:
    """Return the layer that computes an input of an Add without a Q/DQ pair between them."""
    value = input_at(add, place)
    if value is None or is_dequantized(value) or (node := producer(value)) is None or node.op_type == "Add":
        return None
    return _writer(value, quantized)


def _relu(value: ir.Value) -> ir.Node | None:
    """Return the ReLU that computes a tensor, through max pools; each other tensor has one reader."""
    node = producer(value)
    while node is not None and node.op_type == "MaxPool" and len(node.outputs) == 1:
        before = node.inputs[0]
        if before is None or len(before.uses()) != 1 or before.is_graph_output():
            return None
        node = producer(before)
    return node if node is not None and node.op_type == "Relu" else None


def _top(value: ir.Value) -> ir.Value:
    """Return the tensor before the max pools that compute a tensor."""
    node = producer(value)
    while node is not None and node.op_type == "MaxPool":
        value = node.inputs[0]  # type: ignore[assignment]
        node = producer(value)
    return value


def _shift_readers(graph: ir.Graph, value: ir.Value, constant: float) -> None:
    """Add the shift's share of their results to the biases of the readers of a tensor."""
    for node, place in list(_readers(value)):
        layer = node
        if node.op_type == "Add":
            found = _writer_before(node, 1 - place, frozenset())
            assert found is not None, "a shiftable tensor"
            layer, share = found, np.full(_channels(found), constant)
        else:
            share = constant * _weight_sums(node)
        edit.add_to_bias(graph, layer, share)


def _subtract(graph: ir.Graph, value: ir.Value, constant: float, names: edit.Names) -> None:
    """Subtract the shift before a tensor: in a bias, without the ReLU; from a float tensor's copy by Add."""
    source = producer(value)
    if source is not None and source.op_type == "Identity":
        shift = edit.add_constant(graph, f"{value.name}/shift", np.asarray(-constant, np.float32), names)
        replaced = edit.Replacement(graph, source, names)
        replaced.emit("Add", [source.inputs[0], shift])
        replaced.finish()
        return
    relu = _relu(value)
    assert relu is not None and relu.inputs[0] is not None, "a shiftable tensor"
    layer = _writer(relu.inputs[0], frozenset())
    assert layer is not None, "a shiftable tensor"
    edit.add_to_bias(graph, layer, np.full(_channels(layer), -constant))
    before, after = relu.inputs[0], relu.outputs[0]
    after.replace_all_uses_with(before)
    name = after.name
    graph.remove(relu, safe=True)
    before.name = name  # the tensor that has the pair keeps its name


def _add_shift(graph: ir.Graph, value: ir.Value, constant: float, names: edit.Names) -> None:
    """Undo `_subtract`."""
    source = producer(value)
    shift = array(input_at(source, 1)) if source is not None and source.op_type == "Add" else None
    if source is not None and shift is not None and shift.size == 1:
        before = source.inputs[0]
        assert before is not None, "a valid Add"
        value.replace_all_uses_with(before)
        graph.remove(source, safe=True)
        return
    top = _top(value)
    layer = _writer(top, frozenset())
    assert layer is not None, "a shifted tensor"
    edit.add_to_bias(graph, layer, np.full(_channels(layer), constant))
    uses = list(top.uses())
    relu = ir.node("Relu", [top], name=names.new(f"{top.name}/relu"))
    result = relu.outputs[0]
    result.shape, result.type = top.shape, top.type
    name = str(top.name)
    top.name, result.name = names.new(f"{name}/linear"), name
    graph.insert_after(top.producer(), relu)  # type: ignore[arg-type]
    for use in uses:
        use.node.replace_input_with(use.idx, result)


def _channels(layer: ir.Node) -> int:
    """Return the number of output channels of a layer."""
    if layer.op_type == "BatchNormalization":
        return len(edit.constant(layer.inputs[2]))  # type: ignore[arg-type]
    weight = before_pair(layer.inputs[1])
    return int(edit.constant(weight).shape[weight_axis(layer)])  # type: ignore[arg-type]


def _weight_sums(layer: ir.Node) -> np.ndarray:
    """Sum the weights of each output channel, as the graph computes with them: on their grid if quantized."""
    weight = before_pair(layer.inputs[1])
    assert weight is not None, "a weighted layer"
    values = edit.constant(weight).astype(np.float64)
    quantize = producer(producer(layer.inputs[1]).inputs[0]) if is_dequantized(layer.inputs[1]) else None  # type: ignore[union-attr]
    if quantize is not None:
        shape = [1] * values.ndim
        scale = edit.constant(quantize.inputs[1])  # type: ignore[arg-type]
        if scale.size > 1:
            shape[integer(quantize, "axis", 1)] = -1
        steps = np.round(edit.constant(weight) / scale.reshape(shape))  # in float32, as QuantizeLinear
        values = np.clip(steps, -128, 127) * scale.astype(np.float64).reshape(shape)
    axis = weight_axis(layer)
    sums: np.ndarray = values.sum(tuple(i for i in range(values.ndim) if i != axis))
    return sums
