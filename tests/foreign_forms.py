"""One network as exporters, converters and optimizers write it, and the form to compare with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from float_graphs import Graph, residual
from onnx import TensorProto, helper, numpy_helper

SIDE = 16


def _value(model, name):
    return next(item for item in model.graph.initializer if item.name == name)


def _rename(model, old, new):
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for item in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        item.name = new if item.name == old else item.name


def _add_constant(model, name, array, dtype=np.float32):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, dtype), name))
    return name


def _insert_before(model, node, *nodes):
    place = list(model.graph.node).index(node)
    for offset, new in enumerate(nodes):
        model.graph.node.insert(place + offset, new)


def _last(model, kind):
    return [node for node in model.graph.node if node.op_type == kind][-1]


def _first(model, kind):
    return next(node for node in model.graph.node if node.op_type == kind)


# names that are taken


def names_taken(suffixes):
    """Tensors of the network have the names that Q/DQ pairs, forks and biases would get."""

    def make():
        model = residual().model()
        tensors = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
        for suffix, node in zip(suffixes, [n for n in model.graph.node if n.op_type == "Conv"], strict=False):
            _rename(model, node.output[0], f"{tensors[0]}/{suffix}")
        return model

    return make


def initializers_taken():
    """Biases and weights have the names of scales."""
    model = residual().model()
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    tensor = _first(model, "Relu").output[0]
    for suffix, node in zip(("scale", "zero_point", "quantized"), convs, strict=False):
        _rename(model, node.input[2], f"{tensor}/{suffix}")
    _rename(model, convs[3].input[2], f"{convs[0].input[1]}/scale")
    return model


def nodes_taken():
    """Nodes have the names of Q/DQ nodes."""
    model = residual().model()
    tensor = _first(model, "Relu").output[0]
    for suffix, node in zip(("quantize", "dequantize", "identity"), model.graph.node, strict=False):
        node.name = f"{tensor}/{suffix}"
    return model


# bounds of a Clip


def clipped(low, high):
    """ReLU6 by Clip, with bounds of these shapes."""

    def make():
        model = residual().model()
        for number, node in enumerate([n for n in model.graph.node if n.op_type == "Relu"]):
            node.op_type = "Clip"
            node.input.append(_add_constant(model, f"low{number}", np.full(low, 0.0)))
            node.input.append(_add_constant(model, f"high{number}", np.full(high, 3.0)))
        return model

    return make


# dimensions


def dimensions(batch, side=SIDE, **outputs):
    """Sizes of the input, and of what is declared for the output."""

    def make():
        model = residual().model()
        dims = model.graph.input[0].type.tensor_type.shape.dim
        for dim, size in zip(dims, (batch, 3, side, side), strict=True):
            dim.Clear()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size
        declare(model.graph.output[0], outputs.get("output"))
        return model

    return make


def declare(value, shape):
    if shape is None:
        return
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shape))


def declared(output=None, inner=None, kind=TensorProto.FLOAT):
    """Shapes and types that contradict what the nodes compute."""

    def make():
        model = residual().model()
        if output is not None:
            model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", kind, output))
        if inner is not None:
            for node in model.graph.node[:-1]:
                model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], kind, inner))
        return model

    return make


# weights that are computed


def computed_weights(how):
    """Weights of convolutions behind nodes that depend on no image."""

    def make():
        model = residual().model()
        for number, node in enumerate([n for n in model.graph.node if n.op_type == "Conv"]):
            weight, names = node.input[1], iter(f"c{number}/{k}" for k in range(20))
            array = numpy_helper.to_array(_value(model, weight))
            made = _COMPUTED[how](model, array, weight, names, number)
            _insert_before(model, node, *made)
            node.input[1] = made[-1].output[0]
        return model

    return make


def _node(kind, inputs, names, **attributes):
    output = next(names)
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def _replace(model, name, array):
    item = _value(model, name)
    item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))


def _by_identity(model, array, weight, names, number):
    return [_node("Identity", [weight], names)]


def _by_cast(model, array, weight, names, number):
    first = _node("Cast", [weight], names, to=TensorProto.DOUBLE)
    return [first, _node("Cast", [first.output[0]], names, to=TensorProto.FLOAT)]


def _by_reshape(model, array, weight, names, number):
    _replace(model, weight, array.reshape(-1))
    shape = _add_constant(model, next(names), array.shape, np.int64)
    return [_node("Reshape", [weight, shape], names)]


def _by_transpose(model, array, weight, names, number):
    _replace(model, weight, array.transpose(2, 3, 1, 0))
    return [_node("Transpose", [weight], names, perm=[3, 2, 0, 1])]


def _by_mul(model, array, weight, names, number):
    _replace(model, weight, array / 4)
    return [_node("Mul", [weight, _add_constant(model, next(names), 4.0)], names)]


def _by_reduce_mean(model, array, weight, names, number):
    """(w - mean) / std, as of timm's and BiT's networks; the ordinary form has these weights."""
    axes = {"axes": [1, 2, 3], "keepdims": 1}
    mean = _node("ReduceMean", [weight], names, **axes)
    centred = _node("Sub", [weight, mean.output[0]], names)
    square = _node("Mul", [centred.output[0]] * 2, names)
    variance = _node("ReduceMean", [square.output[0]], names, **axes)
    safe = _node("Add", [variance.output[0], _add_constant(model, next(names), 1e-5)], names)
    spread = _node("Sqrt", [safe.output[0]], names)
    return [
        mean,
        centred,
        square,
        variance,
        safe,
        spread,
        _node("Div", [centred.output[0], spread.output[0]], names),
    ]


def _by_batch_norm(model, array, weight, names, number):
    """F.batch_norm(weight.reshape(1, out, -1), training=True), as of timm's StdConv2d."""
    outputs = array.shape[0]
    shape = _add_constant(model, next(names), [1, outputs, -1], np.int64)
    flat = _node("Reshape", [weight, shape], names)
    ones, zeros = (_add_constant(model, next(names), np.full(outputs, v)) for v in (1.0, 0.0))
    results = [next(names) for _ in range(3)]
    normal = helper.make_node(
        "BatchNormalization",
        [flat.output[0], ones, zeros, zeros, ones],
        results,
        training_mode=1,
        epsilon=1e-5,
    )
    back = _add_constant(model, next(names), array.shape, np.int64)
    return [flat, normal, _node("Reshape", [results[0], back], names)]


