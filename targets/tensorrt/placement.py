"""Where Q/DQ stand, beyond what the parser checks: bad places build without a word and run slowly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeship.targets.tensorrt._index import DEQUANTIZE, QUANTIZE, Index, label
from edgeship.targets.tensorrt.lint import Finding

PLACEMENT = (
    "docs.nvidia.com/deeplearning/tensorrt, Q/DQ Layer-Placement Recommendations; TensorRT Engine Explorer's "
    "ResNet-18 on an A100: 0.883 ms without Q/DQ on the shortcuts, 0.546 ms with, 0.500 ms with the pool's"
)
ALIGNMENT = "TensorRT Engine Explorer trex/lint.py; Model Optimizer modelopt/onnx/quantization/int8.py"
INT8_CHANNELS = 16  # below a multiple of this, INT8 kernels compute channels nobody needs
IMAGE_CHANNELS = 4


def findings(index: Index) -> Iterator[Finding]:
    """What is placed so that a fusion or an INT8 output is lost; nothing for a graph without Q/DQ."""
    for node in index.nodes:
        if node.op_type in ("Conv", "Gemm") and _computes_int8(index, node):
            yield from _aligned(index, node)
        elif node.op_type in ("Conv", "Gemm"):
            yield from _half_quantized(index, node)
        elif node.op_type == "Add":
            yield from _residual(index, node)
        elif node.op_type == "GlobalAveragePool":
            yield from _pool(index, node)
        elif node.op_type == "Relu":
            yield from _early(index, node)
    yield from _different_scales(index)


def trunk_and_skip(index: Index, add: Any) -> tuple[str, str] | None:
    """The two inputs of a residual Add: that of the convolution it should fuse with, and the shortcut.

    With one convolution before the Add, that is the trunk. With two (a projection), the trunk is the longer
    way back to where the branches part.

    Returns:
        Names of the Add's inputs as they stand (behind their DQ, if any); None where it is no residual Add.
    """
    first, second = add.input
    if index.is_constant(first) or index.is_constant(second):
        return None
    ends = [_before_pair(index, name) for name in (first, second)]
    convolutions = [(node := index.producer(end)) is not None and node.op_type == "Conv" for end in ends]
    if not any(convolutions):
        return None
    if all(convolutions):
        lengths = [len(path) for path in _ways(index, *ends)]
        convolutions = [lengths[0] > lengths[1], lengths[0] <= lengths[1]]
    return (first, second) if convolutions[0] else (second, first)


def _residual(index: Index, add: Any) -> Iterator[Finding]:
    names = trunk_and_skip(index, add)
    if names is None:
        return
    trunk, skip = names
    convolution = index.producer(_before_pair(index, trunk))
    if convolution is None or not _computes_int8(index, convolution):
        return
    states = (index.dequantized(trunk), index.quantized(skip))
    if states == (False, True):
        return
    rule, message, fix = {
        (False, False): (
            "residual-none",
            f"its shortcut {skip} has no Q/DQ: {label(convolution)} reads INT8 and writes floats",
            "quantize the shortcut, with the scale its other readers have",
        ),
        (True, True): (
            "residual-both",
            f"Q/DQ between {label(convolution)} and the Add keep them from fusing",
            "remove the Q/DQ between the last convolution and the Add",
        ),
        (True, False): (
            "residual-trunk",
            f"the wrong input is quantized: {trunk} is the output of {label(convolution)}, {skip} is float",
            "quantize the shortcut instead of the convolution's output",
        ),
    }[states]
    repairable = rule == "residual-both" or sibling(index, skip) is not None
    yield Finding(rule, "warning", label(add), message, fix, PLACEMENT, repairable)


def sibling(index: Index, tensor: str) -> str | None:
    """The dequantized form of a float tensor, where some other reader has one."""
    for reader in index.consumers(tensor):
        if reader.op_type == QUANTIZE:
            for after in index.consumers(reader.output[0]):
                if after.op_type == DEQUANTIZE:
                    return str(after.output[0])
    return None


def _pool(index: Index, pool: Any) -> Iterator[Finding]:
    if not index.quantized(pool.input[0]) and _int8_before(index, pool.input[0]):
        yield Finding(
            *("pool-float", "warning", label(pool)),
            "the global average pool reads floats, so the last convolution writes floats",
            "quantize the input of the pool",
            PLACEMENT,
        )


def _early(index: Index, relu: Any) -> Iterator[Finding]:
    """A Q between a layer and its ReLU keeps the two from fusing."""
    if not index.quantized(relu.input[0]):
        return
    before = index.producer(_before_pair(index, relu.input[0]))
    if before is not None and before.op_type in ("Conv", "Add") and len(index.consumers(relu.input[0])) == 1:
        yield Finding(
            *("quantized-before-relu", "warning", label(relu)),
            f"Q/DQ between {label(before)} and its ReLU keep them from fusing",
            "quantize after the ReLU",
            PLACEMENT,
        )


def _half_quantized(index: Index, node: Any) -> Iterator[Finding]:
    data, weight = (index.quantized(name) for name in node.input[:2])
    if data == weight:
        return
    missing = "activation" if weight else "weights"
    yield Finding(
        *("half-quantized", "warning", label(node)),
        f"only one side has Q/DQ: without them on the {missing} it computes in floats",
        f"quantize the {missing} too, or neither",
        PLACEMENT,
    )


def _aligned(index: Index, node: Any) -> Iterator[Finding]:
    weight = _weight_shape(index, node)
    if len(weight) != 4:
        return
    outputs, inputs = weight[:2]
    image = inputs <= IMAGE_CHANNELS  # the first layer has kernels of its own
    odd = [str(count) for count in (outputs, inputs if not image else 0) if count % INT8_CHANNELS]
    if odd:
        yield Finding(
            *("channel-alignment", "warning", label(node)),
            f"{' and '.join(odd)} channels: INT8 kernels compute multiples of {INT8_CHANNELS}",
            "prune to multiples of 32 (at least 16)",
            ALIGNMENT,
        )


def _different_scales(index: Index) -> Iterator[Finding]:
    """Two Q with different scales on one tensor: two INT8 tensors, and a copy for each block."""
    tensors = dict.fromkeys(node.input[0] for node in index.nodes if node.op_type == QUANTIZE)
    for tensor in tensors:
        scales = {
            value.tobytes()
            for reader in index.consumers(tensor)
            if reader.op_type == QUANTIZE and (value := index.constant(reader.input[1])) is not None
        }
        if len(scales) > 1:
            first = next(reader for reader in index.consumers(tensor) if reader.op_type == QUANTIZE)
            yield Finding(
                *("different-scales", "warning", label(first)),
                f"{tensor} is quantized with {len(scales)} different scales: one copy each",
                "give all readers of a tensor one Q/DQ",
                PLACEMENT,
                repairable=not index.weights(tensor),
            )


def _computes_int8(index: Index, node: Any) -> bool:
    return all(index.quantized(name) for name in node.input[:2])


def _int8_before(index: Index, tensor: str) -> bool:
    """Whether the weighted layer before a tensor, through ReLU and Add, computes in INT8."""
    node = index.producer(tensor)
    while node is not None and node.op_type in ("Relu", "Add"):
        node = index.producer(_before_pair(index, node.input[0]))
    return node is not None and node.op_type == "Conv" and _computes_int8(index, node)


def _before_pair(index: Index, tensor: str) -> str:
    """The tensor that Q and DQ stand on; the tensor itself without them."""
    node = index.producer(tensor)
    return index.source(node) if node is not None and node.op_type == DEQUANTIZE else tensor


def _ways(index: Index, first: str, second: str) -> tuple[list[str], list[str]]:
    """The tensors from each end back to the nearest one that both come from."""
    one, two = _chain(index, first), _chain(index, second)
    shared = set(one) & set(two)
    return _until(one, shared), _until(two, shared)


def _until(chain: list[str], shared: set[str]) -> list[str]:
    return chain[: next((i for i, name in enumerate(chain) if name in shared), len(chain))]


def _chain(index: Index, tensor: str) -> list[str]:
    """A tensor and what it comes from, along first inputs, Q/DQ left out."""
    chain = [_before_pair(index, tensor)]
    while (node := index.producer(chain[-1])) is not None and node.input:
        following = _before_pair(index, node.input[0])
        if following in chain:  # a cycle: no valid graph, and no reason to hang
            break
        chain.append(following)
    return chain


def _weight_shape(index: Index, node: Any) -> tuple[int, ...]:
    value = index.constant(_before_pair(index, node.input[1]))
    return tuple(np.shape(value)) if value is not None else ()
