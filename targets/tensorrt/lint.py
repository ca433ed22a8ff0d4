"""Whether a TensorRT version will read an ONNX graph, and build what it means: every rule, before any device.

Errors are what the parser refuses, or reads as something else. Warnings are what it accepts and runs slowly:
see `placement`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeship.targets.tensorrt import versions
from edgeship.targets.tensorrt._index import (
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED,
    Index,
    attribute,
    finite_positive,
    has_attribute,
    label,
    load,
)
from edgeship.targets.tensorrt.versions import Rules

INTEGER_OPERATORS = (
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
    *("QLinearAdd", "QLinearGlobalAveragePool", "QLinearAveragePool", "QGemm"),
)
INDEPENDENT_RULE = (
    "docs.nvidia.com/deeplearning/tensorrt, Working with Quantized Types, explicit quantization"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a graph.

    Attributes:
        rule: Name of the rule, stable.
        severity: "error": refused or misread; "warning": accepted, and slower than it need be.
        node: The ONNX node.
        message: What is wrong, in words.
        fix: What to do.
        source: Where the rule comes from.
        repairable: Whether `repair.fix` does it.
    """

    rule: str
    severity: Literal["error", "warning"]
    node: str
    message: str
    fix: str
    source: str
    repairable: bool = False


def lint(model: Path, version: str) -> list[Finding]:
    """Everything that a TensorRT version would refuse, misread or run slowly.

    Args:
        model: An ONNX file, with or without Q/DQ.
        version: TensorRT version ("8.5", "10.3.0.30").

    Returns:
        Findings in the order of the graph; errors first.

    Raises:
        ModelError: The file is no ONNX model.
        RecipeError: The version is unknown.
    """
    return findings(load(model), versions.rules(version))


def findings(model: Any, rules: Rules) -> list[Finding]:
    """`lint` of a model in memory."""
    from edgeship.targets.tensorrt import placement

    index = Index(model)
    found = [*_opset(index, rules), *_pixels(index, rules)]
    for node in index.nodes:
        if node.op_type in INTEGER_OPERATORS:
            found.append(_integer_operator(node))
        elif node.op_type in (QUANTIZE, DEQUANTIZE):
            found.extend(_pair_part(index, node, rules))
        if node.op_type in WEIGHTED:
            found.extend(_mixed_types(index, node))
    found.extend(placement.findings(index))
    return sorted(dict.fromkeys(found), key=lambda finding: finding.severity == "warning")


def _opset(index: Index, rules: Rules) -> Iterator[Finding]:
    if index.opset > rules.max_opset:
        yield Finding(
            *("opset-too-new", "error", "(graph)"),
            f"opset {index.opset}; TensorRT {rules.name} reads up to {rules.max_opset}",
            f"export with opset {min(rules.max_opset, 17)}; 13 is read by every version, 17 from 8.4 on",
            versions.OPSETS,
            repairable=True,
        )
    pairs = [node for node in index.nodes if node.op_type in (QUANTIZE, DEQUANTIZE)]
    per_channel = [node for node in pairs if _scales(index, node).size > 1]
    if index.opset < 13 and per_channel:
        yield Finding(
            *("opset-too-old", "error", label(per_channel[0])),
            f"opset {index.opset} has no per-channel scales: the axis came with opset 13",
            "export with opset 13 or 17",
            "ONNX operator QuantizeLinear-13",
        )


def _pixels(index: Index, rules: Rules) -> Iterator[Finding]:
    """A uint8 input goes into a Cast at once, and older versions have none."""
    from onnx import TensorProto

    for item in index.model.graph.input:
        if item.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        readers = [node for node in index.consumers(item.name) if node.op_type != "Cast"]
        if not rules.uint8_input:
            yield Finding(
                *("uint8-input", "error", item.name),
                f"the network's input is uint8, which TensorRT {rules.name} does not have",
                "give it the graph with a float32 input (export.input=float32); 8.5 and later take this one",
                versions.UINT8_INPUTS,
            )
        elif readers:
            yield Finding(
                *("uint8-input", "error", item.name),
                f"the uint8 input is read by {label(readers[0])} ({readers[0].op_type}), not by a Cast",
                "make a Cast to float32 the first node (`edgeship quantize --input uint8` does)",
                versions.UINT8_INPUTS,
            )