_COMPUTED = {
    "Identity": _by_identity,
    "Cast": _by_cast,
    "Reshape": _by_reshape,
    "Transpose": _by_transpose,
    "Mul": _by_mul,
    "ReduceMean": _by_reduce_mean,
    "BatchNormalization": _by_batch_norm,
}


def standardized():
    """The ordinary form of weights that are standardized."""
    model = residual().model()
    for node in [n for n in model.graph.node if n.op_type == "Conv"]:
        array = numpy_helper.to_array(_value(model, node.input[1])).astype(np.float64)
        centred = array - array.mean((1, 2, 3), keepdims=True)
        _replace(model, node.input[1], centred / np.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + 1e-5))
    return model


# ends


def ends_with(kind, axis=1, opset=17):
    """Softmax or LogSoftmax as the last node."""

    def make():
        model = residual().model(opset=opset)
        _last(model, "Gemm").output[0] = "scores"
        model.graph.node.append(helper.make_node(kind, ["scores"], ["logits"], axis=axis))
        return model

    return make


def convolutional_head(layout, softmax=False):
    """Logits (N, C, 1, 1), (N, 1, 1, C) or (N, C, 1) of a 1x1 convolution."""

    def make():
        model = residual().model()
        nodes = model.graph.node
        gemm, flatten = _last(model, "Gemm"), _last(model, "Flatten")
        pooled, weight = flatten.input[0], numpy_helper.to_array(_value(model, gemm.input[1]))
        _replace(model, gemm.input[1], weight[:, :, None, None])
        nodes.remove(gemm)
        nodes.remove(flatten)
        results = ["scores", "logits"] if layout != (0, 1, 2, 3) or softmax else ["logits"]
        nodes.append(helper.make_node("Conv", [pooled, gemm.input[1], "fc.bias"], [results[0]], name="fc"))
        shape = ["batch", 5, 1, 1]
        if softmax:
            nodes.append(helper.make_node("Softmax", ["scores"], ["logits"], axis=1))
        elif layout == (0, 2, 3, 1):
            nodes.append(helper.make_node("Transpose", ["scores"], ["logits"], perm=layout))
            shape = ["batch", 1, 1, 5]
        elif layout == (0, 1, 2):
            axes = _add_constant(model, "last", [3], np.int64)
            nodes.append(helper.make_node("Squeeze", ["scores", axes], ["logits"]))
            shape = ["batch", 5, 1]
        declare(model.graph.output[0], shape)
        return model

    return make


def softmax_then_flatten():
    """Conv, Softmax, Flatten: probabilities (N, C)."""
    model = convolutional_head((0, 1, 2, 3), softmax=True)()
    model.graph.node[-1].output[0] = "probabilities"
    model.graph.node.append(helper.make_node("Flatten", ["probabilities"], ["logits"], axis=1))
    declare(model.graph.output[0], ["batch", 5])
    return model


