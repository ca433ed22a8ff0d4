"""FP16 types of a graph as explicit rounding: FP32 arithmetic, and each FP16 tensor rounded to FP16.

ONNX Runtime's CPU provider has few FP16 kernels. It computes the other nodes in FP32 and removes the Casts
that it inserted between two of them, so their results are never rounded; the FP16 QuantizeLinear of version
1.23 rounds wrongly. Casts that are in the graph itself stay.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXACT = frozenset({"DequantizeLinear", "Cast"})  # a kernel reads the integers; a Cast is written as two


def as_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph with FP16 types as one with FP32 types and the same values; others are returned as is.

    The sums of a layer are exact to FP32, as on Tensor Cores; its output is rounded to FP16 before the next
    node, also where a GPU fuses both and rounds once. The output of a DequantizeLinear is not rounded:
    integer kernels read its input.
    """
    constants = {item.name for item in model.graph.initializer if item.data_type == TensorProto.FLOAT16}
    if not constants and not any(map(_is_half, (*model.graph.input, *model.graph.output))):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(result, strict_mode=True).graph
    half = {each.name for each in (*graph.input, *inferred.value_info, *graph.output) if _is_half(each)}
    for item in graph.initializer:
        if item.name in constants:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float32), item.name))
    for value in (*graph.input, *graph.output):
        if value.name in half:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = []
    for node in list(graph.node):
        nodes.append(node)
        casts = node.op_type == "Cast"
        for attribute in node.attribute:
            if attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(
                    numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32))
                )
        for place, name in enumerate(node.output):
            if name in half and (casts or node.op_type not in EXACT):
                node.output[place] = f"{name}/exact"
                nodes += _rounded(node.output[place], name)
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _is_half(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _rounded(exact: str, name: str) -> list[onnx.NodeProto]:
    narrow = f"{name}/half"
    return [
        helper.make_node("Cast", [exact], [narrow], name=narrow, to=TensorProto.FLOAT16),
        helper.make_node("Cast", [narrow], [name], name=f"{name}/rounded", to=TensorProto.FLOAT),
    ]
