"""Standard operators and float32: conversion to float32; rejection of training mode and other operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph.edit import Names, add_constant, constant

FLOATS = {  # converted to float32
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.DOUBLE: "float64",
}
QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)
STANDARD = frozenset({"", "ai.onnx"})
LAYOUT_DOMAINS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")  # ONNX Runtime's blocked layouts


def is_quantized(node: ir.Node) -> bool:
    """Return True for quantization and integer operators of ONNX and ONNX Runtime."""
    return node.op_type in QUANTIZED_OPS or node.op_type.startswith(("QLinear", "QGemm", "QAttention"))


def reject_training_mode(model: ir.Model) -> None:
    """Raise for a network exported in training mode (batch statistics or active dropout).

    BatchNormalization of constants is allowed: weight standardization is exported so.

    Raises:
        ModelError: BatchNormalization or Dropout is in training mode; the message names the node.

    Source:
        ONNX operators, BatchNormalization-14: `training_mode`; -9: more than one output; Dropout-13: input
        `training_mode`.
    """
    computed = _of_inputs(model.graph)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain not in STANDARD or not node.inputs:
            continue
        reason = None
        if node.op_type == "BatchNormalization" and (node.inputs[0] in computed or node.graph != model.graph):
            if node.attributes.get_int("training_mode", 0) != 0:
                reason = "training_mode = 1"
            elif any(output.name for output in node.outputs[1:]):
                reason = "batch statistics are outputs"
        elif node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
            mode = _array(node.inputs[2])
            if mode is None or mode.any():
                reason = "training_mode is computed" if mode is None else "training_mode = true"
        if reason is not None:
            raise ModelError(
                f"the network was exported in training mode: {node.op_type} '{node.name}': {reason}; "
                "inference mode is expected",
                hint="call `model.eval()` before the export",
            )


def reject_nonstandard_operators(model: ir.Model) -> None:
    """Raise for operators outside the ONNX standard.

    Raises:
        ModelError: An operator is not standard; the message has its name.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain in STANDARD:
            continue
        hint = "export it again with standard ONNX operators only"
        if node.domain in LAYOUT_DOMAINS or node.domain == "com.microsoft":
            hint = (
                "give the file from before ONNX Runtime's optimizer, or save it with "
                "graph_optimization_level = ORT_ENABLE_BASIC"
            )
        raise ModelError(
            f"operator {node.op_type} of {node.domain} (node '{node.name}') is no standard ONNX operator",
            hint=hint,
        )


def to_float32(model: ir.Model) -> str | None:
    """Convert a float16, bfloat16 or float64 graph to float32, inputs and outputs included.

    Returns:
        A note on the conversion; None if nothing was converted.
    """
    converted: set[ir.DataType] = set()

    def new(kind: ir.DataType | None) -> ir.DataType | None:
        if kind not in FLOATS:
            return kind
        converted.add(kind)
        return ir.DataType.FLOAT

    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.dtype in FLOATS or (value.const_value and value.const_value.dtype in FLOATS):
                value.const_value = _float32(value.const_value, str(value.name))
        for value in _values(graph):
            if value.dtype in FLOATS or value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(new(value.dtype) or ir.DataType.FLOAT)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in FLOATS:
                    new(attribute.as_tensor().dtype)
                    tensor = _float32(attribute.as_tensor(), str(node.name))
                    node.attributes[name] = ir.Attr(name, ir.AttributeType.TENSOR, tensor)
                if name in {"to", "dtype"} and attribute.type == ir.AttributeType.INT:
                    kind = attribute.as_int()
                    if kind in {int(each) for each in FLOATS}:
                        new(ir.DataType(kind))
                        node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    if not converted:
        return None
    return f"converted from {' and '.join(sorted(FLOATS[kind] for kind in converted))} to float32"


def remove_float_casts(model: ir.Model) -> None:
    """Remove every Cast from float32 to float32, left over from the conversion of FP16."""
    graph = model.graph
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is None or source.dtype != ir.DataType.FLOAT:
            continue
        if node.attributes.get_int("to", 0) != int(ir.DataType.FLOAT):
            continue
        result = node.outputs[0]
        if result.is_graph_output():
            if source.producer() is None or source.is_graph_output():
                continue
            name = result.name
            ir.convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            source.name = name
        else:
            ir.convenience.replace_all_uses_with(result, source)
            graph.remove(node, safe=True)


def reshape_scalars(model: ir.Model) -> None:
    """Reshape the bounds of a Clip and the fill value of a Pad from [1] to scalars.

    Raises:
        ModelError: A bound or fill value has several elements.
    """
    names = Names(model.graph)
    for node in model.graph:
        positions = {"Clip": (1, 2), "Pad": (2,)}.get(node.op_type, ())
        for position in positions:
            value = node.inputs[position] if len(node.inputs) > position else None
            array = _array(value)
            if value is None or array is None or array.ndim == 0:
                continue
            if array.size != 1:
                raise ModelError(
                    f"{node.op_type} '{node.name}' has '{value.name}' of shape {list(array.shape)}, not a "
                    "scalar",
                    hint="export it again with a scalar",
                )
            scalar = add_constant(model.graph, f"{value.name}/scalar", array.reshape(()), names)
            node.replace_input_with(position, scalar)


