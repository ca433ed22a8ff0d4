"""Precision of engine layers whose tensor formats are not recorded: kernel name, weights, metadata."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeship.targets.tensorrt.engine_info import Layer, Tensor

UNKNOWN = "unknown"
_PATTERNS = (  # the first that matches; "BFloat16" contains "Float"
    ("bf16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8|float8|e4m3|e5m2", re.IGNORECASE)),
    ("int8", re.compile(r"\bk?int8\b|\bi8\b", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half|\bk?float16\b|\bf16\b", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|\bk?float(32)?\b|\bt?f32\b", re.IGNORECASE)),
)
_SHORT = {
    "i8": "int8",
    "s8": "int8",
    "e4m3": "fp8",
    "e5m2": "fp8",
    "bf16": "bf16",
    "f16": "fp16",
    "f32": "fp32",
}
_PAIR = re.compile(  # "_i8f32_": input type, output type
    r"(?<![a-z0-9])(i8|s8|e4m3|e5m2|bf16|f16|f32)(i8|s8|e4m3|e5m2|bf16|f16|f32|i32)(?:f32|f16)?(?![a-z0-9])"
)
_KERNELS = (  # names of cuDNN and CUTLASS kernels: input type only
    ("int8", re.compile(r"(?<![a-z0-9])int8(x\d+)?(?![a-z0-9])|(?<![a-z])i(8816|16832)cudnn")),
    ("fp16", re.compile(r"(?<![a-z0-9])h(884|1688|16816)?cudnn|(?<![a-z0-9])h(884|1688|16816)gemm")),
    ("fp32", re.compile(r"(?<![a-z0-9])scudnn|(?<![a-z0-9])sgemm")),
)
_OTHER_TYPES = re.compile(r"int32|int64|uint8|bool|int4|fp4", re.IGNORECASE)
_STATED = re.compile(r"\bprecision\b\W{0,4}(\w{2,16})", re.IGNORECASE)
_KEYS = ("precision", "computeprecision", "layerprecision")


def precision_of(layout: str) -> str:
    """Return the precision in a format such as "Row major linear FP32", "Half" or "kINT8"."""
    return next((name for name, pattern in _PATTERNS if pattern.search(layout)), UNKNOWN)


def of_kernel(tactic: str) -> tuple[str, str]:
    """Return input and output precision from a kernel name; unknown where the name has none.

    Source:
        Names in published engine records: `sm80_xmma_fprop_..._i8f32_i8i32_f32` reads INT8, writes FP32.
    """
    text = tactic.lower()
    pair = _PAIR.search(text)
    if pair is not None:
        return _SHORT[pair[1]], _SHORT.get(pair[2], UNKNOWN)
    return next((name for name, pattern in _KERNELS if pattern.search(text)), UNKNOWN), UNKNOWN


def of_arithmetic(item: Mapping[str, Any], tactic: str, metadata: str) -> str:
    """Return the precision on which kernel name, weights and metadata of a layer agree, else unknown.

    Args:
        item: The layer as recorded.
        tactic: Its kernel name.
        metadata: Its metadata.
    """
    stated = {of_kernel(tactic)[0]}
    for key, value in item.items():
        if key.endswith("Weights") and isinstance(value, dict) and isinstance(value.get("Type"), str):
            stated.add(precision_of(value["Type"]))
        elif key.replace(" ", "").lower() in _KEYS and isinstance(value, str):
            stated.add(precision_of(value))
    stated.update(precision_of(word) for word in _STATED.findall(metadata))
    stated.discard(UNKNOWN)
    return stated.pop() if len(stated) == 1 else UNKNOWN


def completed(layers: Sequence[Layer]) -> list[Layer]:
    """Fill unknown tensor precisions: from the layer's kernel, then from the same tensor elsewhere."""
    filled = [_from_kernel(layer) for layer in layers]
    recorded: dict[str, set[str]] = defaultdict(set)
    for layer in filled:
        for tensor in (*layer.inputs, *layer.outputs):
            if tensor.precision != UNKNOWN:
                recorded[tensor.name].add(tensor.precision)
    agreed = {name: next(iter(options)) for name, options in recorded.items() if len(options) == 1}
    return [
        replace(
            layer,
            inputs=tuple(_filled(tensor, agreed.get(tensor.name, UNKNOWN)) for tensor in layer.inputs),
            outputs=tuple(_filled(tensor, agreed.get(tensor.name, UNKNOWN)) for tensor in layer.outputs),
        )
        for layer in filled
    ]


def _from_kernel(layer: Layer) -> Layer:
    """Convolutions and products read their first input in the type of their weights."""
    inputs, outputs = layer.inputs, layer.outputs
    if inputs:
        inputs = (_filled(inputs[0], layer.computes), *inputs[1:])
    if outputs:
        outputs = (_filled(outputs[0], of_kernel(layer.tactic)[1]), *outputs[1:])
    return replace(layer, inputs=inputs, outputs=outputs)


def _filled(tensor: Tensor, precision: str) -> Tensor:
    if tensor.precision != UNKNOWN or _OTHER_TYPES.search(tensor.layout):
        return tensor
    return replace(tensor, precision=precision)
