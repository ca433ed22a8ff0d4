"""Explicit padding: `auto_pad` as numbers, Pad nodes folded into the layers after them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.graph.edit import add_constant, constant


def make_padding_explicit(model: ir.Model) -> None:
    """Replace `auto_pad` by pads if the input size is static, and fold Pad nodes into their readers.

    A Pad that cannot be folded gets the pads of every axis.

    Source:
        ONNX operators, Conv: `auto_pad`; Pad: `axes`.
    """
    for node in list(model.graph):
        if node.op_type == "Pad":
            expand_pads(model.graph, node)
            _fold_pad_into_readers(model.graph, node)
        mode = node.attributes.get_string("auto_pad", "NOTSET")
        if mode == "VALID":
            del node.attributes["auto_pad"]
        if mode not in {"SAME_UPPER", "SAME_LOWER"} or node.inputs[0] is None:
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
        smaller, larger = [each // 2 for each in padding], [-(-each // 2) for each in padding]
        del node.attributes["auto_pad"]
        node.attributes["pads"] = ir.AttrInt64s(
            "pads", [*smaller, *larger] if mode == "SAME_UPPER" else [*larger, *smaller]
        )


def expand_pads(graph: ir.Graph, node: ir.Node) -> None:
    """Expand the pads of some axes of a Pad to every axis."""
    data, pads, _, axes = [*node.inputs, None, None][:4]
    if data is None or data.shape is None or pads is None or axes is None:
        return
    if pads.const_value is None or axes.const_value is None:
        return
    rank, pairs = len(data.shape), constant(pads).reshape(2, -1)
    full = np.zeros((2, rank), np.int64)
    full[:, [int(axis) % rank for axis in constant(axes)]] = pairs
    node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}/pads", full.reshape(-1)))
    node.resize_inputs(3)


def _fold_pad_into_readers(graph: ir.Graph, node: ir.Node) -> None:
    """Fold a Pad (as exported from TensorFlow) into the convolutions and max pools after it.

    In INT8 a Pad would be a separate layer.
    """
    data, pads = node.inputs[0], _spatial_pads(node)
    if data is None or pads is None or node.outputs[0] in graph.outputs:
        return
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    value = 0.0 if fill is None else None if fill.const_value is None else float(constant(fill).item())
    readers = [use.node for use in node.outputs[0].uses()]
    if not all(_can_absorb_pad(reader, value, data, pads) for reader in readers):
        return
    for reader in readers:
        own = _ints(reader, "pads", [0] * 4)
        both = [own_pad + pad for own_pad, pad in zip(own, pads, strict=True)]
        reader.attributes["pads"] = ir.AttrInt64s("pads", both)
        reader.attributes.pop("auto_pad", None)
    ir.convenience.replace_all_uses_with(node.outputs[0], data)
    graph.remove(node, safe=True)


def _spatial_pads(node: ir.Node) -> list[int] | None:
    """Return the pads of height and width (before, after) of a constant Pad; None for other Pads."""
    pads = node.inputs[1] if len(node.inputs) in {2, 3} else None
    if (
        pads is None
        or pads.const_value is None
        or node.attributes.get_string("mode", "constant") != "constant"
    ):
        return None
    each = [int(pad) for pad in constant(pads)]
    if len(each) != 8 or min(each) < 0 or any(each[axis] for axis in (0, 1, 4, 5)):
        return None
    return [*each[2:4], *each[6:]]


def _can_absorb_pad(reader: ir.Node, value: float | None, padded: ir.Value, pads: Sequence[int]) -> bool:
    """Return True if a layer's own padding equals the Pad: zeros, or values that a max pool ignores."""
    if reader.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return False
    if reader.op_type == "Conv":
        return value == 0.0
    if reader.op_type != "MaxPool" or reader.attributes.get_int("ceil_mode", 0) != 0:
        return False
    kernel = _kernel(reader) or [0, 0]
    is_small = not any(_ints(reader, "pads", [0] * 4)) and all(map(int.__lt__, pads, [*kernel, *kernel]))
    producer = padded.producer()
    rectified = producer is not None and producer.op_type == "Relu"
    return is_small and (value == -np.inf or (value == 0.0 and rectified))


def _kernel(node: ir.Node) -> list[int] | None:
    """Return the sides of the kernel."""
    written = node.attributes.get("kernel_shape")
    if written is not None:
        return [int(side) for side in written.as_ints()]
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return None if weight is None else _sides(weight)


def _sides(value: ir.Value) -> list[int] | None:
    """Return the spatial sides of a map or kernel; None if one is dynamic."""
    if value.shape is None or not all(isinstance(dim, int) for dim in list(value.shape)[2:]):
        return None
    return [int(dim) for dim in list(value.shape)[2:]]  # type: ignore[arg-type]


def _ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else [int(each) for each in attribute.as_ints()]
