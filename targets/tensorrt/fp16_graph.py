"""The FP16-typed form of a graph: what strongly typed builds (TensorRT 10.12 and later) want."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeship.targets.tensorrt._index import QUANTIZE, Index, fresh_name, label, load, takes_pixels
from edgeship.targets.tensorrt.lint import weight_axis
from edgeship.toolkit.core.artifact import replacing
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph.opset import REDUCTIONS

OPSET = 19  # QuantizeLinear and DequantizeLinear take FP16 from here on
NORMALIZING = ("Cast", "Mul", "Sub", "Add", "Div", "Transpose")
HALF_MAX = float(np.finfo(np.float16).max)
HALF_TINY = float(np.finfo(np.float16).smallest_subnormal)


def to_half(model: Path, out: Path) -> None:
    """Write the graph with FP16 weights, biases, scales and activations; inputs and outputs stay FP32.

    The integers of quantized weights do not change: each weight is stored as its integer times the FP16
    scale, which is within 1/16 of a step after rounding, so the Q finds the same integer again. What turns
    uint8 pixels into the network's input, or its integers, stays FP32: FP16 would move some by one.

    Args:
        model: An FP32-typed ONNX file, with or without Q/DQ.
        out: Where the FP16-typed one goes.

    Raises:
        ModelError: The file is no ONNX model, or a value does not fit into FP16.
    """
    import onnx

    graph = load(model)
    _snap_weights(graph)
    chain = _from_pixels(graph)
    kept = {name for node in chain for name in node.input} | _full_scales(graph, chain)
    for tensor in graph.graph.initializer:
        if tensor.name not in kept:
            _halve(tensor)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                _halve(attribute.t)
    _cast_ends(graph, chain)
    _cast_after(graph, chain)
    del graph.graph.value_info[:]
    _raise_operators(graph)
    for item in graph.opset_import:
        if item.domain in ("", "ai.onnx"):
            item.version = max(item.version, OPSET)
    graph.ir_version = max(graph.ir_version, 9)  # of ONNX 1.14, which brought opset 19
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"no FP16-typed form in opset {OPSET}: {str(error).strip().splitlines()[0]}",
            hint="keep the FP32-typed graph for this model",
        ) from error
    with replacing(out) as temporary:
        onnx.save(graph, str(temporary))


def _raise_operators(graph: Any) -> None:
    """Write as opset 18 does what changed there: axes of reductions, and parts of a Split.

    Source:
        ONNX Operator Changelog, opset 18.
    """
    from onnx import helper, numpy_helper

    if Index(graph).opset >= 18:
        return
    for node in graph.graph.node:
        axes = next((item for item in node.attribute if item.name == "axes"), None)
        if node.op_type in REDUCTIONS and axes is not None and node.op_type != "ReduceSum":
            name = fresh_name(graph, f"{node.output[0]}_axes")
            values = numpy_helper.from_array(np.array(axes.ints, np.int64), name)
            graph.graph.initializer.append(values)
            node.input.append(name)
            node.attribute.remove(axes)
        if node.op_type == "Split" and len(node.input) == 1:
            node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))


def _snap_weights(graph: Any) -> None:
    """Quantized weights become integer times FP16 scale."""
    from onnx import numpy_helper

    index = Index(graph)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in index.nodes:
        weight, scale = index.constant(node.input[0]), None
        if node.op_type == QUANTIZE and weight is not None and weight.dtype == np.float32:
            scale = index.constant(node.input[1])
        if weight is None or scale is None or node.input[0] not in tensors:
            continue
        shape = [1] * weight.ndim
        if scale.size > 1:
            shape[weight_axis(index, node) or 0] = scale.size
        steps = np.clip(np.round(weight / scale.reshape(shape)), -128, 127)
        snapped = (steps * _half(scale, label(node)).astype(np.float64).reshape(shape)).astype(np.float32)
        tensors[node.input[0]].CopyFrom(numpy_helper.from_array(snapped, node.input[0]))


def _halve(tensor: Any) -> None:
    from onnx import numpy_helper

    value = numpy_helper.to_array(tensor)
    if value.dtype == np.float32:
        tensor.CopyFrom(numpy_helper.from_array(_half(value, tensor.name), tensor.name))


def _half(value: npt.NDArray[Any], name: str) -> npt.NDArray[np.float16]:
    """FP16 values; a positive one is never rounded to 0, because it may be a scale."""
    if not (np.abs(value) <= HALF_MAX).all():
        raise ModelError(
            f"'{name}' holds {np.abs(value).max():g}, which FP16 (up to {HALF_MAX:g}) cannot",
            hint="keep the FP32-typed graph for this model",
        )
    return np.where((value > 0) & (value < HALF_TINY), HALF_TINY, value).astype(np.float16)


def _from_pixels(graph: Any) -> list[Any]:
    """The nodes, one after the other, that turn pixels into the network's input."""
    index, chain = Index(graph), []
    name = graph.graph.input[0].name
    while takes_pixels(graph):
        readers = index.consumers(name)
        if len(readers) != 1 or readers[0].op_type not in NORMALIZING:
            break
        chain.append(readers[0])
        name = readers[0].output[0]
    return chain


def _full_scales(graph: Any, chain: list[Any]) -> set[str]:
    """Give each Q of the normalized pixels an FP32 scale of its own, apart from its DQ's; their names."""
    index, found = Index(graph), set()
    for node in index.consumers(chain[-1].output[0]) if chain else []:
        scale = next((each for each in graph.graph.initializer if each.name == node.input[1]), None)
        if node.op_type == QUANTIZE and scale is not None:
            graph.graph.initializer.add().CopyFrom(scale)
            name = fresh_name(graph, f"{scale.name}_full")
            node.input[1] = graph.graph.initializer[-1].name = name
            found.add(node.input[1])
    return found


def _cast_after(graph: Any, chain: list[Any]) -> None:
    """FP16 for what reads the normalized pixels, except for a Q."""
    from onnx import helper

    full = chain[-1].output[0] if chain else ""
    nodes, half = list(graph.graph.node), fresh_name(graph, f"{full}_half")
    readers = [node for node in nodes if full in node.input and node.op_type != QUANTIZE] if full else []
    for node in readers:
        node.input[:] = [half if name == full else name for name in node.input]
    if readers:
        cast = helper.make_node("Cast", [full], [half], f"{full}_to_half", to=10)
        graph.graph.node.insert(nodes.index(chain[-1]) + 1, cast)


def _cast_ends(graph: Any, chain: list[Any]) -> None:
    """FP32 at the network's inputs and outputs, so that its users see no difference."""
    from onnx import TensorProto, helper

    body = graph.graph
    ends = [item.name for item in (*body.input, *body.output) if _is_float(item)]
    inner = {name: fresh_name(graph, f"{name}_half") for name in ends}
    for node in body.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = inner.get(name, name)
        if node.op_type == "Cast" and node not in chain:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
    for item in reversed(body.input):
        if item.name in inner:
            cast = helper.make_node("Cast", [item.name], [inner[item.name]], f"{item.name}_to_half", to=10)
            body.node.insert(0, cast)
    for item in body.output:
        if item.name in inner:
            cast = helper.make_node("Cast", [inner[item.name]], [item.name], f"{item.name}_to_float", to=1)
            body.node.append(cast)


def _is_float(item: Any) -> bool:
    return bool(item.type.tensor_type.elem_type == 1)