def _integer_operator(node: Any) -> Finding:
    return Finding(
        *("integer-operator", "error", label(node)),
        f"{node.op_type} is no operator of TensorRT, which takes INT8 as Q/DQ nodes only",
        "quantize with Q/DQ nodes (`edgeship quantize`; in ONNX Runtime quant_format=QDQ)",
        versions.PARSER,
    )


def _pair_part(index: Index, node: Any, rules: Rules) -> Iterator[Finding]:
    """The rules of one QuantizeLinear or DequantizeLinear."""
    if node.op_type == DEQUANTIZE and index.element_type(node.input[0]) == "int32":
        yield Finding(
            *("int32-bias", "error", label(node)),
            f"the bias of {_reader(index, node)} is INT32 behind a DequantizeLinear",
            "keep biases in float (in ONNX Runtime QuantizeBias=False)",
            f"{versions.PARSER}; {versions.CPU_PARSER}: input has type Int32 but must have type ... Int8",
            repairable=True,
        )
        return
    yield from _zero_point(index, node, rules)
    yield from _scale(index, node, rules)
    yield from _axis(index, node)
    yield from _partner(index, node, rules)


def _zero_point(index: Index, node: Any, rules: Rules) -> Iterator[Finding]:
    name = node.input[2] if len(node.input) > 2 else ""
    if "uint8" in (index.element_type(name), index.element_type(node.input[0])):
        yield _unsigned(node, rules)
    if not name:
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
    zeros = index.constant(name)
    if zeros is None:
        yield _computed(node, "zero point")
        return
    scales = _scales(index, node)
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


def _unsigned(node: Any, rules: Rules) -> Finding:
    does = (
        "refuses them"
        if rules.needs_zero_point
        else "reads them as INT8 with no more than a warning, and cuts off everything above 127"
    )
    return Finding(
        *("uint8", "error", label(node)),
        f"unsigned 8-bit integers: TensorRT {rules.name} {does}",
        "quantize to int8 (TensorRT's scheme), with the scale of the larger side divided by 127",
        f"{versions.PARSER}; {versions.CPU_PARSER}: UINT8 zero_point ... Defaulting to INT8 instead",
        repairable=True,
    )


