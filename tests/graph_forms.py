"""Small classifiers of many forms: name -> ONNX graph. What runs one of them should compute what it says."""

from __future__ import annotations

from itertools import product
from typing import Any

import graph_blocks  # noqa: F401 (its forms are taken up)
import numpy as np
import onnx
from graph_form import ACTIVATIONS, CLASSES, FORMS, HEADS, MOVES, POOLS, SIDE, Build, Form, some

__all__ = ["CLASSES", "FORMS", "HEADS", "MOVES", "POOLS", "SIDE", "Form", "build"]


def build(name: str, seed: int = 0) -> onnx.ModelProto:
    """The classifier of that name."""
    made = Form(seed)
    return made.model(FORMS[name](made))


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


def _head(pool: str, sign: str) -> Build:
    return lambda g: g.linear(HEADS[pool](g, g.block(g.start(), sign)), CLASSES)


for _pool, _sign in product(HEADS, SIGNS[:2]):
    FORMS[f"head-{_pool}-{_sign}"] = _head(_pool, _sign)


def _pooled(pool: str, sign: str) -> Build:
    return lambda g: g.head(g.block(POOLS[pool](g, g.start(sign))))


def _pooled_concat(pool: str, sign: str) -> Build:
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
    FORMS[f"pool-concat-{_pool}-{_sign}"] = _pooled_concat(_pool, _sign)
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


EXTREMES: dict[str, tuple[dict[str, Any], str]] = {
    "zero-filters": ({"weight": some(0.0)}, "relu"),
    "zero-filters-large-bias": ({"weight": some(0.0), "bias": lambda b: b * 100}, "relu"),
    "zero-filters-huge-bias": ({"weight": some(0.0), "bias": lambda b: b * 1e4}, "relu"),
    "tiny-filters-huge-bias": ({"weight": some(1e-9), "bias": lambda b: b * 1e4}, "relu"),
    "tiny-layer-bias": ({"weight": lambda w: w * 1e-6, "bias": lambda b: b * 30}, "none"),
    "all-zero": ({"weight": lambda w: w * 0}, "relu"),
    "tiny-filters": ({"weight": some(1e-9)}, "relu"),
    "tiny-layer": ({"weight": lambda w: w * 1e-6}, "relu"),
    "small-layer": ({"weight": lambda w: w * 1e-3}, "relu"),
    "large-layer": ({"weight": lambda w: w * 1e3, "bias": lambda b: b * 1e3}, "relu"),
    "large-bias": ({"bias": lambda b: b * 1e3}, "relu"),
    "large-negative-bias": ({"bias": lambda b: -np.abs(b) * 1e3}, "relu"),
    "large-bias-signed": ({"bias": lambda b: b * 1e3}, "none"),
    "one-large-bias": ({"bias": some(1000.0, 16)}, "none"),
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