# types


def in_type(kind, *, ends=False, casts=False):
    """Weights, and everything between, in another float type; `ends`: the input and the output too."""
    numpy_type = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}[kind]

    def make():
        model = residual().model()
        for item in list(model.graph.initializer):
            array = numpy_helper.to_array(item).astype(np.float16).astype(numpy_type)
            item.CopyFrom(numpy_helper.from_array(array, item.name))
        nodes = model.graph.node
        if casts:  # compressed weights only: each is cast where it is read
            for item in list(model.graph.initializer):
                _rename(model, item.name, f"{item.name}_small")
                for node in nodes:
                    node.input[:] = [
                        item.name.removesuffix("_small") if n == item.name else n for n in node.input
                    ]
                output = item.name.removesuffix("_small")
                nodes.insert(0, helper.make_node("Cast", [item.name], [output], to=TensorProto.FLOAT))
        elif ends:
            model.graph.input[0].type.tensor_type.elem_type = kind
            model.graph.output[0].type.tensor_type.elem_type = kind
        else:
            nodes[0].input[0] = "small_images"
            nodes[-1].output[0] = "small_logits"
            nodes.insert(0, helper.make_node("Cast", ["images"], ["small_images"], to=kind))
            nodes.append(helper.make_node("Cast", ["small_logits"], ["logits"], to=TensorProto.FLOAT))
        return model

    return make


def of_halves():
    """The ordinary form of weights that went through float16."""
    model = residual().model()
    for item in model.graph.initializer:
        array = numpy_helper.to_array(item).astype(np.float16).astype(np.float32)
        item.CopyFrom(numpy_helper.from_array(array, item.name))
    return model


# opsets


def in_opset(opset):
    """Pooling by ReduceMean, with its axes as an input from opset 18 on."""

    def make():
        model = residual().model()
        pool = _first(model, "GlobalAveragePool")
        inputs, axes = [pool.input[0]], {}
        if opset < 18:
            axes = {"axes": [2, 3]}
        else:
            inputs.append(_add_constant(model, "axes", [2, 3], np.int64))
        pool.CopyFrom(helper.make_node("ReduceMean", inputs, pool.output, name=pool.name, keepdims=1, **axes))
        model.opset_import[0].version = opset
        model.ir_version = 8 if opset < 18 else 10
        onnx.checker.check_model(model)
        return model

    return make


def newer_operators(kinds):
    """Gelu, Swish or Mish in place of ReLU; GroupNormalization behind the first."""

    def make(*, opset=24):
        model = residual().model()
        relus = [node for node in model.graph.node if node.op_type == "Relu"]
        for kind, node in zip(kinds, relus, strict=False):
            if kind != "GroupNormalization":
                node.op_type = kind
                continue
            channels = _channels(model, node)
            scale = _add_constant(model, f"{node.name}.scale", np.linspace(0.5, 1.5, channels))
            bias = _add_constant(model, f"{node.name}.shift", np.linspace(-0.5, 0.5, channels))
            normal = helper.make_node(kind, [node.input[0], scale, bias], [f"{node.name}/gn"], num_groups=2)
            _insert_before(model, node, normal)
            node.input[0] = normal.output[0]
        model.opset_import[0].version, model.ir_version = opset, 12
        onnx.checker.check_model(model)
        return model

    return make


def _channels(model, node):
    before = next(each for each in model.graph.node if each.output[0] == node.input[0])
    while before.op_type != "Conv":
        before = next(each for each in model.graph.node if each.output[0] == before.input[0])
    return _value(model, before.input[1]).dims[0]


def with_split(opset=18):
    """A Split into a number of parts, and a Pad of some axes: both of opset 18."""
    g = Graph(SIDE)
    x = g.unary("Relu", g.conv("images", 8))
    parts = ["part0", "part1"]
    g.nodes.append(helper.make_node("Split", [x], parts, name="split", axis=1, num_outputs=2))
    g.shapes |= dict.fromkeys(parts, (4, SIDE, SIDE))
    pads, axes = g.constant("pads", [1, 1, 1, 1], np.int64), g.constant("axes", [2, 3], np.int64)
    padded = g.node("Pad", ["part1", pads, "", axes], (4, SIDE + 2, SIDE + 2))
    right = g.pool("AveragePool", padded, 3, 1)
    g.shapes[right] = (4, SIDE, SIDE)
    x = g.unary("Relu", g.conv(g.concat("part0", right), 8))
    model = g.head(x).model(opset=max(opset, 18))
    model.ir_version = 10
    return model