def _scale(index: Index, node: Any, rules: Rules) -> Iterator[Finding]:
    scales = index.constant(node.input[1])
    if scales is None:
        yield _computed(node, "scale")
        return
    if not finite_positive(scales):
        bad = scales[~(np.isfinite(scales) & (scales > 0))]
        yield Finding(
            *("scale-not-positive", "error", label(node)),
            f"scale {_values(bad)}: scales must be finite and above zero",
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


def _axis(index: Index, node: Any) -> Iterator[Finding]:
    scales = _scales(index, node)
    if scales.size <= 1:
        return
    if not index.weights(node.input[0]):
        yield Finding(
            *("per-channel-activation", "error", label(node)),
            f"{scales.size} scales on an activation: only weights can have one for each channel",
            "quantize activations with one scale",
            f"{versions.PARSER}: Activations-quantization does not support per-axis quantization",
        )
        return
    wanted = weight_axis(index, node)
    stated = attribute(node, "axis", 1)
    if wanted is None or (has_attribute(node, "axis") and stated == wanted):
        shape = _weight_shape(index, node)
        if wanted is not None and shape and shape[wanted] != scales.size:
            yield _wrong_axis(
                node, f"{scales.size} scales for {shape[wanted]} output channels", repairable=False
            )
        return
    spelt = (
        f"axis {stated}"
        if has_attribute(node, "axis")
        else "no axis, which some versions read as 0, others as 1"
    )
    shape = _weight_shape(index, node)
    fits = bool(shape) and shape[wanted] == scales.size
    yield _wrong_axis(node, f"{spelt}; the output channels lie on axis {wanted}", repairable=fits)


def _wrong_axis(node: Any, message: str, *, repairable: bool) -> Finding:
    return Finding(
        *("weight-axis", "error", label(node)),
        message,
        "state the axis of the output channels: 0 for Conv and for Gemm with transB=1",
        f"{versions.PARSER}; {versions.CPU_PARSER}: The number of scales is not equal ...",
        repairable=repairable,
    )


def _partner(index: Index, node: Any, rules: Rules) -> Iterator[Finding]:
    """Q is followed by DQ, and DQ follows Q (or holds integer weights, for versions that read those)."""
    if node.op_type == QUANTIZE:
        readers = index.consumers(node.output[0])
        if any(reader.op_type != DEQUANTIZE for reader in readers):
            other = next(reader for reader in readers if reader.op_type != DEQUANTIZE)
            yield Finding(
                *("quantize-without-dequantize", "error", label(node)),
                f"its integers are read by {label(other)} ({other.op_type}), not by a DequantizeLinear",
                "follow every QuantizeLinear with a DequantizeLinear",
                INDEPENDENT_RULE,
            )
    elif index.is_constant(node.input[0]) and not rules.int8_weights:
        yield Finding(
            *("integer-weights", "error", label(node)),
            f"integer weights with a DequantizeLinear alone; TensorRT {rules.name} wants FP32, Q and DQ",
            "store FP32 weights with QuantizeLinear and DequantizeLinear (AddQDQPairToWeight=True)",
            versions.PARSER,
            repairable=True,
        )


def _mixed_types(index: Index, node: Any) -> Iterator[Finding]:
    """Data, weight and bias of one layer have one type: a DequantizeLinear gives that of its scale."""
    types = {}
    for role, name in zip(("data", "weight", "bias"), node.input, strict=False):
        before = index.producer(name)
        if before is not None and before.op_type == DEQUANTIZE:
            types[role] = index.element_type(before.input[1])
        elif index.is_constant(name):
            types[role] = index.element_type(name)
    known = {kind for kind in types.values() if kind.startswith("float")}
    if len(known) > 1:
        yield Finding(
            *("mixed-types", "error", label(node)),
            ", ".join(f"{role} is {kind}" for role, kind in types.items()),
            "make data, weight and bias of one layer the same type",
            f"{versions.CPU_PARSER}: `input` and `bias` must be of same type",
        )


def weight_axis(index: Index, node: Any) -> int | None:
    """The axis of the output channels of the weights a Q or DQ belongs to; None where no layer reads them."""
    for reader in index.consumers(node.output[0]):
        if reader.op_type == DEQUANTIZE:
            return weight_axis(index, reader)
        if reader.op_type == "Conv":
            return 0
        if reader.op_type in ("ConvTranspose", "MatMul"):
            return 1
        if reader.op_type == "Gemm":
            return 0 if attribute(reader, "transB", 0) else 1
    return None


def _weight_shape(index: Index, node: Any) -> tuple[int, ...]:
    name = node.input[0]
    before = index.producer(name)
    value = index.constant(before.input[0] if before is not None and before.op_type == QUANTIZE else name)
    return () if value is None else value.shape


def _scales(index: Index, node: Any) -> Any:
    scales = index.constant(node.input[1])
    return np.zeros(0) if scales is None else scales


def _reader(index: Index, node: Any) -> str:
    readers = index.consumers(node.output[0])
    return label(readers[0]) if readers else "nothing"


def _computed(node: Any, what: str) -> Finding:
    return Finding(
        *("scale-not-constant", "error", label(node)),
        f"its {what} is computed in the graph: TensorRT needs a constant",
        "fold constants before (onnxsim), or quantize statically",
        versions.PARSER,
    )


def _values(values: Any) -> str:
    flat = [f"{value:g}" for value in np.asarray(values, np.float64).reshape(-1)[:3]]
    return ", ".join(flat) + (", ..." if np.size(values) > 3 else "")
