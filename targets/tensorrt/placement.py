"""Placement of Q/DQ pairs that TensorRT accepts silently and runs slowly."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgeship.toolkit.core.results import Finding
from edgeship.toolkit.graph.query import (
    DEQUANTIZE,
    QUANTIZE,
    array,
    before_pair,
    input_at,
    is_constant_weight,
    is_dequantized,
    label,
    producer,
)
from edgeship.toolkit.graph.signs import LAYOUT_OPS

PLACEMENT = (
    "docs.nvidia.com/deeplearning/tensorrt, Q/DQ Layer-Placement Recommendations; TensorRT Engine Explorer's "
    "ResNet-18 on an A100: 0.883 ms without Q/DQ on the shortcuts, 0.546 ms with, 0.500 ms with the pool's"
)
ALIGNMENT = "TensorRT Engine Explorer trex/lint.py; Model Optimizer modelopt/onnx/quantization/int8.py"
COMMUTING = LAYOUT_OPS | {"MaxPool", "Identity"}  # a DQ moves forward through them
INT8_CHANNELS = 16  # 8-bit kernels compute multiples of this
IMAGE_CHANNELS = 4


def findings(graph: ir.Graph) -> Iterator[Finding]:
    """Yield a finding for each placement that prevents a fusion or an INT8 output."""
    for node in graph:
        if node.op_type in ("Conv", "Gemm") and _computes_int8(node):
            yield from _aligned(node)
        elif node.op_type in ("Conv", "Gemm"):
            yield from _half_quantized(node)
        elif node.op_type == "Add":
            yield from _residual(node)
        elif node.op_type == "GlobalAveragePool":
            yield from _pool(node)
        elif node.op_type == "Relu":
            yield from _early(node)
    yield from _different_scales(graph)


def is_quantized(value: ir.Value | None) -> bool:
    """Return True if a tensor is dequantized, also through operators that only move values."""
    node = producer(value)
    while node is not None and node.op_type in COMMUTING:
        value = input_at(node, 0)
        node = producer(value)
    return is_dequantized(value)


def main_and_shortcut(add: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return the inputs of a residual Add: main branch, which fuses with it, and shortcut.

    With one convolution before the Add, it ends the main branch. With two (a projection), it ends in the one
    without a pair; if both or none have one, it is the longer path from the common ancestor.

    Returns:
        The inputs, dequantized where they are; None for other Adds.
    """
    first, second = input_at(add, 0), input_at(add, 1)
    if first is None or second is None or not (first.const_value is None and second.const_value is None):
        return None
    ends = [before_pair(value) for value in (first, second)]
    convolutions = [(node := producer(end)) is not None and node.op_type == "Conv" for end in ends]
    if not any(convolutions):
        return None
    if all(convolutions) and is_dequantized(first) != is_dequantized(second):
        convolutions = [is_dequantized(second), is_dequantized(first)]  # either fuses with the Add
    elif all(convolutions):
        paths = [_ancestors(end) for end in ends]
        lengths = [_distance(*paths), _distance(*reversed(paths))]
        convolutions = [lengths[0] > lengths[1], lengths[0] <= lengths[1]]
    return (first, second) if convolutions[0] else (second, first)


def _residual(add: ir.Node) -> Iterator[Finding]:
    inputs = main_and_shortcut(add)
    if inputs is None:
        return
    main, shortcut = inputs
    convolution = producer(before_pair(main))
    if convolution is None or not _computes_int8(convolution):
        return
    states = (is_dequantized(main), is_quantized(shortcut))
    if states == (False, True):
        return
    rule, message, fix = {
        (False, False): (
            "residual-none",
            f"its shortcut {shortcut.name} has no Q/DQ: {label(convolution)} reads INT8 and writes floats",
            "quantize the shortcut, with the scale its other readers have",
        ),
        (True, True): (
            "residual-both",
            f"Q/DQ between {label(convolution)} and the Add keep them from fusing",
            "remove the Q/DQ between the last convolution and the Add",
        ),
        (True, False): (
            "residual-trunk",
            f"the wrong input is quantized: {main.name} is the output of {label(convolution)}, "
            f"{shortcut.name} is float",
            "quantize the shortcut instead of the convolution's output",
        ),
    }[states]
    repairable = rule == "residual-both" or dequantized_copy(shortcut) is not None
    yield Finding(rule, "warning", label(add), message, fix, PLACEMENT, repairable)


