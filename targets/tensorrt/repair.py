"""Make a Q/DQ graph legal for a TensorRT version where that can be done without calibrating again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeship.targets.tensorrt import versions
from edgeship.targets.tensorrt._index import (
    DEQUANTIZE,
    QUANTIZE,
    Index,
    fresh_name,
    has_attribute,
    label,
    load,
)
from edgeship.targets.tensorrt.lint import Finding, findings, weight_axis
from edgeship.targets.tensorrt.placement import sibling, trunk_and_skip
from edgeship.targets.tensorrt.versions import Rules
from edgeship.toolkit.core.artifact import replacing
from edgeship.toolkit.core.errors import ModelError

MIN_SCALE = 2.0**-23


@dataclass(frozen=True, slots=True)
class Repair:
    """What `fix` did.

    Attributes:
        fixed: Findings that are gone.
        left: Findings that need a person, or a new calibration.
    """

    fixed: tuple[Finding, ...]
    left: tuple[Finding, ...]


def fix(model: Path, version: str, out: Path) -> Repair:
    """Repair what `lint` calls repairable, and write the graph.

    Scales are changed only where their integers were unsigned or asymmetric; the new ones cover the same
    range, so nothing is clipped that was not, at a coarser step.

    Args:
        model: An ONNX file.
        version: TensorRT version.
        out: Where the repaired graph goes; may be `model`.

    Raises:
        ModelError: The file is no ONNX model, or its opset cannot be lowered.
        RecipeError: The version is unknown.
    """
    import onnx

    rules = versions.rules(version)
    graph = load(model)
    before = findings(graph, rules)
    graph = _repaired(graph, rules)
    after = findings(graph, rules)
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"{model} cannot be repaired: {str(error).strip().splitlines()[0]}",
            hint="export it again",
        ) from error
    with replacing(out) as temporary:
        onnx.save(graph, str(temporary))
    left = {(finding.rule, finding.node) for finding in after}
    return Repair(tuple(item for item in before if (item.rule, item.node) not in left), tuple(after))


def _repaired(graph: Any, rules: Rules) -> Any:
    _float_biases(graph)
    _float_weights(graph, rules)
    _signed(graph)
    _axes(graph)
    _one_pair_each(graph)
    _residuals(graph)
    _drop_unused(graph)
    _sort(graph)
    index = Index(graph)
    if index.opset > rules.max_opset:
        graph = _lower_opset(graph, min(rules.max_opset, 17))
    return graph


def _float_biases(graph: Any) -> None:
    """INT32 constants behind a DQ become the floats they stand for, exactly."""
    index = Index(graph)
    for node in [node for node in index.nodes if node.op_type == DEQUANTIZE]:
        if index.element_type(node.input[0]) != "int32":
            continue
        value, scale = index.constant(node.input[0]), index.constant(node.input[1])
        if value is not None and scale is not None:
            _replace(graph, node, (value.astype(np.float64) * scale).astype(np.float32))


def _float_weights(graph: Any, rules: Rules) -> None:
    """Integer weights behind a DQ become floats behind Q and DQ, with the same scales where they can stay."""
    index = Index(graph)
    for node in [n for n in index.nodes if n.op_type == DEQUANTIZE and index.is_constant(n.input[0])]:
        integers, scale, zero = index.constant(node.input[0]), *_parameters(index, node)
        if integers is None or scale is None or integers.dtype not in (np.int8, np.uint8):
            continue
        legal = integers.dtype == np.int8 and not zero.any()
        if legal and rules.int8_weights:
            continue
        axis = weight_axis(index, node)
        shape = [1] * integers.ndim
        if scale.size > 1:
            shape[axis or 0] = scale.size
        weight = (integers.astype(np.float64) - zero.reshape(shape if zero.size > 1 else ())) * scale.reshape(
            shape if scale.size > 1 else ()
        )
        if not legal:
            others = None if scale.size == 1 else tuple(i for i in range(integers.ndim) if i != (axis or 0))
            scale = np.maximum(np.abs(weight).max(axis=others) / 127, MIN_SCALE)
        name = fresh_name(graph, f"{node.output[0]}_float")
        _add_constant(graph, name, weight.astype(np.float32))
        scale_name = _add_constant(
            graph, fresh_name(graph, f"{node.output[0]}_scale"), scale.astype(np.float32)
        )
        zeros = np.zeros(np.shape(scale), np.int8)
        zero_name = _add_constant(graph, fresh_name(graph, f"{node.output[0]}_zero_point"), zeros)
        _insert_quantize(graph, node, [name, scale_name, zero_name])


def _signed(graph: Any) -> None:
    """Every pair gets int8 zero points of zeros; other scales are widened to cover the same range."""
    index = Index(graph)
    added: dict[tuple[str, bytes, bytes], tuple[str, str]] = {}
    for node in index.nodes:
        if node.op_type not in (QUANTIZE, DEQUANTIZE) or not index.is_constant(node.input[1]):
            continue
        if index.element_type(node.input[0]) not in ("", "float32", "float16"):
            continue  # stored integers: already legal here
        scale, zero = _parameters(index, node)
        stored = index.element_type(node.input[2]) if len(node.input) > 2 else "int8"
        if stored == "int8" and zero.shape == np.shape(scale) and not zero.any() and len(node.input) > 2:
            continue
        if stored in ("int8", "uint8"):
            if (
                node.op_type == QUANTIZE
                and _clips_negatives(zero, stored)
                and not index.never_negative(node.input[0])
            ):
                _insert_relu(graph, node)
            wider = symmetric_scale(scale, zero, unsigned=stored == "uint8")
            zeros = np.zeros(np.shape(scale), np.int8)
            names = _shared_constants(graph, node, wider.astype(scale.dtype), zeros, added)
            del node.input[1:]
            node.input.extend(names)


def _clips_negatives(zero: npt.NDArray[Any], stored: str) -> bool:
    """Whether the lowest integer stands for 0: some quantizers drop the ReLU that such a Q replaces."""
    return bool((zero == (0 if stored == "uint8" else -128)).all())


def _insert_relu(graph: Any, quantize: Any) -> None:
    from onnx import helper

    tensor = quantize.input[0]
    output = fresh_name(graph, f"{tensor}_relu")
    place = next(i for i, node in enumerate(graph.graph.node) if node == quantize)
    quantize.input[0] = output
    graph.graph.node.insert(place, helper.make_node("Relu", [tensor], [output], name=output))


def symmetric_scale(
    scale: npt.NDArray[Any], zero_point: npt.NDArray[Any], *, unsigned: bool
) -> npt.NDArray[np.float64]:
    """The int8 scale with zero point 0 that covers the range of other 8-bit parameters.

    uint8 with zero point 0 covers 0..255 s, so int8 needs 255/127 s. With zero point 128 it covers
    -128..127 s, which int8 holds with the same s.
    """
    low, high = (0, 255) if unsigned else (-128, 127)
    zero = zero_point.astype(np.float64)
    steps = np.maximum((zero - low) / 128, (high - zero) / 127)
    return np.asarray(scale.astype(np.float64) * steps)


def _axes(graph: Any) -> None:
    from onnx import helper

    index = Index(graph)
    for node in index.nodes:
        if node.op_type not in (QUANTIZE, DEQUANTIZE) or not index.weights(node.input[0]):
            continue
        scale, axis = index.constant(node.input[1]), weight_axis(index, node)
        weight = index.constant(_root(index, node))
        if scale is None or axis is None or weight is None or scale.size in (0, 1):
            continue
        if weight.shape[axis] == scale.size:
            if has_attribute(node, "axis"):
                node.attribute.remove(next(item for item in node.attribute if item.name == "axis"))
            node.attribute.append(helper.make_attribute("axis", axis))


def _one_pair_each(graph: Any) -> None:
    """All readers of an activation share the pair with the largest scale: it clips the least."""
    index = Index(graph)
    tensors = dict.fromkeys(node.input[0] for node in index.nodes if node.op_type == QUANTIZE)
    for tensor in tensors:
        if index.weights(tensor):
            continue
        pairs = [node for node in index.consumers(tensor) if node.op_type == QUANTIZE]
        scales = [index.constant(node.input[1]) for node in pairs]
        largest = [float(scale.max()) for scale in scales if scale is not None and scale.size]
        if len(pairs) < 2 or len(largest) < len(pairs):
            continue
        kept = pairs[int(np.argmax(largest))]
        target = next((n.output[0] for n in index.consumers(kept.output[0]) if n.op_type == DEQUANTIZE), None)
        if target is None:
            continue
        for pair in pairs:
            for after in index.consumers(pair.output[0]):
                if pair is not kept and after.op_type == DEQUANTIZE:
                    _rewire(graph, after.output[0], target)


def _residuals(graph: Any) -> None:
    """Q/DQ off the convolution's side of an Add, and on the shortcut where its integers exist already."""
    index = Index(graph)
    for add in [node for node in index.nodes if node.op_type == "Add"]:
        names = trunk_and_skip(index, add)
        if names is None or not (index.dequantized(names[0]) or sibling(index, names[1])):
            continue
        trunk, skip = names
        other = skip if index.quantized(skip) else sibling(index, skip)
        if other is None:
            continue
        if index.dequantized(trunk):
            trunk = index.source(index.producer(trunk))
        swapped = add.input[0] == names[1]
        del add.input[:]
        add.input.extend((other, trunk) if swapped else (trunk, other))


