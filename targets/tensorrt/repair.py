"""Repair of a Q/DQ graph for a TensorRT version, as far as that needs no new calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeship.targets.tensorrt import versions
from edgeship.targets.tensorrt.jetson import PORTABLE
from edgeship.targets.tensorrt.lint import channel_axis, findings, opset_of, output_channels
from edgeship.targets.tensorrt.placement import dequantized_copy, is_quantized, main_and_shortcut
from edgeship.targets.tensorrt.versions import Rules
from edgeship.toolkit.core.artifact import write_bytes
from edgeship.toolkit.core.errors import ModelError, TargetError
from edgeship.toolkit.core.results import Finding
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.edit import Names, add_constant
from edgeship.toolkit.graph.load import load_unchanged
from edgeship.toolkit.graph.opset import PORTABLE_OPSET, downgrade_opset
from edgeship.toolkit.graph.query import (
    DEQUANTIZE,
    QUANTIZE,
    array,
    before_pair,
    dtype,
    input_at,
    is_constant_weight,
    is_dequantized,
    label,
)
from edgeship.toolkit.graph.shapes import infer
from edgeship.toolkit.graph.signs import never_negative

MIN_SCALE = 2.0**-23
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Repair:
    """Result of `fix`.

    Attributes:
        fixed: Findings without which the graph is now.
        left: Findings that need an edit by hand, or a new calibration.
    """

    fixed: tuple[Finding, ...]
    left: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Result of `fit`.

    Attributes:
        version: TensorRT version that reads the graph.
        note: Conversion of the opset, for the user; empty without one.
        findings: Warnings of the linter.
    """

    version: str
    note: str
    findings: tuple[Finding, ...]


def fix(model: Path, version: str, out: Path) -> Repair:
    """Repair the findings that `lint` calls repairable, and write the graph.

    Scales are changed only where their integers were unsigned or asymmetric; the new ones cover the same
    range, so nothing is clipped that was not, at a coarser step.

    Args:
        model: An ONNX file.
        version: TensorRT version.
        out: File of the repaired graph; may be `model`.

    Raises:
        ModelError: The file is no ONNX model, or its opset cannot be lowered.
        RecipeError: The version is unknown.
    """
    rules = versions.rules(version)
    graph = load_unchanged(model)
    before = findings(graph, rules)
    try:
        _repair(graph, rules)
        onnx.checker.check_model(ir.to_proto(graph))
    except (onnx.checker.ValidationError, ValueError) as error:  # arrays of other shapes than their layer's
        raise ModelError(
            f"{model} cannot be repaired: {str(error).strip().splitlines()[0]}",
            hint="export it again",
        ) from error
    after = findings(graph, rules)
    io.save(graph, out)
    left = {(finding.rule, finding.node) for finding in after}
    return Repair(tuple(item for item in before if (item.rule, item.node) not in left), tuple(after))


def fit(model: Path, version: str | None, out: Path) -> Fitted:
    """Write a graph for a TensorRT version: in an opset that it reads, and without errors of the linter.

    Args:
        model: An ONNX file.
        version: TensorRT version; None: `jetson.PORTABLE`, or if an operator has no form in its opset the
            oldest release that reads the graph.
        out: File to write; may be `model`.

    Raises:
        ModelError: The file is no ONNX model, or an operator has no form in that opset.
        RecipeError: The version is unknown.
        TargetError: TensorRT refuses or misreads the graph.
    """
    graph, chosen = load_unchanged(model), version or PORTABLE
    rules = versions.rules(chosen)
    opset, lowered, note = opset_of(graph.graph), min(rules.max_opset, PORTABLE_OPSET), ""
    newer = next((each for each in versions.RELEASES if each.max_opset >= opset), None)
    if opset > rules.max_opset:
        try:
            _lower_opset(graph, lowered)
            note = f"converted from opset {opset} to {lowered} for TensorRT {rules.name}"
        except ModelError:
            if version is not None or newer is None:
                raise
            rules, chosen = newer, newer.name
            note = f"opset {opset} was kept, it has no form in {lowered}: for TensorRT {chosen} and later"
    results = findings(graph, rules)
    refused = [finding for finding in results if finding.severity == "error"]
    if refused:
        first, more = refused[0], f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        reason = f"{first.node}: {first.message} ({first.rule}{more})"
        command = f"edgeship audit {model} --target tensorrt --trt {chosen}"
        raise TargetError(
            f"TensorRT {chosen} refuses or misreads {model}: {reason}",
            hint=f"`{command}` names node, rule and fix; --fix repairs what it can",
        )
    if opset_of(graph.graph) != opset:
        io.save(graph, out)
    elif out != model:
        write_bytes(out, model.read_bytes())
    return Fitted(chosen, note, tuple(results))


