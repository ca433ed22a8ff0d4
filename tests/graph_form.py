"""Parts of small classifiers of many forms: operations, activations, pools, heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 16
CLASSES = 10
Build = Callable[["Form"], str]
FORMS: dict[str, Build] = {}


class Form:
    """Nodes in the order they are written; every method gives the name of its output.

    Args:
        seed: Of the random weights.
    """

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.infos = {
            "images": helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
        }
        self.random = np.random.default_rng(seed)

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def shape(self, name: str) -> list[int]:
        """Of a tensor, without the batch."""
        return [dim.dim_value for dim in self.infos[name].type.tensor_type.shape.dim][1:]

    def ops(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """A node of several outputs, whose shapes are inferred."""
        names = [f"t{len(self.infos) + i}" for i in range(outputs)]
        node = helper.make_node(
            kind, list(inputs), names, name=f"{kind.lower()}{len(self.nodes)}", **attributes
        )
        self.nodes.append(node)
        known = [self.infos[name] for name in inputs if name in self.infos]
        graph = helper.make_graph([node], "one", known, [], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        for info in onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info:
            self.infos[info.name] = info
        assert set(names) <= set(self.infos), (kind, inputs)
        return names

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(kind, *inputs, **attributes)[0]

    def conv(
        self,
        x: str,
        outputs: int = 16,
        kernel: int | tuple[int, int] = 3,
        *,
        weight: Any = None,
        bias: Any = True,
        shared: str = "",
        transposed: bool = False,
        **attributes: Any,
    ) -> str:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        inputs, group = self.shape(x)[0], attributes.get("group", 1)
        shape = (inputs, outputs // group, *sides) if transposed else (outputs, inputs // group, *sides)
        drawn = self.random.normal(0, (2 * group / (inputs * sides[0] * sides[1])) ** 0.5, shape)
        used = [x, shared or self.constant(drawn if weight is None else weight(drawn))]
        if bias is not False:
            plain = self.random.normal(0, 0.1, outputs)
            used.append(self.constant(plain if bias is True else bias(plain)))
        dilations = attributes.get("dilations", [1, 1])
        if not transposed and "auto_pad" not in attributes:
            attributes.setdefault("pads", [d * (s // 2) for s, d in zip(sides, dilations, strict=True)] * 2)
        return self.op(
            "ConvTranspose" if transposed else "Conv", *used, kernel_shape=list(sides), **attributes
        )

    def act(self, kind: str, x: str) -> str:
        return ACTIVATIONS[kind](self, x)

    def block(self, x: str, kind: str = "relu", outputs: int = 16, kernel: int = 3, **attributes: Any) -> str:
        return self.act(kind, self.conv(x, outputs, kernel, **attributes))

    def linear(
        self, x: str, outputs: int, *, kind: str = "Gemm", bias: Any = True, weight: Any = None
    ) -> str:
        """A fully connected layer on the last axis."""
        inputs = self.shape(x)[-1]
        drawn = self.random.normal(0, (1 / inputs) ** 0.5, (inputs, outputs))
        drawn = drawn if weight is None else weight(drawn)
        plain = self.random.normal(0, 0.1, outputs)
        plain = plain if bias is True or bias is False else bias(plain)
        if kind == "MatMul":
            made = self.op("MatMul", x, self.constant(drawn))
            return self.op("Add", made, self.constant(plain)) if bias is not False else made
        used = [x, self.constant(drawn.T if kind == "Gemm" else drawn)]
        used += [self.constant(plain)] if bias is not False else []
        return self.op("Gemm", *used, transB=int(kind == "Gemm"))

    def pool(self, kind: str, x: str, kernel: int = 2, stride: int = 2, **attributes: Any) -> str:
        return self.op(kind, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, **attributes)

    def head(self, x: str, pool: str = "GlobalAveragePool") -> str:
        return self.linear(self.op("Flatten", self.op(pool, x)), CLASSES)

    def start(self, kind: str = "relu", outputs: int = 16) -> str:
        return self.block("images", kind, outputs, strides=[2, 2])

    def model(self, logits: str) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "logits"
        assert self.shape(logits) == [CLASSES], self.shape(logits)
        made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])
        graph = helper.make_graph(self.nodes, "net", [self.infos["images"]], [made], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def form(name: str) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        assert name not in FORMS, name
        FORMS[name] = build
        return build

    return register


def _gelu(g: Form, x: str) -> str:
    half = g.op("Erf", g.op("Div", x, g.constant(2**0.5)))
    return g.op("Mul", g.op("Mul", x, g.op("Add", half, g.constant(1.0))), g.constant(0.5))


def _hard_swish(g: Form, x: str) -> str:
    moved = g.op("Clip", g.op("Add", x, g.constant(3.0)), g.constant(0.0), g.constant(6.0))
    return g.op("Div", g.op("Mul", x, moved), g.constant(6.0))


ACTIVATIONS: dict[str, Callable[[Form, str], str]] = {
    "none": lambda g, x: x,
    "relu": lambda g, x: g.op("Relu", x),
    "relu6": lambda g, x: g.op("Clip", x, g.constant(0.0), g.constant(6.0)),
    "clip": lambda g, x: g.op("Clip", x, g.constant(-1.0), g.constant(1.0)),
    "leaky": lambda g, x: g.op("LeakyRelu", x, alpha=0.1),
    "prelu": lambda g, x: g.op("PRelu", x, g.constant(g.random.uniform(0, 0.5, (g.shape(x)[0], 1, 1)))),
    "elu": lambda g, x: g.op("Elu", x),
    "sigmoid": lambda g, x: g.op("Sigmoid", x),
    "hard-sigmoid": lambda g, x: g.op("HardSigmoid", x, alpha=1 / 6),
    "hard-swish": lambda g, x: g.op("HardSwish", x),
    "hard-swish-parts": _hard_swish,
    "silu": lambda g, x: g.op("Mul", x, g.op("Sigmoid", x)),
    "gelu": _gelu,
    "tanh": lambda g, x: g.op("Tanh", x),
    "softplus": lambda g, x: g.op("Softplus", x),
    "mish": lambda g, x: g.op("Mul", x, g.op("Tanh", g.op("Softplus", x))),
    "abs": lambda g, x: g.op("Abs", x),
    "square": lambda g, x: g.op("Mul", x, x),
    "sqrt": lambda g, x: g.op("Sqrt", g.op("Relu", x)),
    "neg-relu": lambda g, x: g.op("Neg", g.op("Relu", x)),
}


def _reduce(kind: str, keep: int) -> Callable[[Form, str], str]:
    def reduce(g: Form, x: str) -> str:
        if kind == "ReduceSum":
            made = g.op(kind, x, g.integers(2, 3), keepdims=keep)
        else:
            made = g.op(kind, x, axes=[2, 3], keepdims=keep)
        return g.op("Flatten", made) if keep else made

    return reduce


def _global(kind: str) -> Callable[[Form, str], str]:
    return lambda g, x: g.op("Flatten", g.op(kind, x))


HEADS: dict[str, Callable[[Form, str], str]] = {
    "average": _global("GlobalAveragePool"),
    "max": _global("GlobalMaxPool"),
    "mean": _reduce("ReduceMean", 0),
    "mean-kept": _reduce("ReduceMean", 1),
    "reduce-max": _reduce("ReduceMax", 0),
    "reduce-max-kept": _reduce("ReduceMax", 1),
    "reduce-min": _reduce("ReduceMin", 0),
    "reduce-sum": _reduce("ReduceSum", 0),
    "reduce-l2": _reduce("ReduceL2", 0),
    "whole-average": lambda g, x: g.op("Flatten", g.pool("AveragePool", x, 8, 1)),
    "whole-max": lambda g, x: g.op("Flatten", g.pool("MaxPool", x, 8, 1)),
    "flat": lambda g, x: g.op("Flatten", x),
    "max-average": lambda g, x: g.op("Flatten", g.pool("AveragePool", g.pool("MaxPool", x), 4, 1)),
    "both": lambda g, x: g.op("Concat", HEADS["average"](g, x), HEADS["max"](g, x), axis=1),
    "moments": lambda g, x: g.op("Concat", HEADS["mean"](g, x), HEADS["mean"](g, g.op("Mul", x, x)), axis=1),
}


POOLS: dict[str, Callable[[Form, str], str]] = {
    "max": lambda g, x: g.pool("MaxPool", x),
    "max-padded": lambda g, x: g.pool("MaxPool", x, 3, 2, pads=[1] * 4),
    "average": lambda g, x: g.pool("AveragePool", x),
    "average-padded": lambda g, x: g.pool("AveragePool", x, 3, 1, pads=[1] * 4),
    "average-counted": lambda g, x: g.pool("AveragePool", x, 3, 1, pads=[1] * 4, count_include_pad=1),
    "average-uneven": lambda g, x: g.pool("AveragePool", x, 2, 1, pads=[0, 0, 1, 1]),
    "nearest": lambda g, x: g.op("Resize", x, "", g.constant([1, 1, 2, 2]), mode="nearest"),
    "linear": lambda g, x: g.op("Resize", x, "", g.constant([1, 1, 2, 2]), mode="linear"),
}


MOVES: dict[str, Callable[[Form, str], str]] = {
    "slice": lambda g, x: g.op("Slice", x, g.integers(1), g.integers(7), g.integers(2)),
    "slice-channels": lambda g, x: g.op("Slice", x, g.integers(4), g.integers(16), g.integers(1)),
    "pad": lambda g, x: g.op("Pad", x, g.integers(0, 0, 1, 1, 0, 0, 2, 2)),
    "pad-value": lambda g, x: g.op("Pad", x, g.integers(0, 0, 1, 1, 0, 0, 1, 1), g.constant(-1.0)),
    "pad-reflected": lambda g, x: g.op("Pad", x, g.integers(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"),
    "pad-edge": lambda g, x: g.op("Pad", x, g.integers(0, 0, 1, 1, 0, 0, 1, 1), mode="edge"),
    "pad-channels": lambda g, x: g.op("Pad", x, g.integers(0, 8, 0, 0, 0, 8, 0, 0)),
    "transpose": lambda g, x: g.op("Transpose", x, perm=[0, 1, 3, 2]),
    "reshape": lambda g, x: g.op("Reshape", x, g.integers(0, 64, 4, 4)),
    "shuffle": lambda g, x: g.op(
        "Reshape",
        g.op("Transpose", g.op("Reshape", x, g.integers(0, 4, 4, 8, 8)), perm=[0, 2, 1, 3, 4]),
        g.integers(0, 16, 8, 8),
    ),
    "depth-to-space": lambda g, x: g.op("DepthToSpace", x, blocksize=2),
    "space-to-depth": lambda g, x: g.op("SpaceToDepth", x, blocksize=2),
    "tile": lambda g, x: g.op("Tile", x, g.integers(1, 2, 1, 1)),
    "gather": lambda g, x: g.op("Gather", x, g.integers(*range(15, -1, -2)), axis=1),
    "unsqueeze": lambda g, x: g.op("Squeeze", g.op("Unsqueeze", x, g.integers(2)), g.integers(2)),
}


def some(value: float, every: int = 2) -> Callable[[Any], Any]:
    """Every second filter (or bias) becomes a value."""

    def change(drawn: Any) -> Any:
        changed = drawn.copy()
        changed[::every] = value
        return changed

    return change
