"""Small classifiers with the blocks of well-known networks; `graph_forms` has their names."""

from __future__ import annotations

from itertools import product

import numpy as np
from graph_form import CLASSES, FORMS, HEADS, MOVES, SIDE, Build, Form, form, some


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
    huge = g.block(g.start("sigmoid"), weight=some(0.0), bias=lambda b: np.abs(b) * 100)
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


@form("gate-1d")
def _(g: Form) -> str:
    """ECA: a convolution along the channels."""
    x = g.block(g.start())
    row = g.op("Reshape", g.op("GlobalAveragePool", x), g.integers(0, 1, -1))
    row = g.op("Conv", row, g.constant(g.random.normal(0, 0.5, (1, 1, 3))), pads=[1, 1], strides=[1])
    gate = g.op("Reshape", g.op("Sigmoid", row), g.integers(0, -1, 1, 1))
    return g.head(g.block(g.op("Mul", x, gate)))


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
