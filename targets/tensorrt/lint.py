"""Rules of a TensorRT version for an ONNX graph, checked without a device.

Errors are what the parser refuses, or reads as something else. Warnings are what it accepts and runs slowly:
see `placement`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeship.targets.tensorrt import placement, versions
from edgeship.targets.tensorrt.versions import Rules
from edgeship.toolkit.core.results import Finding
from edgeship.toolkit.graph.load import load_unchanged
from edgeship.toolkit.graph.query import (
    DEQUANTIZE,
    QUANTIZE,
    array,
    before_pair,
    dtype,
    input_at,
    integer,
    is_constant_weight,
    label,
    producer,
    weight_axis,
)

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INTEGER_OPERATORS = (
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
    *("QLinearAdd", "QLinearGlobalAveragePool", "QLinearAveragePool", "QGemm"),
)
UNSTATED = "no axis, which some versions read as 0, others as 1"
INDEPENDENT_RULE = (
    "docs.nvidia.com/deeplearning/tensorrt, Working with Quantized Types, explicit quantization"
)


def lint(model: Path, version: str) -> list[Finding]:
    """Return the violations of a TensorRT version's rules, in graph order, errors first.

    Args:
        model: An ONNX file, with or without Q/DQ.
        version: TensorRT version ("8.5", "10.3.0.30").

    Raises:
        ModelError: The file is no ONNX model.
        RecipeError: The version is unknown.
    """
    return findings(load_unchanged(model), versions.rules(version))


def findings(model: ir.Model, rules: Rules) -> list[Finding]:
    """Return the findings of `lint` for a loaded graph."""
    graph = model.graph
    results = [*_opset(graph, rules), *_pixels(graph, rules)]
    for node in graph:
        if not node.outputs:
            continue
        if node.op_type in INTEGER_OPERATORS:
            results.append(_integer_operator(node))
        elif node.op_type in (QUANTIZE, DEQUANTIZE):
            results.extend(_quantizer(node, rules))
        if node.op_type in (*WEIGHTED, "Add"):
            results.extend(_mixed_types(node))
    results.extend(placement.findings(graph))
    return sorted(dict.fromkeys(results), key=lambda finding: finding.severity == "warning")


def _opset(graph: ir.Graph, rules: Rules) -> Iterator[Finding]:
    opset = opset_of(graph)
    if opset > rules.max_opset:
        yield Finding(
            *("opset-too-new", "error", "(graph)"),
            f"opset {opset}; TensorRT {rules.name} reads up to {rules.max_opset}",
            f"export with opset {min(rules.max_opset, 17)}; 13 is read by every version, 17 from 8.4 on",
            versions.OPSETS,
            repairable=True,
        )
    per_channel = [n for n in graph if n.op_type in (QUANTIZE, DEQUANTIZE) and _scales(n).size > 1]
    if opset < 13 and per_channel:
        yield Finding(
            *("opset-too-old", "error", label(per_channel[0])),
            f"opset {opset} has no per-channel scales: the axis came with opset 13",
            "export with opset 13 or 17",
            "ONNX operator QuantizeLinear-13",
        )


def opset_of(graph: ir.Graph) -> int:
    """Return the version of the standard operators."""
    return graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))


def _pixels(graph: ir.Graph, rules: Rules) -> Iterator[Finding]:
    """Yield findings for uint8 inputs: supported from 8.5 on, each consumer a Cast."""
    for value in graph.inputs:
        if value.dtype != ir.DataType.UINT8:
            continue
        others = [node for node in value.consumers() if node.op_type != "Cast"]
        if not rules.uint8_input:
            yield Finding(
                *("uint8-input", "error", str(value.name)),
                f"the network's input is uint8, which TensorRT {rules.name} does not have",
                "give it the graph with a float32 input (export.input=float32); 8.5 and later take this one",
                versions.UINT8_INPUTS,
            )
        elif others:
            yield Finding(
                *("uint8-input", "error", str(value.name)),
                f"the uint8 input is read by {label(others[0])} ({others[0].op_type}), not by a Cast",
                "make a Cast to float32 the first node (`edgeship quantize --input uint8` does)",
                versions.UINT8_INPUTS,
            )


def _integer_operator(node: ir.Node) -> Finding:
    return Finding(
        *("integer-operator", "error", label(node)),
        f"{node.op_type} is no operator of TensorRT, which takes INT8 as Q/DQ nodes only",
        "quantize with Q/DQ nodes (`edgeship quantize`; in ONNX Runtime quant_format=QDQ)",
        versions.PARSER,
    )


def _quantizer(node: ir.Node, rules: Rules) -> Iterator[Finding]:
    """Yield the findings of one QuantizeLinear or DequantizeLinear."""
    if node.op_type == DEQUANTIZE and dtype(input_at(node, 0)) == "int32":
        readers = node.outputs[0].consumers()
        yield Finding(
            *("int32-bias", "error", label(node)),
            f"the bias of {label(readers[0]) if readers else 'nothing'} is INT32 behind a DequantizeLinear",
            "keep biases in float (in ONNX Runtime QuantizeBias=False)",
            f"{versions.PARSER}; {versions.CPU_PARSER}: input has type Int32 but must have type ... Int8",
            repairable=True,
        )
        return
    yield from _zero_point(node, rules)
    yield from _scale(node, rules)
    yield from _axis(node)
    yield from _partner(node, rules)


def _zero_point(node: ir.Node, rules: Rules) -> Iterator[Finding]:
    value = input_at(node, 2)
    if "uint8" in (dtype(value), dtype(input_at(node, 0))):
        yield _unsigned(node, rules)
    if value is None:
        required = rules.needs_zero_point
        yield Finding(
            *("missing-zero-point", "error" if required else "warning", label(node)),
            f"{node.op_type} has no zero point, which TensorRT {rules.name} requires"
            if required
            else f"{node.op_type} has no zero point: ONNX takes its integers for uint8, TensorRT for int8",
            "add an int8 zero point of zeros",
            f"{versions.PARSER}: This version of TensorRT requires 3 inputs",
            repairable=True,
        )
        return
    zeros = array(value)
    if zeros is None:
        yield _computed(node, "zero point")
        return
    scales = _scales(node)
    if scales.size and zeros.size != scales.size:
        yield Finding(
            *("zero-point-size", "error", label(node)),
            f"{zeros.size} zero points for {scales.size} scales",
            "write as many zeros as there are scales",
            versions.PARSER,
            repairable=True,
        )
    if zeros.any() and str(zeros.dtype) in ("int8", "uint8"):
        yield Finding(
            *("asymmetric", "error", label(node)),
            f"zero point {_values(zeros)}: TensorRT reads symmetric quantization only",
            "quantize symmetrically (`edgeship quantize`; elsewhere ActivationSymmetric, WeightSymmetric)",
            f"{versions.PARSER}: TensorRT only supports symmetric quantization",
            repairable=True,
        )


def _unsigned(node: ir.Node, rules: Rules) -> Finding:
    effect = (
        "refuses them"
        if rules.needs_zero_point
        else "reads them as INT8 with no more than a warning, and cuts off everything above 127"
    )
    return Finding(
        *("uint8", "error", label(node)),
        f"unsigned 8-bit integers: TensorRT {rules.name} {effect}",
        "quantize to int8 (TensorRT's scheme), with the scale of the larger side divided by 127",
        f"{versions.PARSER}; {versions.CPU_PARSER}: UINT8 zero_point ... Defaulting to INT8 instead",
        repairable=True,
    )


def _scale(node: ir.Node, rules: Rules) -> Iterator[Finding]:
    scales = array(input_at(node, 1))
    if scales is None:
        yield _computed(node, "scale")
        return
    if scales.ndim > 1:
        yield Finding(
            *("scale-shape", "error", label(node)),
            f"scales of shape {scales.shape}: TensorRT reads one scale, or one row of them",
            "reshape them to a scalar, or to (output channels,)",
            f"{versions.CPU_PARSER}: Invalid rank for the scale tensor",
        )
    valid = np.isfinite(scales) & (scales > 0)
    if not (scales.size and valid.all()):
        yield Finding(
            *("scale-not-positive", "error", label(node)),
            f"scale {_values(scales[~valid])}: scales must be finite and above zero",
            "calibrate again; an all-zero channel takes any small positive scale",
            f"{versions.PARSER}: Scale coefficients must all be positive",
        )
    if scales.dtype != np.float32 and not rules.half_scales:
        yield Finding(
            *("scale-type", "error", label(node)),
            f"{scales.dtype} scales; TensorRT {rules.name} reads the buffer as 32-bit floats",
            "use the FP32-typed graph for this version",
            versions.PARSER,
        )


def _axis(node: ir.Node) -> Iterator[Finding]:
    scales = _scales(node)
    if scales.size <= 1:
        return
    if not is_constant_weight(input_at(node, 0)):
        yield Finding(
            *("per-channel-activation", "error", label(node)),
            f"{scales.size} scales on an activation: only weights can have one for each channel",
            "quantize activations with one scale",
            f"{versions.PARSER}: Activations-quantization does not support per-axis quantization",
        )
        return
    axis = channel_axis(node)
    if axis is None:
        return
    channels = output_channels(node, axis)
    stated, expected = integer(node, "axis", 1), f"the output channels lie on axis {axis}"
    if "axis" not in node.attributes:
        yield _wrong_axis(node, f"{UNSTATED}; {expected}", repairable=channels == scales.size)
    elif stated != axis:
        yield _wrong_axis(node, f"axis {stated}; {expected}", repairable=channels == scales.size)
    elif channels not in (None, scales.size):
        yield _wrong_axis(node, f"{scales.size} scales for {channels} output channels", repairable=False)


def _wrong_axis(node: ir.Node, message: str, *, repairable: bool) -> Finding:
    return Finding(
        *("weight-axis", "error", label(node)),
        message,
        "state the axis of the output channels: 0 for Conv and for Gemm with transB=1",
        f"{versions.PARSER}; {versions.CPU_PARSER}: The number of scales is not equal ...",
        repairable=repairable,
    )


def _partner(node: ir.Node, rules: Rules) -> Iterator[Finding]:
    """Yield a finding for a Q without a DQ, and for stored integers where a version needs floats."""
    others = [reader for reader in node.outputs[0].consumers() if reader.op_type != DEQUANTIZE]
    first = input_at(node, 0)
    if node.op_type == DEQUANTIZE and _reads_floats(first):
        yield Finding(
            *("dequantize-without-quantize", "error", label(node)),
            "its input is float, not the integers of a QuantizeLinear",
            "put a QuantizeLinear with the same scale before it",
            f"{versions.CPU_PARSER}: input has type Float but must have type ... Int8",
        )
    if node.op_type == QUANTIZE and others:
        yield Finding(
            *("quantize-without-dequantize", "error", label(node)),
            f"its integers are read by {label(others[0])} ({others[0].op_type}), not by a DequantizeLinear",
            "follow every QuantizeLinear with a DequantizeLinear",
            INDEPENDENT_RULE,
        )
    if node.op_type == DEQUANTIZE and array(first) is not None and not rules.int8_weights:
        yield Finding(
            *("integer-weights", "error", label(node)),
            f"integer weights with a DequantizeLinear alone; TensorRT {rules.name} requires FP32, Q and DQ",
            "store FP32 weights with QuantizeLinear and DequantizeLinear (AddQDQPairToWeight=True)",
            versions.PARSER,
            repairable=True,
        )


def _reads_floats(value: ir.Value | None) -> bool:
    """Return True if a tensor is no result of a Q or Cast, also through operators that move values."""
    node = producer(value)
    while node is not None and node.op_type in placement.COMMUTING:
        value = input_at(node, 0)
        node = producer(value)
    if node is None:
        return value is not None and _float_type(value) not in ("", "float8e4m3fn")
    return node.op_type not in (QUANTIZE, "Cast", *INTEGER_OPERATORS)


def _mixed_types(node: ir.Node) -> Iterator[Finding]:
    """Yield a finding if data, weight and bias of a layer, or the inputs of an Add, differ in float type."""
    roles = ("first input", "second input") if node.op_type == "Add" else ("data", "weight", "bias")
    types = {role: _float_type(value) for role, value in zip(roles, node.inputs, strict=False)}
    if node.op_type in WEIGHTED:  # an Add may compute shapes
        stored = zip(roles, map(dtype, node.inputs), strict=False)
        types |= {role: kind for role, kind in stored if "int" in kind}
    types = {role: kind for role, kind in types.items() if kind}
    if len(set(types.values())) > 1:
        yield Finding(
            *("mixed-types", "error", label(node)),
            ", ".join(f"{role} is {kind}" for role, kind in types.items()),
            "make the inputs of one layer the same type",
            f"{versions.CPU_PARSER}: `input` and `bias` must be of same type",
        )


def _float_type(value: ir.Value | None) -> str:
    """Return the float type of a tensor: that of a DQ's scale or of the first input; "" if it is unknown.

    float64 counts as float32, to which the parser converts it.
    """
    visited: set[int] = set()
    while (node := producer(value)) is not None and id(node) not in visited:
        visited.add(id(node))  # an invalid graph may have a cycle
        if node.op_type == "Cast":
            value = None if integer(node, "to", 0) != ir.DataType.FLOAT16 else value
            return "float16" if value is not None else ""
        value = input_at(node, int(node.op_type in (DEQUANTIZE, "Where")))
    kind = value.dtype.name.lower() if value is not None and value.dtype is not None else dtype(value)
    return {"float": "float32", "double": "float32", "float64": "float32"}.get(
        kind, kind if "float" in kind else ""
    )


def channel_axis(node: ir.Node) -> int | None:
    """Return the output-channel axis of the weights that a Q or DQ belongs to; None without a layer."""
    for reader in node.outputs[0].consumers():
        if reader.op_type == DEQUANTIZE:
            return channel_axis(reader)
        if reader.op_type in WEIGHTED:
            return weight_axis(reader)
    return None


def output_channels(node: ir.Node, axis: int) -> int | None:
    """Return the size of an axis of the weights that a Q or DQ belongs to; None if it is unknown."""
    weights = array(before_pair(input_at(node, 0)))
    return weights.shape[axis] if weights is not None and axis < weights.ndim else None


def _scales(node: ir.Node) -> npt.NDArray[Any]:
    scales = array(input_at(node, 1))
    return np.zeros(0) if scales is None else scales


def _computed(node: ir.Node, role: str) -> Finding:
    return Finding(
        *("scale-not-constant", "error", label(node)),
        f"its {role} is computed in the graph: TensorRT needs a constant",
        "fold constants before (onnxsim), or quantize statically",
        versions.PARSER,
    )


def _values(values: Any) -> str:
    flat = [f"{value:g}" for value in np.asarray(values, np.float64).reshape(-1)[:3]]
    return ", ".join(flat) + (", ..." if np.size(values) > 3 else "")
