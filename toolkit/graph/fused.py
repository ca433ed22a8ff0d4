"""Expansion of operators fused by ONNX Runtime's optimizer into standard operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.graph.edit import Names, Replacement, constant

CONTRIB = "com.microsoft"
GELU_TANH = math.sqrt(2 / math.pi)  # Hendrycks and Gimpel 2016, arXiv:1606.08415
_ACTIVATIONS = {  # activation -> attribute names of its parameters, in order
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}


def unfuse(model: ir.Model) -> str | None:
    """Expand fused operators; those without a standard form stay.

    Returns:
        A note on the replaced operators; None without one.

    Source:
        ONNX Runtime docs/ContribOperators.md.
    """
    graph, replaced = model.graph, set()
    names = Names(graph)
    for node in list(graph):
        expand = _EXPANSIONS.get(node.op_type)
        if node.domain != CONTRIB or expand is None or len(node.outputs) != 1:
            continue
        replacement = Replacement(graph, node, names)
        if expand(node, replacement):
            replacement.finish()
            replaced.add(node.op_type)
    return f"unfused {', '.join(sorted(replaced))} of ONNX Runtime's optimizer" if replaced else None


def gelu(x: ir.Value, new: Replacement, *, tanh: bool = False) -> None:
    """Emit GELU as x / 2 (1 + erf(x / sqrt 2)), or its tanh approximation."""
    if tanh:
        cube = new.emit("Mul", [new.emit("Mul", [x, x]), x])
        inner = new.emit("Add", [x, new.emit("Mul", [cube, new.constant("cubic", np.float32(0.044715))])])
        bent = new.emit("Tanh", [new.emit("Mul", [inner, new.constant("gain", np.float32(GELU_TANH))])])
    else:
        bent = new.emit("Erf", [new.emit("Mul", [x, new.constant("gain", np.float32(math.sqrt(0.5)))])])
    total = new.emit("Add", [bent, new.constant("one", np.float32(1))])
    new.emit("Mul", [new.emit("Mul", [x, total]), new.constant("half", np.float32(0.5))])


def swish(x: ir.Value, new: Replacement, alpha: float) -> None:
    """Emit Swish as x sigmoid(alpha x)."""
    scaled = x if alpha == 1 else new.emit("Mul", [x, new.constant("alpha", np.float32(alpha))])
    new.emit("Mul", [x, new.emit("Sigmoid", [scaled])])


def _emit_activation(
    result: ir.Value, activation: str, parameters: Sequence[float], new: Replacement
) -> bool:
    if activation == "":
        return True
    if activation == "Clip":
        if len(parameters) != 2:
            return False
        bounds = [new.constant(n, np.float32(v)) for n, v in zip(("min", "max"), parameters, strict=True)]
        new.emit("Clip", [result, *bounds])
        return True
    attributes = _ACTIVATIONS.get(activation)
    if attributes is None or len(parameters) < len(attributes):
        return False
    numbers: dict[str, Any] = dict(zip(attributes, map(float, parameters), strict=False))
    new.emit(activation, [result], **numbers)
    return True


def _fused_conv(node: ir.Node, new: Replacement) -> bool:
    attributes = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if name not in {"activation", "activation_params"}
    }
    result = new.emit("Conv", _trimmed(node.inputs[:3]), keeps_name=True, **attributes)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        result = new.emit("Add", [result, node.inputs[3]])
    parameters = node.attributes.get("activation_params")
    numbers = [] if parameters is None else list(parameters.as_floats())
    return _emit_activation(result, node.attributes.get_string("activation", "") or "", numbers, new)


def _fused_gemm(node: ir.Node, new: Replacement) -> bool:
    attributes = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if not name.startswith("activation")
    }
    result = new.emit("Gemm", _trimmed(node.inputs), keeps_name=True, **attributes)
    parameters = (
        node.attributes.get_float(f"activation_{name}", None) for name in ("alpha", "beta", "gamma")
    )
    numbers = [float(each) for each in parameters if each is not None]
    return _emit_activation(result, node.attributes.get_string("activation", "") or "", numbers, new)


def _fused_matmul(node: ir.Node, new: Replacement) -> bool:
    first, second = node.inputs
    flags = [node.attributes.get_int(name, 0) for name in ("transA", "transBatchA", "transBatchB")]
    if first is None or second is None or second.const_value is None or any(flags):
        return False
    weight = constant(second) * np.float32(node.attributes.get_float("alpha", 1.0) or 0.0)
    if node.attributes.get_int("transB", 0):
        weight = np.swapaxes(weight, -1, -2)
    new.emit("MatMul", [first, new.constant("weight", np.ascontiguousarray(weight))], keeps_name=True)
    return True


def _gelu(node: ir.Node, new: Replacement) -> bool:
    x, *bias = [value for value in node.inputs if value is not None]
    if bias:
        x = new.emit("Add", [x, bias[0]])
    gelu(x, new, tanh=node.op_type == "FastGelu")
    return True


def _quick_gelu(node: ir.Node, new: Replacement) -> bool:
    if node.inputs[0] is None:
        return False
    swish(node.inputs[0], new, float(node.attributes.get_float("alpha", 1.702) or 0.0))
    return True


def _trimmed(values: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    inputs = list(values)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


_EXPANSIONS: dict[str, Callable[[ir.Node, Replacement], bool]] = {
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _gelu,
    "QuickGelu": _quick_gelu,
}