def _repair(model: ir.Model, rules: Rules) -> None:
    graph = model.graph
    _float_biases(graph)
    _float_weights(graph, rules)
    _signed(graph)
    _axes(graph)
    _one_pair_each(graph)
    _residuals(graph)
    RemoveUnusedNodesPass()(model)
    graph.sort()
    if opset_of(graph) > rules.max_opset:
        _lower_opset(model, min(rules.max_opset, PORTABLE_OPSET))


def _float_biases(graph: ir.Graph) -> None:
    """Replace INT32 constants behind a DQ by their float values, exactly."""
    for node in list(graph):
        if node.op_type != DEQUANTIZE or dtype(input_at(node, 0)) != "int32":
            continue
        value, scale = array(input_at(node, 0)), array(input_at(node, 1))
        if value is not None and scale is not None:
            old = node.outputs[0]
            values = (value.astype(np.float64) * scale).astype(np.float32)
            new = add_constant(graph, f"{old.name}_float", values)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            new.name = old.name


def _float_weights(graph: ir.Graph, rules: Rules) -> None:
    """Replace integer weights behind a DQ by floats behind Q and DQ; legal scales stay."""
    names = Names(graph)
    for node in [node for node in graph if node.op_type == DEQUANTIZE]:
        integers, scale, zero = array(input_at(node, 0)), *_parameters(node)
        if integers is None or scale is None or integers.dtype not in (np.int8, np.uint8):
            continue
        is_legal = integers.dtype == np.int8 and not zero.any()
        if is_legal and rules.int8_weights:
            continue
        axis = channel_axis(node) or 0
        shape = [1] * integers.ndim
        if scale.size > 1:
            shape[axis] = scale.size
        weight = (integers.astype(np.float64) - zero.reshape(shape if zero.size > 1 else ())) * scale.reshape(
            shape if scale.size > 1 else ()
        )
        if not is_legal:
            others = None if scale.size == 1 else tuple(i for i in range(integers.ndim) if i != axis)
            scale = np.maximum(np.abs(weight).max(axis=others) / 127, MIN_SCALE)
        stem = node.outputs[0].name
        parameters = [
            add_constant(graph, f"{stem}_float", weight.astype(np.float32), names),
            add_constant(graph, f"{stem}_scale", np.asarray(scale, np.float32), names),
            add_constant(graph, f"{stem}_zero_point", np.zeros(np.shape(scale), np.int8), names),
        ]
        attributes = [value for name, value in node.attributes.items() if name == "axis"]
        name = f"{label(node)}_quantize"
        quantize = ir.Node("", QUANTIZE, parameters, attributes, num_outputs=1, name=name)
        quantize.outputs[0].name = names.new(f"{parameters[0].name}_quantized")
        graph.insert_before(node, quantize)
        _set_inputs(node, [quantize.outputs[0], *parameters[1:]])


def _signed(graph: ir.Graph) -> None:
    """Give every pair int8 zero points of zeros, and a scale for the same range where they were others."""
    names = Names(graph)
    added: dict[tuple[str, bytes], list[ir.Value]] = {}
    for node in list(graph):
        scale, zero = _parameters(node) if node.op_type in (QUANTIZE, DEQUANTIZE) else (None, np.zeros(0))
        first, last = input_at(node, 0), input_at(node, 2)
        if scale is None or first is None or dtype(first) not in ("", "float32", "float16"):
            continue  # stored integers: already legal here
        stored = dtype(last) if last is not None else "int8"
        is_legal = stored == "int8" and zero.shape == scale.shape and not zero.any() and last is not None
        if is_legal or stored not in ("int8", "uint8"):
            continue
        if node.op_type == QUANTIZE and _clips_negatives(zero, stored) and not never_negative(first):
            relu = ir.node("Relu", [first])
            relu.name = relu.outputs[0].name = names.new(f"{first.name}_relu")
            graph.insert_before(node, relu)
            node.replace_input_with(0, relu.outputs[0])
        wide = symmetric_scale(scale, zero, unsigned=stored == "uint8").astype(scale.dtype)
        stem = str(node.inputs[1].name)  # type: ignore[union-attr]  # its array is known
        key = (stem, wide.tobytes())
        if key not in added:  # Q and DQ of one tensor read the same constants
            zeros = np.zeros(scale.shape, np.int8)
            added[key] = [
                add_constant(graph, f"{stem}_int8", wide, names),
                add_constant(graph, f"{stem}_int8_zero_point", zeros, names),
            ]
        _set_inputs(node, [node.inputs[0], *added[key]])


