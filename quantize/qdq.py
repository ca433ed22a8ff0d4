"""Q/DQ graph: insert QuantizeLinear/DequantizeLinear pairs after weights and activations."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgeship.quantization.qparams import stored_array
from edgeship.toolkit.core.quant import FloatArray, QParams
from edgeship.toolkit.graph import edit, io
from edgeship.toolkit.graph.edit import Names


def insert(
    model: ir.Model,
    activations: Mapping[str, QParams],
    weights: Mapping[str, QParams],
    biases: Mapping[str, FloatArray],
    *,
    store_integers: bool = False,
) -> ir.Model:
    """Insert Q/DQ pairs after tensors and correct biases.

    The form is compatible with TensorRT 8.2 and later and with OpenVINO: explicit zero points and axes,
    float32 scales, float weights before their Q, float biases.

    Args:
        model: A float graph.
        activations: Tensor name -> parameters.
        weights: Initializer name -> parameters.
        biases: Node name -> correction of its bias, one value per output channel.
        store_integers: Store weights as integers, with a DQ alone.

    Returns:
        A new graph.
    """
    changed = io.copy(model)
    graph = changed.graph
    _correct(graph, biases)
    values = {str(v.name): v for v in (*graph.inputs, *(v for node in graph for v in node.outputs))}
    values |= {name: value for name, value in graph.initializers.items() if name is not None}
    names = Names(graph)
    for name, qparams in (*activations.items(), *weights.items()):
        _pair(graph, values[name], qparams, names, folded=store_integers and name in weights)
    return changed


def _pair(graph: ir.Graph, value: ir.Value, qparams: QParams, names: Names, *, folded: bool) -> None:
    uses = list(value.uses())
    name = str(value.name)
    per_tensor = qparams.spec.axis is None
    scale = np.asarray(qparams.scale[0] if per_tensor else qparams.scale, np.float32)
    zero_point = qparams.zero_point[0] if per_tensor else qparams.zero_point
    kind = ml_dtypes.float8_e4m3fn if qparams.spec.dtype == "float8e4m3fn" else qparams.spec.stored
    zero = np.add(zero_point, qparams.spec.offset).astype(kind)
    constants = [
        edit.add_constant(graph, f"{name}/scale", scale, names),
        edit.add_constant(graph, f"{name}/zero_point", zero, names),
    ]
    attributes = {} if per_tensor else {"axis": int(qparams.spec.axis or 0)}

    def node(kind: str, source: ir.Value, suffix: str) -> ir.Node:
        node_name = names.new(f"{name}/{kind[:-6].lower()}")
        new = ir.node(kind, [source, *constants], attributes=attributes, name=node_name)
        new.outputs[0].name = names.new(f"{name}/{suffix}")
        return new

    if folded:
        stored = edit.add_constant(
            graph, f"{name}/quantized", stored_array(edit.constant(value), qparams), names
        )
        pair = [node("DequantizeLinear", stored, "dequantized")]
    else:
        quantize = node("QuantizeLinear", value, "quantized")
        pair = [quantize, node("DequantizeLinear", quantize.outputs[0], "dequantized")]
    result = pair[-1].outputs[0]
    result.shape, result.type = value.shape, value.type
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, pair)
    else:
        first = uses[0].node if len(uses) == 1 else min((use.node for use in uses), key=graph.index)
        graph.insert_before(first, pair)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    if folded:
        graph.initializers.pop(name)


def _correct(graph: ir.Graph, biases: Mapping[str, FloatArray]) -> None:
    for node in list(graph):
        shift = biases.get(str(node.name))
        if shift is not None:
            edit.add_to_bias(graph, node, shift)
