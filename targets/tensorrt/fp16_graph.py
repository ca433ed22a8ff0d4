"""The FP16-typed form of a graph, for strongly typed builds (recommended from TensorRT 10.12 on)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from edgeship.targets.tensorrt.lint import channel_axis
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.edit import Names, add_constant, set_constant
from edgeship.toolkit.graph.load import load_unchanged
from edgeship.toolkit.graph.opset import FLOAT_OPSET, raise_opset
from edgeship.toolkit.graph.query import QUANTIZE, array, input_at, label

FLOAT_INPUTS = {"Resize": 2, "Upsample": 1}  # scales, by the operators' definitions
NORMALIZING = ("Cast", "Mul", "Sub", "Add", "Div", "Transpose")
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
HALF_MAX = float(np.finfo(np.float16).max)
HALF_TINY = float(np.finfo(np.float16).smallest_subnormal)


def to_half(model: Path, out: Path) -> None:
    """Write the graph with FP16 weights, biases, scales and activations; inputs and outputs stay FP32.

    The integers of quantized weights do not change: each weight is stored as its integer times the FP16
    scale, which is within 1/16 of a step after rounding, so the Q finds the same integer again. The nodes
    that normalize uint8 pixels, and the scale of their Q, stay FP32: FP16 would move some integers by one.

    Args:
        model: An FP32-typed ONNX file, with or without Q/DQ.
        out: File of the FP16-typed one.

    Raises:
        ModelError: The file is no ONNX model, or a value does not fit into FP16.
    """
    loaded = load_unchanged(model)
    graph = loaded.graph
    names = Names(graph)
    _snap_weights(graph)
    chain = _normalization(graph)
    kept = {id(value) for node in chain for value in node.inputs} | _full_scales(graph, chain, names)
    kept |= _only_float(graph, names)
    for value in graph.initializers.values():
        if id(value) not in kept and value.dtype == FLOAT:
            _set_half(value, array(value))
    _cast_ends(graph, chain, names)
    _cast_after(graph, chain, names)
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None  # FP32 types would contradict
    raise_opset(loaded)
    try:
        onnx.checker.check_model(ir.to_proto(loaded), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"no FP16-typed form in opset {FLOAT_OPSET}: {str(error).strip().splitlines()[0]}",
            hint="keep the FP32-typed graph for this model",
        ) from error
    io.save(loaded, out)


def _snap_weights(graph: ir.Graph) -> None:
    """Replace quantized weights by integer times FP16 scale."""
    for node in graph:
        value = input_at(node, 0) if node.op_type == QUANTIZE else None
        weight, scale = array(value), array(input_at(node, 1))
        if value is None or weight is None or scale is None or weight.dtype != np.float32:
            continue
        shape = [1] * weight.ndim
        if scale.size > 1:
            shape[channel_axis(node) or 0] = scale.size
        steps = np.clip(np.round(weight / scale.reshape(shape)), -128, 127)
        half = _half(scale, label(node)).astype(np.float64)
        set_constant(value, (steps * half.reshape(shape)).astype(np.float32))


def _set_half(value: ir.Value, values: npt.NDArray[np.float32] | None) -> None:
    if values is not None:
        set_constant(value, _half(values, str(value.name)))
        value.dtype = HALF


def _half(value: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float16]:
    """Return FP16 values; a positive one is never rounded to 0, because it may be a scale.

    Raises:
        ModelError: A value is larger than FP16 holds.
    """
    if not (np.abs(value) <= HALF_MAX).all():
        raise ModelError(
            f"'{name}' holds {np.abs(value).max():g}, which FP16 (up to {HALF_MAX:g}) cannot",
            hint="keep the FP32-typed graph for this model",
        )
    return np.where((value > 0) & (value < HALF_TINY), HALF_TINY, value).astype(np.float16)


def _normalization(graph: ir.Graph) -> list[ir.Node]:
    """Return the chain of nodes that normalizes uint8 pixels; [] for a float input."""
    chain: list[ir.Node] = []
    value = graph.inputs[0]
    while graph.inputs[0].dtype == ir.DataType.UINT8:
        readers = value.consumers()
        if len(readers) != 1 or readers[0].op_type not in NORMALIZING:
            break
        chain.append(readers[0])
        value = readers[0].outputs[0]
    return chain


def _full_scales(graph: ir.Graph, chain: list[ir.Node], names: Names) -> set[int]:
    """Give each Q of the normalized pixels its own FP32 scale; return the identities of these scales."""
    scales = set()
    for node in chain[-1].outputs[0].consumers() if chain else ():
        scale = array(input_at(node, 1))
        if node.op_type == QUANTIZE and scale is not None:
            full = add_constant(graph, f"{node.inputs[1].name}_full", scale, names)  # type: ignore[union-attr]
            node.replace_input_with(1, full)
            scales.add(id(full))
    return scales


def _only_float(graph: ir.Graph, names: Names) -> set[int]:
    """Give each input that is FP32 by definition (scales of a Resize) its own constant; return identities."""
    kept = set()
    for node in list(graph):
        place = FLOAT_INPUTS.get(node.op_type)
        values = array(input_at(node, place)) if place is not None else None
        if place is not None and values is not None:
            own = add_constant(graph, f"{node.inputs[place].name}_float", values, names)  # type: ignore[union-attr]
            node.replace_input_with(place, own)
            kept.add(id(own))
    return kept


def _cast_after(graph: ir.Graph, chain: list[ir.Node], names: Names) -> None:
    """Cast the normalized pixels to FP16 for their consumers except a Q."""
    if chain:
        full = chain[-1].outputs[0]
        uses = [use for use in full.uses() if use.node.op_type != QUANTIZE]
        if uses:
            cast = _cast(full, HALF, f"{full.name}_to_half", names.new(f"{full.name}_half"))
            graph.insert_after(chain[-1], cast)
            for use in uses:
                use.node.replace_input_with(use.idx, cast.outputs[0])


def _cast_ends(graph: ir.Graph, chain: list[ir.Node], names: Names) -> None:
    """Cast float inputs to FP16 and float outputs to FP32, so that users of the network see no difference."""
    for node in graph:
        if node.op_type == "Cast" and node not in chain and node.attributes.get_int("to", 0) == FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", HALF)
    for value in reversed(graph.inputs):
        if value.dtype == FLOAT and value.uses():
            uses = value.uses()
            cast = _cast(value, HALF, f"{value.name}_to_half", names.new(f"{value.name}_half"))
            graph.insert_before(graph[0], cast)
            for use in uses:
                use.node.replace_input_with(use.idx, cast.outputs[0])
    for place, value in enumerate(graph.outputs):
        if value.dtype == FLOAT and value.producer() is not None:
            name = str(value.name)
            value.name = names.new(f"{name}_half")
            cast = _cast(value, FLOAT, f"{name}_to_float", name)
            cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
            graph.append(cast)
            graph.outputs[place] = cast.outputs[0]


def _cast(value: ir.Value, kind: ir.DataType, name: str, result: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": kind}, name=name)
    node.outputs[0].name = result
    return node