def _clips_negatives(zero: Array, stored: str) -> bool:
    """Return True if the lowest integer stands for 0: some quantizers drop the ReLU before such a Q."""
    return bool((zero == (0 if stored == "uint8" else -128)).all())


def symmetric_scale(scale: Array, zero_point: Array, *, unsigned: bool) -> npt.NDArray[np.float64]:
    """Return the int8 scale with zero point 0 that covers the range of other 8-bit parameters.

    uint8 with zero point 0 covers 0..255 s, so int8 needs 255/127 s. With zero point 128 it covers
    -128..127 s, which int8 holds with the same s.
    """
    low, high = (0, 255) if unsigned else (-128, 127)
    zero = zero_point.astype(np.float64)
    steps = np.maximum((zero - low) / 128, (high - zero) / 127)
    return np.asarray(scale.astype(np.float64) * steps)


def _axes(graph: ir.Graph) -> None:
    """State the output-channel axis on each Q and DQ of weights that their scales fit."""
    for node in graph:
        if node.op_type in (QUANTIZE, DEQUANTIZE) and is_constant_weight(input_at(node, 0)):
            scale, axis = array(input_at(node, 1)), channel_axis(node)
            if scale is None or axis is None or scale.size < 2:
                continue
            if output_channels(node, axis) == scale.size:
                node.attributes["axis"] = ir.AttrInt64("axis", axis)


def _one_pair_each(graph: ir.Graph) -> None:
    """Let all consumers of an activation read the pair with the largest scale, which clips the least."""
    tensors = {id(node.inputs[0]): node.inputs[0] for node in graph if node.op_type == QUANTIZE}
    for value in tensors.values():
        if value is None or is_constant_weight(value):
            continue
        quantizers = [node for node in value.consumers() if node.op_type == QUANTIZE]
        scales = [array(input_at(node, 1)) for node in quantizers]
        largest = [float(scale.max()) for scale in scales if scale is not None and scale.size]
        if len(quantizers) < 2 or len(largest) < len(quantizers):
            continue
        widest = quantizers[int(np.argmax(largest))]
        results = [_dequantized(node) for node in quantizers]
        target = next(iter(results[quantizers.index(widest)]), None)
        for node, others in zip(quantizers, results, strict=True):
            for other in others if node is not widest else []:
                if target is not None:
                    other.replace_all_uses_with(target, replace_graph_outputs=True)


def _dequantized(quantize: ir.Node) -> list[ir.Value]:
    """Return the results of a Q's DequantizeLinear nodes."""
    return [node.outputs[0] for node in quantize.outputs[0].consumers() if node.op_type == DEQUANTIZE]


def _residuals(graph: ir.Graph) -> None:
    """Move the Q/DQ pair of a residual Add from the convolution to the shortcut, if that has one already."""
    for add in [node for node in graph if node.op_type == "Add"]:
        inputs = main_and_shortcut(add)
        if inputs is None:
            continue
        main, shortcut = inputs
        copy = dequantized_copy(shortcut)
        other = shortcut if is_quantized(shortcut) else copy
        if other is None or not (is_dequantized(main) or copy is not None):
            continue
        place = int(add.inputs[1] is main)
        add.replace_input_with(place, before_pair(main) if is_dequantized(main) else main)
        add.replace_input_with(1 - place, other)


def _lower_opset(model: ir.Model, opset: int) -> None:
    """Convert a graph to an older opset.

    Raises:
        ModelError: An operator has no form there.
    """
    newer = opset_of(model.graph)
    infer(model)
    if (refused := downgrade_opset(model, opset)) is not None:
        raise ModelError(
            f"opset {newer} cannot be lowered to {opset}: {refused} has no form there",
            hint=f"export it again with opset {opset}, or state a newer TensorRT (--trt or --jetpack)",
        )


def _parameters(node: ir.Node) -> tuple[Array | None, Array]:
    """Return scale (None if it is computed) and zero point of a Q or DQ; zeros without one."""
    scale, zero = array(input_at(node, 1)), array(input_at(node, 2))
    if zero is None:
        return scale, np.zeros(() if scale is None else scale.shape, np.int64)
    return scale, zero.astype(np.int64)


def _set_inputs(node: ir.Node, values: list[ir.Value | None]) -> None:
    node.resize_inputs(len(values))
    for place, value in enumerate(values):
        node.replace_input_with(place, value)
