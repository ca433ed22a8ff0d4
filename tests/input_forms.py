"""One small network in the forms that exporters write: layouts, pixels, normalization inside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from float_graphs import Graph
from onnx import TensorProto, helper, numpy_helper

MEAN, STD = np.array([0.485, 0.456, 0.406], "f4"), np.array([0.229, 0.224, 0.225], "f4")
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def ordinary(size: tuple[int, int] = (24, 32), batch: int | str = "batch") -> onnx.ModelProto:
    """Float32 (N, C, H, W), normalized outside: an Add, a Concat, a pool and a Gemm."""
    g = Graph(size, batch=batch, seed=3)
    x = g.unary("Relu", g.conv("images", 8))
    y = g.unary("Relu", g.add(g.conv(g.unary("Relu", g.conv(x, 8)), 8), x))
    z = g.pool("MaxPool", g.concat(y, g.unary("Sigmoid", x)))
    return g.head(g.unary("Relu", g.conv(z, 16, stride=2)), classes=7).model()


def in_front(model: onnx.ModelProto, shape: list, dtype: int, *steps: tuple) -> onnx.ModelProto:
    """Nodes in front of a network: (operator, attributes, constant arrays...); the input keeps its name."""
    graph, value = model.graph, "images"
    nodes = []
    for place, (kind, attributes, *arrays) in enumerate(steps):
        names = [f"front{place}_{index}" for index in range(len(arrays))]
        graph.initializer.extend(map(numpy_helper.from_array, map(np.asarray, arrays), names))
        output = f"front{place}"
        nodes.append(helper.make_node(kind, [value, *names], [output], name=output, **attributes))
        value = output
    for node in graph.node:
        node.input[:] = [value if name == "images" else name for name in node.input]
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *body])
    graph.input[0].CopyFrom(helper.make_tensor_value_info("images", dtype, shape))
    onnx.checker.check_model(model)
    return model


def planes(shape: tuple[int, int]) -> list:
    return ["batch", 3, *shape]


def rows(shape: tuple[int, int]) -> list:
    return ["batch", *shape, 3]


def channel(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, "f4").reshape(1, -1, 1, 1)


def wrapped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Channels last throughout, as TensorFlow computes: every convolution and pool between two Transposes."""
    nodes, flat = [], set()
    for node in list(model.graph.node):
        if node.op_type in {"Conv", "MaxPool"}:
            first, last = f"{node.name}_first", f"{node.name}_last"
            nodes.append(helper.make_node("Transpose", [node.input[0]], [first], first, perm=TO_FIRST))
            (output,) = node.output
            node.input[0], node.output[0] = first, last
            nodes += [node, helper.make_node("Transpose", [last], [output], f"{last}_t", perm=TO_LAST)]
        elif node.op_type == "GlobalAveragePool":
            mean = helper.make_node("ReduceMean", node.input, node.output, node.name, axes=[1, 2], keepdims=0)
            nodes.append(mean)
            flat.add(node.output[0])
        elif node.op_type == "Flatten" and node.input[0] in flat:
            nodes.append(helper.make_node("Identity", node.input, node.output, node.name))
        else:
            if node.op_type == "Concat":
                node.attribute[0].i = 3
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    shape = [dim.dim_value or dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
    turned = [shape[0], *shape[2:], shape[1]]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.FLOAT, turned))
    onnx.checker.check_model(model)
    return model


F, U = TensorProto.FLOAT, TensorProto.UINT8
CAST, TURN = ("Cast", {"to": F}), ("Transpose", {"perm": TO_FIRST})
BATCHNORM = (np.ones(3, "f4"), np.zeros(3, "f4"), 255 * MEAN, (255 * STD) ** 2)
Build = Callable[[tuple[int, int]], onnx.ModelProto]

# name -> how it is built for a size, and the largest pixel it takes (None: it takes normalized images)
FORMS: dict[str, tuple[Build, int | None]] = {
    "nhwc": (lambda s: in_front(ordinary(s), rows(s), F, TURN), None),
    "nhwc-wrapped": (lambda s: wrapped(ordinary(s)), None),
    "nchw-wrapped": (
        lambda s: in_front(wrapped(ordinary(s)), planes(s), F, ("Transpose", {"perm": TO_LAST})),
        None,
    ),
    "sub-div": (
        lambda s: in_front(ordinary(s), planes(s), F, ("Sub", {}, channel(MEAN)), ("Div", {}, channel(STD))),
        1,
    ),
    "sub-mul-255": (
        lambda s: in_front(
            ordinary(s),
            planes(s),
            F,
            ("Sub", {}, channel(255 * MEAN)),
            ("Mul", {}, channel(1 / (255 * STD))),
        ),
        255,
    ),
    "batchnorm-255": (
        lambda s: in_front(ordinary(s), planes(s), F, ("BatchNormalization", {"epsilon": 1e-9}, *BATCHNORM)),
        255,
    ),
    "uint8-nchw": (
        lambda s: in_front(
            ordinary(s),
            planes(s),
            U,
            CAST,
            ("Div", {}, np.float32(255)),
            ("Sub", {}, channel(MEAN)),
            ("Div", {}, channel(STD)),
        ),
        255,
    ),
    "uint8-nhwc": (
        lambda s: in_front(
            ordinary(s), rows(s), U, CAST, ("Sub", {}, 255 * MEAN), ("Div", {}, 255 * STD), TURN
        ),
        255,
    ),
    "uint8-nhwc-wrapped": (
        lambda s: in_front(
            wrapped(ordinary(s)), rows(s), U, CAST, ("Sub", {}, 255 * MEAN), ("Mul", {}, 1 / (255 * STD))
        ),
        255,
    ),
    "uint8-turned-first": (
        lambda s: in_front(
            ordinary(s),
            rows(s),
            U,
            TURN,
            CAST,
            ("Sub", {}, channel(255 * MEAN)),
            ("Div", {}, channel(255 * STD)),
        ),
        255,
    ),
    "dynamic": (
        lambda s: in_front(ordinary(s), ["batch", 3, "height", "width"], F, ("Identity", {})),
        None,
    ),
    "dynamic-nhwc": (
        lambda s: in_front(wrapped(ordinary(s)), ["batch", "height", "width", 3], F, ("Identity", {})),
        None,
    ),
}


def given(name: str, pixels: np.ndarray) -> np.ndarray:
    """Images as a form takes them, of pixels (N, H, W, C) uint8."""
    model = FORMS[name][0](pixels.shape[1:3])
    largest = FORMS[name][1]
    tensor = model.graph.input[0].type.tensor_type
    last = tensor.shape.dim[3].dim_value == 3
    if tensor.elem_type == U:
        values = pixels
    elif largest is None:
        values = (pixels / np.float32(255) - MEAN) / STD
    else:
        values = pixels.astype("f4") if largest == 255 else pixels / np.float32(255)
    return np.ascontiguousarray(values if last else values.transpose(0, 3, 1, 2))
