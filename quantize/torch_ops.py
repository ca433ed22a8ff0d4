"""Differentiable ONNX operators in PyTorch for any batch size: layers, pools, and the operator table."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeship.quantization import torch_elementwise, torch_reduce, torch_reshape, torch_resize
from edgeship.quantization.node_call import Call, Operation, UnsupportedAttributeError

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _pads(call: Call, kernel: list[int]) -> tuple[list[int], list[int]]:
    """Return the padding before and after every spatial axis; resolve `auto_pad`."""
    spatial, auto_pad = len(kernel), call.text("auto_pad", "NOTSET")
    if auto_pad not in {"SAME_UPPER", "SAME_LOWER"}:
        pads = call.ints("pads", [0] * 2 * spatial) if auto_pad == "NOTSET" else [0] * 2 * spatial
        return pads[:spatial], pads[spatial:]
    strides, dilations = (call.ints(name, [1] * spatial) for name in ("strides", "dilations"))
    total = [
        max((-(-side // stride) - 1) * stride + dilation * (taps - 1) + 1 - side, 0)
        for side, stride, dilation, taps in zip(call[0].shape[2:], strides, dilations, kernel, strict=True)
    ]
    less, more = [each // 2 for each in total], [-(-each // 2) for each in total]
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def _padded(
    call: Call, kernel: list[int], fill: float, most: list[int] | None = None
) -> tuple[Tensor, list[int]]:
    """Pad the first input if its padding is asymmetric; return it and the remaining symmetric padding.

    Args:
        call: The node.
        kernel: Taps along every spatial axis.
        fill: Padding value.
        most: Largest symmetric padding of the PyTorch function; None: any.
    """
    before, after = _pads(call, kernel)
    if before == after and (most is None or all(p <= m for p, m in zip(before, most, strict=True))):
        return call[0], before
    order = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return F.pad(call[0], order, value=fill), [0] * len(kernel)


def _conv(call: Call) -> Tensor:
    kernel = list(call[1].shape[2:])
    x, pads = _padded(call, kernel, 0.0)
    one = [1] * len(kernel)
    strides, dilations = call.ints("strides", one), call.ints("dilations", one)
    if kernel == [1, 1]:
        dilations = [2, 2]  # no effect on 1x1, but selects oneDNN on a single thread, twice as fast
    convolve = _CONV[len(kernel)]
    return convolve(x, call[1], call.get(2), strides, pads, dilations, call.integer("group", 1))


def _conv_transpose(call: Call) -> Tensor:
    kernel, x = list(call[1].shape[2:]), call[0]
    one = [1] * len(kernel)
    strides, dilations = call.ints("strides", one), call.ints("dilations", one)
    extra = call.ints("output_padding", [0] * len(kernel))
    auto_pad = call.text("auto_pad", "NOTSET")
    sides = [
        stride * (side - 1) + more + (taps - 1) * dilation + 1
        for stride, side, more, taps, dilation in zip(
            strides, x.shape[2:], extra, kernel, dilations, strict=True
        )
    ]
    sizes = call.ints("output_shape", [])[-len(kernel) :]
    if auto_pad in {"SAME_UPPER", "SAME_LOWER"} and not sizes:
        sizes = [side * stride for side, stride in zip(x.shape[2:], strides, strict=True)]
    if sizes:
        total = [side - size for side, size in zip(sides, sizes, strict=True)]
        less = [each // 2 for each in total]
        more = [each - part for each, part in zip(total, less, strict=True)]
        before, after = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    else:
        before, after = _pads(call, kernel)
    if min(before + after) < 0:
        raise UnsupportedAttributeError("an output_shape beyond the range of the kernel")
    transposed = _CONV_TRANSPOSE[len(kernel)]
    whole = transposed(x, call[1], call.get(2), strides, 0, extra, call.integer("group", 1), dilations)
    for axis, (first, last) in enumerate(zip(before, after, strict=True), 2):
        whole = whole.narrow(axis, first, whole.shape[axis] - first - last)
    return whole


def _gemm(call: Call) -> Tensor:
    a = call[0].T if call.integer("transA", 0) else call[0]
    weight = call[1] if call.integer("transB", 0) else call[1].T
    product = F.linear(a, weight) * call.number("alpha", 1.0)
    bias = call.get(2)
    return product if bias is None else product + call.number("beta", 1.0) * bias


def _max_pool(call: Call) -> Tensor:
    if len(call.node.outputs) > 1:
        raise UnsupportedAttributeError("indices as an output")
    kernel = call.ints("kernel_shape", [1, 1])
    one = [1] * len(kernel)
    x, pads = _padded(call, kernel, float("-inf"), [side // 2 for side in kernel])
    ceil = bool(call.integer("ceil_mode", 0))
    pool = _MAX_POOL[len(kernel)]
    return pool(x, kernel, call.ints("strides", one), pads, call.ints("dilations", one), ceil)


def _average_pool(call: Call) -> Tensor:
    kernel = call.ints("kernel_shape", [1, 1])
    one = [1] * len(kernel)
    if call.ints("dilations", one) != one:
        raise UnsupportedAttributeError("dilations")
    half = [side // 2 for side in kernel]
    x, pads = _padded(call, kernel, 0.0, half)
    include = bool(call.integer("count_include_pad", 0))
    ceil = bool(call.integer("ceil_mode", 0))
    strides, pool = call.ints("strides", one), _AVERAGE_POOL[len(kernel)]
    mean = pool(x, kernel, strides, pads, ceil, include)
    if include or x is call[0]:
        return mean
    inside, _ = _padded(Call(call.node, [torch.ones_like(call[0][:1, :1])]), kernel, 0.0, half)
    return mean / pool(inside, kernel, strides, pads, ceil, include)


def _spatial(call: Call) -> tuple[int, ...]:
    return tuple(range(2, call[0].ndim))


LAYERS: dict[str, Operation] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda call: call[0] @ call[1],
    "Einsum": lambda call: torch.einsum(call.text("equation", "").replace(" ", ""), *call.all()),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda call: call[0].mean(_spatial(call), keepdim=True),
    "GlobalMaxPool": lambda call: call[0].amax(_spatial(call), keepdim=True),
}
OPERATIONS: dict[str, Operation] = {
    **LAYERS,
    **torch_elementwise.OPERATIONS,
    **torch_reduce.OPERATIONS,
    **torch_reshape.OPERATIONS,
    **torch_resize.OPERATIONS,
}
# operators whose results do not depend on the batch size
PLAIN = frozenset(
    {
        *("Conv", "Gemm", "MatMul", "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu"),
        *("PRelu", "Elu", "Softplus", "Tanh", "Erf", "Gelu", "Sqrt", "Add", "Sub", "Mul", "Div"),
        *("BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "AveragePool"),
        *("Flatten", "Identity", "Dropout"),
    }
)
# operators that PyTorch computes in bfloat16; all others run in float32
NATIVE = PLAIN | {
    *("Pow", "Softmax", "LogSoftmax", "LayerNormalization", "Max", "Min", "Concat", "ReduceMean"),
    *("ReduceSum", "Transpose", "Gather", "Reshape", "Squeeze", "Unsqueeze", "Pad", "Slice"),
}
