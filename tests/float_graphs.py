"""Small float classifiers as ONNX, written operation by operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Nodes and initializers in the order they are written; every method gives the name of its output.

    Args:
        size: Side of the images, or height and width.
        channels: Channels of the images.
        batch: Images an inference; a string is dynamic.
        seed: Of the random weights.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 8,
        channels: int = 3,
        batch: int | str = "batch",
        seed: int = 0,
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)
        self.shapes: dict[str, tuple[int, ...]] = {
            "images": (channels, *((size, size) if isinstance(size, int) else size))
        }
        self._batch = batch

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """A node named after its place, whose output has a shape (without the batch)."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def conv(
        self,
        x: str,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        group: int = 1,
        bias: bool = True,
        weight: Any = None,
        shared: str | None = None,
    ) -> str:
        """A convolution; `shared` names the weights of another one."""
        inputs, height, width = self.shapes[x]
        name = f"conv{len(self.nodes)}"
        if shared is None:
            shape = (outputs, inputs // group, kernel, kernel)
            drawn = self.random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
            shared = self.constant(f"{name}.weight", drawn if weight is None else weight)
        used = [x, shared]
        if bias:
            used.append(self.constant(f"{name}.bias", self.random.normal(0, 0.1, outputs)))
        side = ((height - 1) // stride + 1, (width - 1) // stride + 1)
        pads, strides = [kernel // 2] * 4, [stride] * 2
        shape = (outputs, *side)
        return self.node(
            "Conv", used, shape, pads=pads, strides=strides, group=group, kernel_shape=[kernel] * 2
        )

    def unary(self, kind: str, x: str, **attributes: Any) -> str:
        return self.node(kind, [x], self.shapes[x], **attributes)

    def add(self, first: str, second: str) -> str:
        return self.node("Add", [first, second], self.shapes[first])

    def concat(self, first: str, second: str) -> str:
        channels = self.shapes[first][0] + self.shapes[second][0]
        return self.node("Concat", [first, second], (channels, *self.shapes[first][1:]), axis=1)

    def pool(self, kind: str, x: str, kernel: int = 2, stride: int = 2) -> str:
        channels, height, width = self.shapes[x]
        shape = (channels, height // stride, width // stride)
        return self.node(kind, [x], shape, kernel_shape=[kernel] * 2, strides=[stride] * 2)

    def batch_norm(self, x: str) -> str:
        """Its factor is 1/2, 1 or 2 and its shift a multiple of 1/8: exact in float32."""
        channels, name = self.shapes[x][0], f"batchnormalization{len(self.nodes)}"
        epsilon = 2.0**-10
        parameters = [
            self.constant(f"{name}.weight", 2.0 ** self.random.integers(-1, 2, channels)),
            self.constant(f"{name}.bias", self.random.integers(-4, 5, channels) / 8),
            self.constant(f"{name}.mean", self.random.integers(-4, 5, channels) / 8),
            self.constant(f"{name}.var", np.full(channels, 1 - epsilon)),
        ]
        return self.node("BatchNormalization", [x, *parameters], self.shapes[x], epsilon=epsilon)

    def head(self, x: str, classes: int = 5, kind: str = "Gemm") -> Graph:
        """Global average pool and a fully connected layer, by Gemm or MatMul."""
        channels = self.shapes[x][0]
        pooled = self.node("GlobalAveragePool", [x], (channels, 1, 1))
        flat = self.node("Flatten", [pooled], (channels,), axis=1)
        weight = self.random.normal(0, 0.5, (channels, classes))
        if kind == "MatMul":
            inputs, attributes = [flat, self.constant("fc.weight", weight)], {}
        else:
            bias = self.constant("fc.bias", self.random.normal(0, 0.1, classes))
            inputs, attributes = [flat, self.constant("fc.weight", weight.T), bias], {"transB": 1}
        self.nodes.append(helper.make_node(kind, inputs, ["logits"], name="fc", **attributes))
        self.shapes["logits"] = (classes,)
        return self

    def model(self, *, opset: int = 17) -> onnx.ModelProto:
        float32 = TensorProto.FLOAT
        images = helper.make_tensor_value_info("images", float32, [self._batch, *self.shapes["images"]])
        logits = helper.make_tensor_value_info("logits", float32, [self._batch, *self.shapes["logits"]])
        graph = helper.make_graph(self.nodes, "net", [images], [logits], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def save(self, path: Path) -> Path:
        onnx.save(self.model(), path)
        return path


def residual(batch: int | str = "batch", seed: int = 0) -> Graph:
    """conv, max pool, an identity block, a downsampling block, global pool, fully connected."""
    g = Graph(size=16, batch=batch, seed=seed)
    x = g.pool("MaxPool", g.unary("Relu", g.conv("images", 8)))
    x = g.unary("Relu", g.add(g.conv(g.unary("Relu", g.conv(x, 8)), 8), x))
    main = g.conv(g.unary("Relu", g.conv(x, 16, stride=2)), 16)
    x = g.unary("Relu", g.add(main, g.conv(x, 16, 1, stride=2)))
    return g.head(x)


def images(count: int = 4, size: int = 8, channels: int = 3, seed: int = 1) -> np.ndarray:
    """Images of unit variance, (N, channels, size, size)."""
    return np.random.default_rng(seed).normal(size=(count, channels, size, size)).astype(np.float32)