# several outputs


def with_auxiliary(first=False):
    """An auxiliary head, as of Inception, and features."""
    model = residual().model()
    weight = np.random.default_rng(3).normal(size=(8, 5))
    pooled = helper.make_node("GlobalAveragePool", [_first(model, "Relu").output[0]], ["aux/pool"])
    flat = helper.make_node("Flatten", ["aux/pool"], ["aux/flat"])
    head = helper.make_node("MatMul", ["aux/flat", _add_constant(model, "aux.weight", weight)], ["aux"])
    model.graph.node.extend([pooled, flat, head])
    outputs = [helper.make_tensor_value_info("aux", TensorProto.FLOAT, ["batch", 5])]
    outputs.append(helper.make_tensor_value_info("aux/pool", TensorProto.FLOAT, ["batch", 8, 1, 1]))
    for value in outputs:
        if first:
            model.graph.output.insert(0, value)
        else:
            model.graph.output.append(value)
    return model


def unchanged():
    """The ordinary form."""
    return residual().model()


COMPUTED = ("Identity", "Cast", "Reshape", "Transpose", "Mul")
FORMS: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[], onnx.ModelProto]]] = {
    "names: tensors": (names_taken(["scale", "quantized", "zero_point", "dequantized"]), unchanged),
    "names: forks": (names_taken(["exact", "identity", "quantize"]), unchanged),
    "names: initializers": (initializers_taken, unchanged),
    "names: nodes": (nodes_taken, unchanged),
    "Clip: [1] and [1]": (clipped((1,), (1,)), clipped((), ())),
    "Clip: scalar and [1]": (clipped((), (1,)), clipped((), ())),
    "Clip: [1, 1]": (clipped((1, 1), (1, 1)), clipped((), ())),
    "batch -1": (dimensions(-1, output=[-1, 5]), unchanged),
    "batch 0": (dimensions(0, output=[0, 5]), unchanged),
    "batch N, output unknown": (dimensions("N", output=["M", "K"]), unchanged),
    "batch without a name": (dimensions(None, output=[None, 5]), unchanged),
    "output of another batch": (dimensions("N", output=[1, 5]), unchanged),
    "output of other classes": (declared(output=["batch", 1000]), unchanged),
    "output of another rank": (declared(output=["batch", 5, 7, 7]), unchanged),
    "output of another type": (declared(output=["batch", 5], kind=TensorProto.INT64), unchanged),
    "inner shapes wrong": (declared(inner=["batch", 3, 9]), unchanged),
    "inner types wrong": (declared(inner=["batch", 3, 9, 9], kind=TensorProto.INT64), unchanged),
    **{f"weights: {how}": (computed_weights(how), unchanged) for how in COMPUTED},
    "weights: ReduceMean": (computed_weights("ReduceMean"), standardized),
    "weights: BatchNormalization": (computed_weights("BatchNormalization"), standardized),
    "Softmax": (ends_with("Softmax"), unchanged),
    "Softmax, axis -1": (ends_with("Softmax", -1), unchanged),
    "Softmax, opset 12": (ends_with("Softmax", opset=12), unchanged),
    "LogSoftmax": (ends_with("LogSoftmax"), unchanged),
    "LogSoftmax, opset 11": (ends_with("LogSoftmax", -1, opset=11), unchanged),
    "logits (N, C, 1, 1)": (convolutional_head((0, 1, 2, 3)), unchanged),
    "logits (N, 1, 1, C)": (convolutional_head((0, 2, 3, 1)), unchanged),
    "logits (N, C, 1)": (convolutional_head((0, 1, 2)), unchanged),
    "Softmax of (N, C, 1, 1)": (convolutional_head((0, 1, 2, 3), softmax=True), unchanged),
    "Softmax, Flatten": (softmax_then_flatten, unchanged),
    "FP16 inside": (in_type(TensorProto.FLOAT16), of_halves),
    "FP16 with its ends": (in_type(TensorProto.FLOAT16, ends=True), of_halves),
    "FP16 weights": (in_type(TensorProto.FLOAT16, casts=True), of_halves),
    "FP64": (in_type(TensorProto.DOUBLE, ends=True), of_halves),
    "FP64 inside": (in_type(TensorProto.DOUBLE), of_halves),
    **{f"opset {opset}": (in_opset(opset), in_opset(17)) for opset in (18, 19, 20, 21, 22, 23, 24, 25)},
}