def check_layers(model: ir.Model) -> None:
    """Check sizes of weights, biases and groups, which shape inference does not.

    Raises:
        ModelError: The parameters of a layer do not fit together.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        check = _CHECKS.get(node.op_type)
        if check is None or node.domain not in STANDARD:
            continue
        sizes = [
            None
            if value is None or value.shape is None
            else [d if isinstance(d, int) else None for d in value.shape]
            for value in node.inputs
        ]
        is_weighted = len(sizes) > 1 and sizes[1]
        if not sizes or not sizes[0] or not (is_weighted or node.op_type in POOLS):
            continue
        if (reason := check(node, sizes)) is not None:
            raise ModelError(
                f"{node.op_type} '{node.name}': {reason}", hint="the file is damaged; export it again"
            )


Sizes = list[list[int | None] | None]


def _check_conv(node: ir.Node, sizes: Sizes) -> str | None:
    group = int(node.attributes.get_int("group", 1))
    data, weight = sizes[0], sizes[1]
    assert data and weight, "checked by the caller"
    if group < 1:
        return f"{group} groups; at least 1 is expected"
    kernel = node.attributes.get("kernel_shape")
    if kernel is not None and list(kernel.as_ints()) != weight[2:] and None not in weight:
        return f"a kernel of {list(kernel.as_ints())} for weights {weight}"
    rows, columns = (weight[0], weight[1]) if node.op_type == "Conv" else (weight[1], weight[0])
    if rows is None or columns is None:
        return f"weights of shape {weight} have a dynamic size; the graph mixes images"
    if len(data) < 2:
        return None
    outputs, inputs = (rows, columns * group) if node.op_type == "Conv" else (rows * group, columns)
    if data[1] not in {None, inputs} or weight[0] is None or weight[0] % group:
        return f"weights {weight} in {group} groups for {data[1]} channels"
    return _mismatch(sizes[2:3], outputs)


def _check_pool(node: ir.Node, sizes: Sizes) -> str | None:
    del node
    data = sizes[0]
    assert data, "checked by the caller"
    if len(data) < 3:  # shape inference accepts it, runtimes do not run it
        return f"an input of {len(data)} dimensions; at least 3 are expected: (N, C, ...)"
    return None


def _check_gemm(node: ir.Node, sizes: Sizes) -> str | None:
    data, weight = sizes[0], sizes[1]
    if not data or not weight or len(data) != 2 or len(weight) != 2:
        return None
    inner = data[0 if node.attributes.get_int("transA", 0) else 1]
    inputs, outputs = weight[::-1] if node.attributes.get_int("transB", 0) else weight
    if None not in {inner, inputs} and inner != inputs:
        return f"weights {weight} for {inner} values"
    bias = sizes[2] if len(sizes) > 2 else None
    if bias and (bias[-1] not in {None, 1, outputs} or (len(bias) > 1 and bias[0] not in {1, data[0]})):
        return f"a bias of shape {bias} for {outputs} outputs"
    return None


def _check_normalization(node: ir.Node, sizes: Sizes) -> str | None:
    del node
    data = sizes[0]
    return _mismatch(sizes[1:], data[1]) if data and len(data) > 1 and data[1] else None


def _mismatch(parameters: Sizes, channels: int) -> str | None:
    """Describe the first parameter without one value per channel; None if all fit."""
    mismatched = [shape for shape in parameters if shape is not None and shape not in ([channels], [None])]
    return f"parameters of shape {mismatched[0]} for {channels} channels" if mismatched else None


POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "LpPool", "MaxPool"})
_CHECKS: dict[str, Callable[[ir.Node, Sizes], str | None]] = {
    "Conv": _check_conv,
    "ConvTranspose": _check_conv,
    "Gemm": _check_gemm,
    "BatchNormalization": _check_normalization,
    "InstanceNormalization": _check_normalization,
    **dict.fromkeys(POOLS, _check_pool),
}


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _float32(tensor: ir.TensorProtocol | None, name: str) -> ir.TensorProtocol:
    assert tensor is not None, "an initializer"
    with np.errstate(over="ignore"):  # `read_classifier` rejects infinite weights
        return ir.tensor(tensor.numpy().astype(np.float32), name=name)


def _array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the array of an initializer or a Constant node; None for other tensors."""
    if value is None:
        return None
    if value.const_value is not None:
        return constant(value)
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _of_inputs(graph: ir.Graph) -> set[ir.Value]:
    """Return the tensors that depend on the images; nodes must be sorted."""
    computed = {value for value in graph.inputs if value.name not in graph.initializers}
    for node in graph:
        inner = (
            value
            for attribute in node.attributes.values()
            if attribute.type == ir.AttributeType.GRAPH
            for each in attribute.as_graph()
            for value in each.inputs
        )
        if any(value in computed for value in (*node.inputs, *inner)):
            computed.update(node.outputs)
    return computed
