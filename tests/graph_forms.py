"""Small classifiers of many forms: name -> ONNX graph. What runs one of them should compute what it says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
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


def build(name: str, seed: int = 0) -> onnx.ModelProto:
    """The classifier of that name."""
    made = Form(seed)
    return made.model(FORMS[name](made))


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
SIGNS = ("relu", "none", "leaky")


def _activation(kind: str) -> Build:
    return lambda g: g.head(g.block(g.start(kind), kind))


def _last_activation(kind: str) -> Build:
    """A layer reads a tensor that was activated after it was flattened."""
    return lambda g: g.linear(
        g.act(kind, g.linear(g.op("Flatten", g.op("GlobalAveragePool", g.start())), 24)), CLASSES
    )


for _kind in ACTIVATIONS:
    FORMS[f"activation-{_kind}"] = _activation(_kind)
for _kind in ("relu", "none", "relu6", "gelu", "hard-swish"):
    FORMS[f"hidden-{_kind}"] = _last_activation(_kind)


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


def _head(pool: str, sign: str) -> Build:
    return lambda g: g.linear(HEADS[pool](g, g.block(g.start(), sign)), CLASSES)


for _pool, _sign in product(HEADS, SIGNS[:2]):
    FORMS[f"head-{_pool}-{_sign}"] = _head(_pool, _sign)

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


def _pooled(pool: str, sign: str) -> Build:
    return lambda g: g.head(g.block(POOLS[pool](g, g.start(sign))))


def _pooled_beside(pool: str, sign: str) -> Build:
    """The pooled tensor is read by a convolution too, and the result meets it."""

    def made(g: Form) -> str:
        x = g.start(sign)
        return g.head(g.block(g.op("Concat", POOLS[pool](g, x), POOLS[pool](g, g.conv(x)), axis=1), kernel=1))

    return made


def _pooled_sum(pool: str, sign: str) -> Build:
    def made(g: Form) -> str:
        x = g.start(sign)
        side = POOLS[pool](g, x)
        return g.head(g.act("relu", g.op("Add", side, POOLS[pool](g, g.conv(x)))))

    return made


def _pooled_alone(pool: str, sign: str) -> Build:
    """The pooled tensor meets a convolution of what was pooled; of equal sides."""

    def made(g: Form) -> str:
        x = g.start(sign)
        kind, options = ("MaxPool", {}) if pool == "max" else ("AveragePool", {"count_include_pad": 1})
        side = g.pool(kind, x, 3, 1, pads=[1] * 4, **options)
        other = g.act(sign, g.conv(x))
        return g.head(g.block(g.op("Concat", other, side, axis=1), kernel=1))

    return made


for _pool, _sign in product(POOLS, SIGNS[:2]):
    FORMS[f"pool-{_pool}-{_sign}"] = _pooled(_pool, _sign)
    FORMS[f"pool-concat-{_pool}-{_sign}"] = _pooled_beside(_pool, _sign)
    FORMS[f"pool-add-{_pool}-{_sign}"] = _pooled_sum(_pool, _sign)
for _pool, _sign in product(("max", "average"), SIGNS):
    FORMS[f"inception-{_pool}-{_sign}"] = _pooled_alone(_pool, _sign)


def _joined(kind: str, first: str, second: str) -> Build:
    def made(g: Form) -> str:
        x = g.start()
        both = g.block(x, first), g.block(x, second)
        joined = g.op(kind, *both, **({"axis": 1} if kind == "Concat" else {}))
        return g.head(g.block(joined))

    return made


for _kind, (_first, _second) in product(
    ("Concat", "Add", "Mul", "Max", "Sub"),
    (("relu", "relu"), ("relu", "none"), ("none", "none"), ("sigmoid", "leaky")),
):
    FORMS[f"{_kind.lower()}-{_first}-{_second}"] = _joined(_kind, _first, _second)


def _residual(kind: str, sign: str, shortcut: str) -> Build:
    """Two blocks whose sums are activated or not."""

    def made(g: Form) -> str:
        x = g.start(sign)
        for _ in range(2):
            side = {
                "same": lambda x=x: x,
                "conv": lambda x=x: g.conv(x, kernel=1),
                "pooled": lambda x=x: g.pool("AveragePool", x, 3, 1, pads=[1] * 4),
            }[shortcut]()
            x = g.act(sign, g.op("Add", g.conv(g.block(x, kind)), side))
        return g.head(x)

    return made


for _kind, _sign, _side in product(("relu", "hard-swish"), ("relu", "none"), ("same", "conv", "pooled")):
    FORMS[f"residual-{_kind}-{_sign}-{_side}"] = _residual(_kind, _sign, _side)


def _split(sign: str, then: str) -> Build:
    def made(g: Form) -> str:
        first, second = g.ops("Split", g.start(sign), g.integers(8, 8), outputs=2, axis=1)
        if then == "concat":
            x = g.op("Concat", g.block(first, sign, 8), second, axis=1)
        elif then == "add":
            x = g.op("Add", g.conv(first, 8), second)
        elif then == "swap":
            x = g.op("Concat", second, first, axis=1)
        else:
            x = g.op("Mul", first, g.op("Sigmoid", second))
        return g.head(g.block(x))

    return made


for _sign, _then in product(("relu", "none"), ("concat", "add", "swap", "gate")):
    FORMS[f"split-{_then}-{_sign}"] = _split(_sign, _then)

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


def _moved(move: str, sign: str) -> Build:
    return lambda g: g.head(g.block(MOVES[move](g, g.start(sign))))


for _move, _sign in product(MOVES, SIGNS[:2]):
    FORMS[f"move-{_move}-{_sign}"] = _moved(_move, _sign)

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "pointwise": {"kernel": 1},
    "depthwise": {"group": 16},
    "depthwise-strided": {"group": 16, "strides": [2, 2]},
    "grouped": {"group": 4},
    "grouped-wide": {"group": 2, "outputs": 24},
    "multiplied": {"group": 16, "outputs": 32},
    "dilated": {"dilations": [2, 2]},
    "row": {"kernel": (1, 5)},
    "column": {"kernel": (5, 1)},
    "even": {"kernel": 2, "pads": [0, 0, 1, 1]},
    "uneven": {"pads": [0, 0, 1, 1], "strides": [2, 2]},
    "same-upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "valid": {"pads": [0] * 4},
    "large": {"kernel": 7},
    "odd-channels": {"outputs": 5},
    "no-bias": {"bias": False},
    "transposed": {"transposed": True, "kernel": 2, "strides": [2, 2]},
    "transposed-padded": {"transposed": True, "strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]},
    "transposed-grouped": {"transposed": True, "kernel": 2, "strides": [2, 2], "group": 4},
}


def _convolution(options: dict[str, Any], sign: str) -> Build:
    return lambda g: g.head(g.block(g.act(sign, g.conv(g.start(sign), **options)), "relu"))


for _name, _sign in product(CONVOLUTIONS, SIGNS[:2]):
    FORMS[f"conv-{_name}-{_sign}"] = _convolution(CONVOLUTIONS[_name], _sign)


def _some(value: float, every: int = 2) -> Callable[[Any], Any]:
    """Every second filter (or bias) becomes a value."""

    def change(drawn: Any) -> Any:
        changed = drawn.copy()
        changed[::every] = value
        return changed

    return change


EXTREMES: dict[str, tuple[dict[str, Any], str]] = {
    "zero-filters": ({"weight": _some(0.0)}, "relu"),
    "zero-filters-large-bias": ({"weight": _some(0.0), "bias": lambda b: b * 100}, "relu"),
    "zero-filters-huge-bias": ({"weight": _some(0.0), "bias": lambda b: b * 1e4}, "relu"),
    "tiny-filters-huge-bias": ({"weight": _some(1e-9), "bias": lambda b: b * 1e4}, "relu"),
    "tiny-layer-bias": ({"weight": lambda w: w * 1e-6, "bias": lambda b: b * 30}, "none"),
    "all-zero": ({"weight": lambda w: w * 0}, "relu"),
    "tiny-filters": ({"weight": _some(1e-9)}, "relu"),
    "tiny-layer": ({"weight": lambda w: w * 1e-6}, "relu"),
    "small-layer": ({"weight": lambda w: w * 1e-3}, "relu"),
    "large-layer": ({"weight": lambda w: w * 1e3, "bias": lambda b: b * 1e3}, "relu"),
    "large-bias": ({"bias": lambda b: b * 1e3}, "relu"),
    "large-negative-bias": ({"bias": lambda b: -np.abs(b) * 1e3}, "relu"),
    "large-bias-signed": ({"bias": lambda b: b * 1e3}, "none"),
    "one-large-bias": ({"bias": _some(1000.0, 16)}, "none"),
    "one-large-filter": ({"weight": lambda w: w * np.logspace(-3, 1, len(w)).reshape(-1, 1, 1, 1)}, "none"),
    "dead": ({"bias": lambda b: b - 1e3}, "relu"),
}


def _extreme(name: str, group: int) -> Build:
    options, sign = EXTREMES[name]
    return lambda g: g.head(g.block(g.act(sign, g.conv(g.start(), group=group, **options))))


for _name in EXTREMES:
    FORMS[f"extreme-{_name}"] = _extreme(_name, 1)
for _name in ("zero-filters", "tiny-filters", "large-bias"):
    FORMS[f"extreme-depthwise-{_name}"] = _extreme(_name, 16)


@form("extreme-gemm-zero-rows")
def _(g: Form) -> str:
    x = g.op("Flatten", g.op("GlobalAveragePool", g.start()))
    hidden = g.linear(x, 24, weight=lambda w: w * (np.arange(24) % 2), bias=lambda b: b * 10)
    return g.linear(g.act("relu", hidden), CLASSES)


@form("extreme-matmul-zero-columns")
def _(g: Form) -> str:
    x = g.op("Flatten", g.op("GlobalAveragePool", g.start()))
    hidden = g.linear(x, 24, kind="MatMul", weight=lambda w: w * (np.arange(24) % 2), bias=lambda b: b * 10)
    return g.linear(g.act("relu", hidden), CLASSES)


@form("extreme-dead-then-gemm")
def _(g: Form) -> str:
    x = g.op("Flatten", g.op("GlobalAveragePool", g.start()))
    dead = g.act("relu", g.linear(x, 24, bias=lambda b: b - 1e3))
    both = g.op("Add", g.linear(dead, CLASSES), g.linear(x, CLASSES))
    return g.linear(both, CLASSES)


@form("extreme-sigmoid-then-zero-filters")
def _(g: Form) -> str:
    huge = g.block(g.start("sigmoid"), weight=_some(0.0), bias=lambda b: np.abs(b) * 100)
    return g.head(g.block(huge, "relu"))


@form("extreme-dead-then-bias")
def _(g: Form) -> str:
    x = g.start()
    dead = g.block(x, bias=lambda b: b - 1e3)
    return g.head(g.op("Add", g.block(dead, bias=lambda b: b * 100), x))


@form("extreme-dead-then-pool")
def _(g: Form) -> str:
    x = g.op("Flatten", g.op("GlobalAveragePool", g.block(g.start(), bias=lambda b: b - 1e3)))
    return g.linear(g.act("relu", g.linear(x, 24, bias=lambda b: b * 100)), CLASSES)


@form("heads-gemm-not-transposed")
def _(g: Form) -> str:
    return g.linear(HEADS["average"](g, g.start()), CLASSES, kind="Gemm-plain")


@form("heads-matmul")
def _(g: Form) -> str:
    return g.linear(HEADS["average"](g, g.start()), CLASSES, kind="MatMul")


@form("heads-matmul-no-bias")
def _(g: Form) -> str:
    return g.linear(HEADS["average"](g, g.start()), CLASSES, kind="MatMul", bias=False)


@form("heads-reshape")
def _(g: Form) -> str:
    return g.linear(g.op("Reshape", g.op("GlobalAveragePool", g.start()), g.integers(0, -1)), CLASSES)


@form("heads-reshape-flat")
def _(g: Form) -> str:
    return g.linear(g.op("Reshape", g.pool("MaxPool", g.start()), g.integers(0, -1)), CLASSES)


@form("heads-convolution")
def _(g: Form) -> str:
    return g.op("Flatten", g.op("GlobalAveragePool", g.conv(g.start(), CLASSES, 1)))


@form("heads-convolution-relu")
def _(g: Form) -> str:
    return g.op("Flatten", g.op("GlobalAveragePool", g.block(g.start(), "relu", CLASSES, 1)))


@form("heads-convolution-after")
def _(g: Form) -> str:
    return g.op("Flatten", g.conv(g.op("GlobalAveragePool", g.start()), CLASSES, 1))


@form("heads-whole-kernel")
def _(g: Form) -> str:
    return g.op("Flatten", g.conv(g.start(), CLASSES, 8, pads=[0] * 4))


@form("heads-softmax")
def _(g: Form) -> str:
    return g.op("Softmax", g.head(g.start()), axis=1)


@form("heads-log-softmax")
def _(g: Form) -> str:
    return g.op("LogSoftmax", g.head(g.start()), axis=1)


@form("heads-vgg")
def _(g: Form) -> str:
    x = g.act("relu", g.linear(g.op("Flatten", g.pool("MaxPool", g.block(g.start()))), 32))
    return g.linear(g.op("Dropout", g.act("relu", g.linear(x, 32))), CLASSES)


@form("heads-scaled")
def _(g: Form) -> str:
    return g.op("Mul", g.head(g.start()), g.constant(3.0))


@form("heads-normalized")
def _(g: Form) -> str:
    x = HEADS["average"](g, g.start())
    length = g.op("ReduceL2", x, axes=[1], keepdims=1)
    return g.linear(g.op("Div", x, g.op("Clip", length, g.constant(1e-6))), CLASSES)


@form("heads-batch-norm")
def _(g: Form) -> str:
    x = HEADS["average"](g, g.start())
    rows = [g.random.uniform(0.5, 2, 16), g.random.normal(size=16), g.random.normal(size=16), np.ones(16)]
    return g.linear(g.op("BatchNormalization", x, *map(g.constant, rows)), CLASSES)


def _squeeze(g: Form, x: str, gate: str, pool: str = "GlobalAveragePool", inner: str = "relu") -> str:
    channels = g.shape(x)[0]
    small = g.block(g.op(pool, x), inner, max(channels // 4, 4), 1)
    return g.op("Mul", x, g.block(small, gate, channels, 1))


def _gated(sign: str, gate: str, pool: str) -> Build:
    return lambda g: g.head(g.block(_squeeze(g, g.block(g.start(), sign), gate, pool)))


for _sign, _gate, _pool in product(
    ("relu", "none"), ("sigmoid", "hard-sigmoid"), ("GlobalAveragePool", "GlobalMaxPool")
):
    FORMS[f"gate-{_sign}-{_gate}-{_pool.lower()}"] = _gated(_sign, _gate, _pool)


@form("gate-residual")
def _(g: Form) -> str:
    x = g.start()
    return g.head(g.act("relu", g.op("Add", _squeeze(g, g.conv(g.block(x)), "sigmoid"), x)))


@form("gate-spatial")
def _(g: Form) -> str:
    x = g.start()
    mean, most = (g.op(kind, x, axes=[1], keepdims=1) for kind in ("ReduceMean", "ReduceMax"))
    mask = g.op("Sigmoid", g.conv(g.op("Concat", mean, most, axis=1), 1, 3))
    return g.head(g.block(g.op("Mul", x, mask)))


@form("gate-both")
def _(g: Form) -> str:
    x = g.start()
    gates = [g.block(g.op(kind, x), "none", 16, 1) for kind in ("GlobalAveragePool", "GlobalMaxPool")]
    return g.head(g.block(g.op("Mul", x, g.op("Sigmoid", g.op("Add", *gates)))))


@form("block-inverted-residual")
def _(g: Form) -> str:
    x = g.start("none")
    for kind in ("relu6", "hard-swish"):
        wide = g.block(g.block(x, kind, 32, 1), kind, 32, group=32)
        x = g.op("Add", x, g.conv(wide, 16, 1))
    return g.head(g.block(x, "relu6", 32, 1))


@form("block-efficient")
def _(g: Form) -> str:
    x = g.start("silu")
    wide = _squeeze(g, g.block(g.block(x, "silu", 32, 1), "silu", 32, group=32), "sigmoid", inner="silu")
    return g.head(g.block(g.op("Add", g.conv(wide, 16, 1), x), "silu", 32, 1))


@form("block-pre-activated")
def _(g: Form) -> str:
    x = g.conv("images", 16, strides=[2, 2])
    for _ in range(2):
        rows = [g.random.uniform(0.5, 2, 16), *g.random.normal(0, 0.1, (2, 16)), np.ones(16)]
        ready = g.act("relu", g.op("BatchNormalization", x, *map(g.constant, rows)))
        x = g.op("Add", g.conv(g.block(ready)), x)
    return g.head(g.act("relu", x))


@form("block-dense")
def _(g: Form) -> str:
    x = g.start()
    for _ in range(3):
        rows = [g.random.uniform(0.5, 2, n := g.shape(x)[0]), *g.random.normal(0, 0.1, (2, n)), np.ones(n)]
        ready = g.act("relu", g.op("BatchNormalization", x, *map(g.constant, rows)))
        x = g.op("Concat", x, g.conv(ready, 8), axis=1)
    return g.head(g.act("relu", x))


@form("block-dense-pooled")
def _(g: Form) -> str:
    x = g.start()
    for _ in range(2):
        x = g.op("Concat", x, g.block(x, "relu", 8), axis=1)
    return g.head(g.block(g.pool("AveragePool", g.block(x, "none", 16, 1))))


@form("block-shuffle")
def _(g: Form) -> str:
    x = g.start()
    for _ in range(2):
        left, right = g.ops("Split", x, g.integers(8, 8), outputs=2, axis=1)
        right = g.block(g.conv(g.block(right, "relu", 8, 1), 8, group=8), "relu", 8, 1)
        x = MOVES["shuffle"](g, g.op("Concat", left, right, axis=1))
    return g.head(x)


@form("block-squeeze-net")
def _(g: Form) -> str:
    x = g.block(g.start(), "relu", 8, 1)
    x = g.op("Concat", g.block(x, "relu", 16, 1), g.block(x, "relu", 16, 3), axis=1)
    return g.op("Flatten", g.op("GlobalAveragePool", g.block(g.pool("MaxPool", x, 3, 2), "relu", CLASSES, 1)))


@form("block-pyramid")
def _(g: Form) -> str:
    x = g.start()
    down = g.block(x, strides=[2, 2])
    up = g.op("Resize", g.conv(down, kernel=1), "", g.constant([1, 1, 2, 2]), mode="nearest")
    return g.head(g.block(g.op("Add", up, g.conv(x, kernel=1))))


@form("block-spatial-pyramid")
def _(g: Form) -> str:
    x = g.start("silu")
    pools = [x]
    for _ in range(3):
        pools.append(g.pool("MaxPool", pools[-1], 3, 1, pads=[1] * 4))
    return g.head(g.block(g.op("Concat", *pools, axis=1), "silu", 16, 1))


@form("block-cross-stage")
def _(g: Form) -> str:
    x = g.start("leaky")
    left, right = g.block(x, "leaky", 8, 1), g.block(x, "leaky", 8, 1)
    right = g.op("Add", right, g.block(right, "leaky", 8))
    return g.head(g.block(g.op("Concat", right, left, axis=1), "leaky"))


@form("block-focus")
def _(g: Form) -> str:
    parts = [
        g.op("Slice", "images", g.integers(a, b), g.integers(SIDE, SIDE), g.integers(2, 3), g.integers(2, 2))
        for a, b in product((0, 1), repeat=2)
    ]
    return g.head(g.block(g.op("Concat", *parts, axis=1)))


@form("block-shared")
def _(g: Form) -> str:
    x = g.start()
    weight = g.constant(g.random.normal(0, 0.12, (16, 16, 3, 3)))
    return g.head(g.act("relu", g.conv(g.act("relu", g.conv(x, shared=weight)), shared=weight)))


@form("block-siamese")
def _(g: Form) -> str:
    x = g.start()
    weight = g.constant(g.random.normal(0, 0.12, (16, 16, 3, 3)))
    flipped = g.op("Transpose", x, perm=[0, 1, 3, 2])
    return g.head(g.op("Add", g.conv(x, shared=weight), g.conv(flipped, shared=weight)))


@form("block-four-sums")
def _(g: Form) -> str:
    x = g.start()
    for _ in range(4):
        x = g.op("Add", x, g.conv(x))
    return g.head(g.act("relu", x))


@form("block-two-readers")
def _(g: Form) -> str:
    x = g.start()
    y = g.conv(x)
    return g.head(g.op("Add", g.act("relu", y), g.act("sigmoid", y)))


@form("block-normalized-inside")
def _(g: Form) -> str:
    x = g.op(
        "Div", g.op("Sub", "images", g.constant(np.full((3, 1, 1), 0.1))), g.constant(np.full((3, 1, 1), 0.5))
    )
    return g.head(g.block(x))


@form("block-layer-norm")
def _(g: Form) -> str:
    x = g.start("none")
    inner = g.op("Transpose", g.conv(x, 16, 7, group=16), perm=[0, 2, 3, 1])
    inner = g.op("LayerNormalization", inner, g.constant(np.ones(16)), g.constant(np.zeros(16)))
    inner = g.linear(g.act("gelu", g.linear(inner, 32, kind="MatMul")), 16, kind="MatMul")
    return g.head(g.op("Add", x, g.op("Transpose", inner, perm=[0, 3, 1, 2])))


@form("block-instance-norm")
def _(g: Form) -> str:
    x = g.op("InstanceNormalization", g.start("none"), g.constant(np.ones(16)), g.constant(np.zeros(16)))
    return g.head(g.block(g.act("relu", x)))


@form("block-local-response")
def _(g: Form) -> str:
    return g.head(g.block(g.pool("MaxPool", g.op("LRN", g.start(), size=5, alpha=0.1))))


@form("block-scaled")
def _(g: Form) -> str:
    x = g.start()
    scale, shift = g.random.uniform(0.5, 2, (16, 1, 1)), g.random.normal(0, 0.5, (16, 1, 1))
    return g.head(g.block(g.op("Add", g.op("Mul", x, g.constant(scale)), g.constant(shift))))


@form("block-power")
def _(g: Form) -> str:
    x = g.op("Pow", g.op("Clip", g.start(), g.constant(1e-6)), g.constant(3.0))
    return g.linear(g.op("Flatten", g.op("Pow", g.op("GlobalAveragePool", x), g.constant(1 / 3))), CLASSES)


@form("block-doubled")
def _(g: Form) -> str:
    x = g.start("none")
    return g.head(g.block(g.op("Concat", g.op("Relu", x), g.op("Relu", g.op("Neg", x)), axis=1)))


@form("block-softmax-pool")
def _(g: Form) -> str:
    x = g.op("Reshape", g.start(), g.integers(0, 16, 64))
    weights = g.op("Softmax", x, axis=-1)
    return g.linear(g.op("ReduceSum", g.op("Mul", x, weights), g.integers(2), keepdims=0), CLASSES)


def _tokens(g: Form, width: int = 16) -> str:
    """Patches as tokens, (N, 16, width)."""
    x = g.conv("images", width, 4, strides=[4, 4], pads=[0] * 4)
    return g.op("Transpose", g.op("Reshape", x, g.integers(0, width, 16)), perm=[0, 2, 1])


def _normalized(g: Form, x: str) -> str:
    width = g.shape(x)[-1]
    return g.op(
        "LayerNormalization", x, g.constant(g.random.uniform(0.5, 2, width)), g.constant(np.zeros(width))
    )


@form("tokens-mixer")
def _(g: Form) -> str:
    x = _tokens(g)
    mixed = g.op("Transpose", _normalized(g, x), perm=[0, 2, 1])
    mixed = g.linear(g.act("gelu", g.linear(mixed, 24, kind="MatMul")), 16, kind="MatMul")
    x = g.op("Add", x, g.op("Transpose", mixed, perm=[0, 2, 1]))
    inner = g.linear(g.act("gelu", g.linear(_normalized(g, x), 32, kind="MatMul")), 16, kind="MatMul")
    return g.linear(g.op("ReduceMean", g.op("Add", x, inner), axes=[1], keepdims=0), CLASSES)


@form("tokens-attention")
def _(g: Form) -> str:
    x = _tokens(g)
    ready = _normalized(g, x)
    q, k, v = (g.linear(ready, 16, kind="MatMul") for _ in range(3))
    scores = g.op("Div", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])), g.constant(4.0))
    mixed = g.linear(g.op("MatMul", g.op("Softmax", scores, axis=-1), v), 16, kind="MatMul")
    x = g.op("Add", x, mixed)
    inner = g.linear(g.act("gelu", g.linear(_normalized(g, x), 32, kind="MatMul")), 16, kind="MatMul")
    return g.linear(g.op("ReduceMean", g.op("Add", x, inner), axes=[1], keepdims=0), CLASSES)


@form("tokens-attention-joint")
def _(g: Form) -> str:
    qkv = g.linear(_tokens(g), 48, kind="MatMul")
    q, k, v = g.ops("Split", qkv, g.integers(16, 16, 16), outputs=3, axis=2)
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))
    mixed = g.op("MatMul", g.op("Softmax", g.op("Mul", scores, g.constant(0.25)), axis=-1), v)
    return g.linear(
        g.op("Gather", g.linear(mixed, 16, kind="MatMul"), g.constant(0, np.int64), axis=1), CLASSES
    )


@form("tokens-relu")
def _(g: Form) -> str:
    x = g.act("relu", g.linear(_tokens(g), 24, kind="MatMul"))
    return g.linear(g.op("ReduceMax", x, axes=[1], keepdims=0), CLASSES)
