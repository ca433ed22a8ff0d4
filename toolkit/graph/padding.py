"""Padding, which exporters write in many ways, in numbers of the layer that pads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.graph.edit import add_constant
from edgeship.toolkit.graph.simplify import array_of


def make_padding_explicit(model: ir.Model) -> None:
    """Turn `auto_pad` into the pads that it means where the size of the input is known.

    A Pad pads every axis, or becomes padding of what reads it.

    Source:
        ONNX operators, Conv: `auto_pad`; Pad: `axes`.
    """
    for node in list(model.graph):
        if node.op_type == "Pad":
            expand_pads(model.graph, node)
            _pad_where_read(model.graph, node)
        how = node.attributes.get_string("auto_pad", "NOTSET")
        if how == "VALID":
            del node.attributes["auto_pad"]
        if how not in {"SAME_UPPER", "SAME_LOWER"} or node.inputs[0] is None:
            continue
        sides = _sides(node.inputs[0])
        kernel = _kernel(node)
        if sides is None or kernel is None or len(sides) != len(kernel):
            continue
        strides, dilations = (_ints(node, name, [1] * len(kernel)) for name in ("strides", "dilations"))
        padding = [
            max((-(-side // stride) - 1) * stride + dilation * (taps - 1) + 1 - side, 0)
            for side, stride, dilation, taps in zip(sides, strides, dilations, kernel, strict=True)
        ]
        less, more = [each // 2 for each in padding], [-(-each // 2) for each in padding]
        del node.attributes["auto_pad"]
        node.attributes["pads"] = ir.AttrInt64s(
            "pads", [*less, *more] if how == "SAME_UPPER" else [*more, *less]
        )


def expand_pads(graph: ir.Graph, node: ir.Node) -> None:
    """Give a Pad the pads of every axis instead of a list of axes."""
    data, pads, _, axes = [*node.inputs, None, None][:4]
    if data is None or data.shape is None or pads is None or axes is None:
        return
    if pads.const_value is None or axes.const_value is None:
        return
    rank, given = len(data.shape), array_of(pads).reshape(2, -1)
    every = np.zeros((2, rank), np.int64)
    every[:, [int(axis) % rank for axis in array_of(axes)]] = given
    node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}/pads", every.reshape(-1)))
    node.resize_inputs(3)


def _pad_where_read(graph: ir.Graph, node: ir.Node) -> None:
    """Have convolutions and max pools pad their input themselves, instead of a Pad before them.

    TensorFlow's networks are exported so. In INT8 a Pad would be a layer of its own.
    """
    data, pads = node.inputs[0], _spatial_pads(node)
    if data is None or pads is None or node.outputs[0] in graph.outputs:
        return
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    value = 0.0 if fill is None else None if fill.const_value is None else float(array_of(fill).item())
    readers = [use.node for use in node.outputs[0].uses()]
    if not all(_pads_alike(reader, value, data, pads) for reader in readers):
        return
    for reader in readers:
        own = _ints(reader, "pads", [0] * 4)
        both = [each + more for each, more in zip(own, pads, strict=True)]
        reader.attributes["pads"] = ir.AttrInt64s("pads", both)
        reader.attributes.pop("auto_pad", None)
    ir.convenience.replace_all_uses_with(node.outputs[0], data)
    graph.remove(node, safe=True)


def _spatial_pads(node: ir.Node) -> list[int] | None:
    """Pads of height and width, before and after, of a Pad that fills maps with a constant."""
    pads = node.inputs[1] if len(node.inputs) in {2, 3} else None
    if (
        pads is None
        or pads.const_value is None
        or node.attributes.get_string("mode", "constant") != "constant"
    ):
        return None
    each = [int(pad) for pad in array_of(pads)]
    if len(each) != 8 or min(each) < 0 or any(each[axis] for axis in (0, 1, 4, 5)):
        return None
    return [*each[2:4], *each[6:]]


def _pads_alike(reader: ir.Node, value: float | None, padded: ir.Value, pads: Sequence[int]) -> bool:
    """Whether a layer would pad an input with what a Pad does: zeros, or what never is the largest."""
    if reader.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return False
    if reader.op_type == "Conv":
        return value == 0.0
    if reader.op_type != "MaxPool" or reader.attributes.get_int("ceil_mode", 0) != 0:
        return False
    kernel = _kernel(reader) or [0, 0]
    some = not any(_ints(reader, "pads", [0] * 4)) and all(map(int.__lt__, pads, [*kernel, *kernel]))
    producer = padded.producer()
    rectified = producer is not None and producer.op_type == "Relu"
    return some and (value == -np.inf or (value == 0.0 and rectified))


def _kernel(node: ir.Node) -> list[int] | None:
    """Sides of the kernel."""
    written = node.attributes.get("kernel_shape")
    if written is not None:
        return [int(side) for side in written.as_ints()]
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return None if weight is None else _sides(weight)


def _sides(value: ir.Value) -> list[int] | None:
    """Sides of a map or of a kernel, without the first two axes."""
    if value.shape is None or not all(isinstance(dim, int) for dim in list(value.shape)[2:]):
        return None
    return [int(dim) for dim in list(value.shape)[2:]]  # type: ignore[arg-type]


def _ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else [int(each) for each in attribute.as_ints()]