def _lower_opset(graph: Any, opset: int) -> Any:
    """The graph in an older opset.

    Raises:
        ModelError: An operator has no form there.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    from edgeship.toolkit.graph.opset import downgrade_opset
    from edgeship.toolkit.graph.shapes import infer

    model = ir.from_proto(graph)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    newer = model.graph.opset_imports.get("", opset)
    infer(model)
    if (refused := downgrade_opset(model, opset)) is not None:
        raise ModelError(
            f"opset {newer} cannot be lowered to {opset}: {refused} has no form there",
            hint=f"export the model again with opset {opset}",
        )
    return ir.to_proto(model)


def _parameters(index: Index, node: Any) -> tuple[Any, npt.NDArray[Any]]:
    """Scale (None where it is computed) and zero point of a Q or DQ; zeros where there is none."""
    scale: Any = index.constant(node.input[1])
    zero = index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return scale, np.zeros(np.shape(scale), np.int64) if zero is None else zero.astype(np.int64)


def _root(index: Index, node: Any) -> str:
    before = index.producer(node.input[0])
    return str(before.input[0] if before is not None and before.op_type == QUANTIZE else node.input[0])


def _shared_constants(
    graph: Any,
    node: Any,
    scale: npt.NDArray[Any],
    zero: npt.NDArray[Any],
    added: dict[tuple[str, bytes, bytes], tuple[str, str]],
) -> tuple[str, str]:
    """Q and DQ of one tensor read the same constants: they are named after the ones they replace."""
    stem = node.input[1]
    key = (stem, scale.tobytes(), zero.tobytes())
    if key not in added:
        names = (f"{stem}_int8", f"{stem}_int8_zero_point")
        first, second = (
            _add_constant(graph, fresh_name(graph, name), value)
            for name, value in zip(names, (scale, zero), strict=True)
        )
        added[key] = first, second
    return added[key]


def _replace(graph: Any, node: Any, value: npt.NDArray[Any]) -> None:
    """A node gives way to a constant of the same name."""
    _add_constant(graph, node.output[0], value)
    graph.graph.node.remove(node)


def _insert_quantize(graph: Any, dequantize: Any, inputs: list[str]) -> None:
    from onnx import helper

    integers = fresh_name(graph, f"{inputs[0]}_quantized")
    name = f"{label(dequantize)}_quantize"
    place = next(i for i, node in enumerate(graph.graph.node) if node == dequantize)
    quantize = helper.make_node(QUANTIZE, inputs, [integers], name=name)
    quantize.attribute.extend(item for item in dequantize.attribute if item.name == "axis")
    del dequantize.input[:]
    dequantize.input.extend([integers, *inputs[1:]])
    graph.graph.node.insert(place, quantize)


def _add_constant(graph: Any, name: str, value: npt.NDArray[Any]) -> str:
    from onnx import numpy_helper

    graph.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _rewire(graph: Any, old: str, new: str) -> None:
    for node in graph.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def _sort(graph: Any) -> None:
    """Every node after the ones it reads from; otherwise in the order they had."""
    waiting = list(graph.graph.node)
    known = {item.name for item in (*graph.graph.input, *graph.graph.initializer)} | {""}
    ordered: list[Any] = []
    while waiting:
        ready = next((node for node in waiting if known.issuperset(node.input)), waiting[0])
        waiting.remove(ready)
        ordered.append(ready)
        known.update(ready.output)
    del graph.graph.node[:]
    graph.graph.node.extend(ordered)


def _drop_unused(graph: Any) -> None:
    """Nodes and constants that nothing reads any more."""
    outputs = {item.name for item in graph.graph.output}
    nodes = graph.graph.node
    while True:
        read = outputs | {name for node in nodes for name in node.input}
        unused = [node for node in nodes if not any(name in read for name in node.output)]
        if not unused:
            break
        for node in unused:
            nodes.remove(node)
    for tensor in [t for t in graph.graph.initializer if t.name not in read]:
        graph.graph.initializer.remove(tensor)
