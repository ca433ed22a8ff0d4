"""Small residual networks as ONNX, float or with Q/DQ: right for each target, or wrong in one stated way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgeship.targets.tensorrt import lint, versions
from edgeship.toolkit.core.quant import QParams, QuantScheme
from edgeship.toolkit.core.results import Finding
from edgeship.toolkit.graph import edit, io, shift

CHANNELS = 32


@dataclass(frozen=True)
class Placement:
    """Places and spelling of the Q/DQ pairs in `residual_net`.

    Attributes:
        activation: "int8" or "uint8" (uint8 only where a ReLU went before); None leaves the graph float.
        add_inputs: "skip", "both" or "none".
        pool: Q/DQ before and after the global average pool.
        zero_point: Zero point of the signed activations.
        axis: Channel axis of the weight scales; None leaves the attribute out.
    """

    activation: str | None = "int8"
    add_inputs: str = "skip"
    pool: bool = True
    zero_point: int | None = 0
    axis: int | None = 0


OPENVINO = Placement(activation="uint8", add_inputs="both")
TENSORRT = Placement()
FLOAT = Placement(activation=None)


class Writer:
    """Nodes and initializers in the order they are written."""

    def __init__(self, placement: Placement, seed: int = 0) -> None:
        self.placement = placement
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def qdq(
        self, tensor: str, scale: Any, dtype: str, zero_point: int | None, axis: int | None = None
    ) -> str:
        scales = np.asarray(scale, np.float32)
        parameters = [self.constant(f"{tensor}_scale", scales)]
        if zero_point is not None:
            zeros = np.full(scales.shape, zero_point, dtype)
            parameters.append(self.constant(f"{tensor}_zero_point", zeros))
        where = {} if axis is None else {"axis": axis}
        quantized = self.node("QuantizeLinear", [tensor, *parameters], f"{tensor}_quantized", **where)
        return self.node("DequantizeLinear", [quantized, *parameters], f"{tensor}_dequantized", **where)

    def activation(self, tensor: str, scale: float, *, unsigned: bool) -> str:
        if self.placement.activation is None:
            return tensor
        if unsigned and self.placement.activation == "uint8":
            return self.qdq(tensor, scale / 2, "uint8", 0)
        return self.qdq(tensor, scale, "int8", self.placement.zero_point)

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        weight = self.random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        self.constant(name, weight)
        if self.placement.activation is None:
            return name
        scale = np.abs(weight).max(axis=tuple(range(1, len(shape)))) / 63  # no pair sum saturates
        return self.qdq(name, scale, "int8", 0, self.placement.axis)

    def conv(self, x: str, name: str, shape: tuple[int, ...], stride: int = 1) -> str:
        weight = self.weight(f"{name}.weight", shape)
        bias = self.constant(f"{name}.bias", np.full(shape[0], 0.1, np.float32))
        pads = [shape[2] // 2] * 4
        return self.node("Conv", [x, weight, bias], name, pads=pads, strides=[stride] * 2)

    def block(self, x: str, name: str, inputs: int, outputs: int, stride: int) -> str:
        hidden = self.node(
            "Relu", [self.conv(x, f"{name}.conv1", (outputs, inputs, 3, 3), stride)], f"{name}.relu1"
        )
        hidden = self.activation(hidden, 0.05, unsigned=True)
        main = self.conv(hidden, f"{name}.conv2", (outputs, outputs, 3, 3))
        skip = self.shortcut(x, name, inputs, outputs, stride)
        if self.placement.add_inputs == "both":
            main = self.activation(main, 0.05, unsigned=False)
        total = self.node("Add", [main, skip], f"{name}.add")
        return self.node("Relu", [total], f"{name}.relu2")

    def shortcut(self, x: str, name: str, inputs: int, outputs: int, stride: int) -> str:
        quantized = self.placement.add_inputs != "none"
        if inputs == outputs:  # x is dequantized already, and shared with conv1
            return x if quantized else x.removesuffix("_dequantized")
        down = self.conv(x, f"{name}.downsample", (outputs, inputs, 1, 1), stride)
        return self.activation(down, 0.05, unsigned=False) if quantized else down


def residual_net(
    placement: Placement = TENSORRT, *, batch: int | str = 1, opset: int = 17, size: int = 32
) -> onnx.ModelProto:
    """conv, max pool, an identity block, a downsampling block, global pool, fully connected (10 classes)."""
    w = Writer(placement)
    x = w.activation("images", 0.03, unsigned=False)
    x = w.node("Relu", [w.conv(x, "conv1", (CHANNELS, 3, 3, 3))], "relu1")
    x = w.node("MaxPool", [x], "maxpool", kernel_shape=[2, 2], strides=[2, 2])
    x = w.block(w.activation(x, 0.05, unsigned=True), "layer1", CHANNELS, CHANNELS, 1)
    x = w.block(w.activation(x, 0.05, unsigned=True), "layer2", CHANNELS, 2 * CHANNELS, 2)
    if placement.pool:
        x = w.activation(x, 0.05, unsigned=True)
    x = w.node("GlobalAveragePool", [x], "pool")
    if placement.pool:
        x = w.activation(x, 0.03, unsigned=True)
    x = w.node("Flatten", [x], "flatten")
    bias = w.constant("fc.bias", np.zeros(10, np.float32))
    w.node("Gemm", [x, w.weight("fc.weight", (10, 2 * CHANNELS)), bias], "logits", transB=1)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])
    graph = helper.make_graph(w.nodes, "net", [images], [logits], w.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def save(model: onnx.ModelProto, path: Path, change: Callable[[onnx.ModelProto], None] | None = None) -> Path:
    """Write the model, after a change that may make it wrong."""
    if change is not None:
        change(model)
    onnx.save(model, path)
    return path


def findings_of(model: onnx.ModelProto, version: str) -> list[Finding]:
    """Lint a graph in memory for a TensorRT version."""
    return lint.findings(ir.from_proto(model), versions.rules(version))


def images(count: int = 1, size: int = 32, seed: int = 1) -> np.ndarray:
    """Images of unit variance, (N, 3, size, size)."""
    return np.random.default_rng(seed).normal(size=(count, 3, size, size)).astype(np.float32)


def quantize_by(scheme: QuantScheme, source: Path, out: Path) -> Path:
    """The product's Q/DQ graph for a scheme, with made-up scales of activations: builders judge the graph."""
    from edgeship.quantization import qdq
    from edgeship.quantization.placement import place
    from edgeship.quantization.qparams import weight_qparams

    model = ir.load(source)
    placed, values = place(model, scheme), model.graph.initializers
    activations = {
        name: QParams((0.05 if spec.dtype == "int8" else 0.025,), (0,), spec)
        for name, spec in placed.activations.items()
    }
    weights = {
        name: weight_qparams(edit.constant(values[name]), spec) for name, spec in placed.weights.items()
    }
    graph = qdq.insert(model, activations, weights, {}, store_integers=scheme.store_integers)
    shift.absorb(graph)
    io.save(graph, out)
    return out