def dequantized_copy(value: ir.Value) -> ir.Value | None:
    """Return the output of a Q/DQ pair that another consumer of a tensor reads; None without one."""
    for quantize in value.consumers():
        if quantize.op_type == QUANTIZE:
            for reader in quantize.outputs[0].consumers():
                if reader.op_type == DEQUANTIZE:
                    return reader.outputs[0]
    return None


def _pool(pool: ir.Node) -> Iterator[Finding]:
    value = input_at(pool, 0)
    if not is_quantized(value) and _int8_before(value):
        yield Finding(
            *("pool-float", "warning", label(pool)),
            "the global average pool reads floats, so the last convolution writes floats",
            "quantize the input of the pool",
            PLACEMENT,
        )


def _early(relu: ir.Node) -> Iterator[Finding]:
    """Yield a finding for a Q/DQ pair between a layer and its ReLU."""
    value = input_at(relu, 0)
    if value is None or not is_quantized(value):
        return
    before = producer(before_pair(value))
    if before is not None and before.op_type in ("Conv", "Add") and len(value.consumers()) == 1:
        yield Finding(
            *("quantized-before-relu", "warning", label(relu)),
            f"Q/DQ between {label(before)} and its ReLU keep them from fusing",
            "quantize after the ReLU",
            PLACEMENT,
        )


def _half_quantized(node: ir.Node) -> Iterator[Finding]:
    data, weight = (is_quantized(input_at(node, place)) for place in (0, 1))
    if data == weight:
        return
    missing = "activation" if weight else "weights"
    yield Finding(
        *("half-quantized", "warning", label(node)),
        f"only one side has Q/DQ: without them on the {missing} it computes in floats",
        f"quantize the {missing} too, or neither",
        PLACEMENT,
    )


def _aligned(node: ir.Node) -> Iterator[Finding]:
    weight = array(before_pair(input_at(node, 1)))
    if weight is None or weight.ndim != 4:
        return
    outputs, inputs = weight.shape[:2]
    sizes = (outputs,) if inputs <= IMAGE_CHANNELS else (outputs, inputs)  # first layers have own kernels
    unaligned = [str(size) for size in sizes if size % INT8_CHANNELS]
    if unaligned:
        yield Finding(
            *("channel-alignment", "warning", label(node)),
            f"{' and '.join(unaligned)} channels: 8-bit kernels compute multiples of {INT8_CHANNELS}",
            "prune to multiples of 32 (at least 16)",
            ALIGNMENT,
        )


def _different_scales(graph: ir.Graph) -> Iterator[Finding]:
    """Yield a finding for a tensor quantized with several scales: several INT8 copies of it."""
    tensors = {id(value): value for node in graph if node.op_type == QUANTIZE for value in node.inputs[:1]}
    for value in tensors.values():
        quantizers = [node for node in value.consumers() if node.op_type == QUANTIZE] if value else []
        arrays = [array(input_at(node, 1)) for node in quantizers]
        scales = {each.tobytes() for each in arrays if each is not None}
        if value is not None and len(scales) > 1:
            yield Finding(
                *("different-scales", "warning", label(quantizers[0])),
                f"{value.name} is quantized with {len(scales)} different scales: one copy each",
                "give all readers of a tensor one Q/DQ",
                PLACEMENT,
                repairable=not is_constant_weight(value),
            )


def _computes_int8(node: ir.Node) -> bool:
    return all(is_quantized(input_at(node, place)) for place in (0, 1))


def _int8_before(value: ir.Value | None) -> bool:
    """Return True if the layer before a tensor, through ReLU and Add, computes in INT8."""
    node = producer(value)
    while node is not None and node.op_type in ("Relu", "Add"):
        node = producer(before_pair(input_at(node, 0)))
    return node is not None and node.op_type == "Conv" and _computes_int8(node)


def _distance(path: list[int], other: list[int]) -> int:
    """Return the number of tensors on a path before the nearest one on the other path."""
    common = set(other)
    return next((place for place, value in enumerate(path) if value in common), len(path))


def _ancestors(value: ir.Value | None) -> list[int]:
    """Return the identities of a tensor and of its ancestors along first inputs, Q/DQ pairs left out."""
    path: dict[int, None] = {}
    while value is not None and id(value) not in path:  # an invalid graph may have a cycle
        path[id(value)] = None
        node = producer(value)
        value = before_pair(input_at(node, 0)) if node is not None else None
    return list(path)
