"""Changes that make `qdq_graphs.residual_net` wrong for TensorRT, one rule each."""

import numpy as np
from onnx import helper, numpy_helper


def node(model, name):
    return next(item for item in model.graph.node if item.name == name)


def initializer(model, name):
    return next(item for item in model.graph.initializer if item.name == name)


def set_value(model, name, value):
    initializer(model, name).CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def asymmetric_weights(model):
    set_value(model, "conv1.weight_zero_point", np.full(32, 1, np.int8))


def int32_bias(model):
    set_value(model, "conv1.bias", np.full(32, 40, np.int32))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.0025), "bias_scale"))
    pair = helper.make_node("DequantizeLinear", ["conv1.bias", "bias_scale"], ["bias_float"], name="bias_dq")
    model.graph.node.insert(0, pair)
    node(model, "conv1").input[2] = "bias_float"


def wrong_axis(model):
    for name in ("layer1.conv1.weight_quantized", "layer1.conv1.weight_dequantized"):
        node(model, name).attribute[0].i = 1


def no_axis(model):
    for name in ("fc.weight_quantized", "fc.weight_dequantized"):
        del node(model, name).attribute[:]


def too_few_scales(model):
    set_value(model, "layer2.conv1.weight_scale", np.full(32, 0.01, np.float32))
    set_value(model, "layer2.conv1.weight_zero_point", np.zeros(32, np.int8))


def per_channel_activation(model):
    set_value(model, "images_scale", np.full(3, 0.03, np.float32))
    set_value(model, "images_zero_point", np.zeros(3, np.int8))


def no_zero_points(model):
    for item in model.graph.node:
        if item.op_type in ("QuantizeLinear", "DequantizeLinear"):
            del item.input[2]


def one_zero_point_for_all(model):
    set_value(model, "conv1.weight_zero_point", np.int8(0))


def scale_zero(model):
    set_value(model, "maxpool_scale", np.float32(0))


def scale_negative(model):
    scale = numpy_helper.to_array(initializer(model, "conv1.weight_scale")).copy()
    scale[3] *= -1
    set_value(model, "conv1.weight_scale", scale)


def scale_nan(model):
    set_value(model, "maxpool_scale", np.float32(np.nan))


def half_scale(model):
    set_value(model, "pool_scale", np.float16(0.03))


def half_bias(model):
    set_value(model, "conv1.bias", np.full(32, 0.1, np.float16))


def opset_new(model):
    model.opset_import[0].version = 25


def opset_old(model):
    model.opset_import[0].version = 11


def integer_conv(model):
    for old, new in (("conv1", "ConvInteger"),):
        node(model, old).op_type = new
        del node(model, old).input[2]


def integer_weights(model):
    for tensor in ("conv1.weight_quantized",):
        weight = numpy_helper.to_array(initializer(model, "conv1.weight"))
        scale = numpy_helper.to_array(initializer(model, "conv1.weight_scale")).reshape(-1, 1, 1, 1)
        values = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
        model.graph.initializer.append(numpy_helper.from_array(values, "conv1.integers"))
        model.graph.node.remove(node(model, tensor))
        node(model, "conv1.weight_dequantized").input[0] = "conv1.integers"


def two_scales(model):
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.06), "other_scale"))
    made = [
        helper.make_node(
            "QuantizeLinear", ["maxpool", "other_scale", "maxpool_zero_point"], ["q2"], name="q2"
        ),
        helper.make_node(
            "DequantizeLinear", ["q2", "other_scale", "maxpool_zero_point"], ["dq2"], name="dq2"
        ),
    ]
    place = list(model.graph.node).index(node(model, "layer1.add"))
    for item in reversed(made):
        model.graph.node.insert(place, item)
    add = node(model, "layer1.add")
    add.input[list(add.input).index("maxpool_dequantized")] = "dq2"


def float_weights(model):
    node(model, "layer1.conv1").input[1] = "layer1.conv1.weight"


def float_pool(model):
    node(model, "pool").input[0] = "layer2.relu2"


def before_relu(model):
    """Q/DQ of layer1.relu1 move to the other side of the ReLU."""
    node(model, "layer1.relu1_quantized").input[0] = "layer1.conv1"
    node(model, "layer1.relu1").input[0] = "layer1.relu1_dequantized"
    node(model, "layer1.conv2").input[0] = "layer1.relu1"
    nodes = list(model.graph.node)
    relu = node(model, "layer1.relu1")
    nodes.remove(relu)
    nodes.insert(nodes.index(node(model, "layer1.relu1_dequantized")) + 1, relu)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def wrong_side(model):
    """Q/DQ between the last convolution and the Add, none on the shortcut."""
    parameters = ["maxpool_scale", "maxpool_zero_point"]
    q = helper.make_node("QuantizeLinear", ["layer1.conv2", *parameters], ["main_q"], name="main_q")
    dq = helper.make_node("DequantizeLinear", ["main_q", *parameters], ["main_dq"], name="main_dq")
    add = node(model, "layer1.add")
    place = list(model.graph.node).index(add)
    model.graph.node.insert(place, dq)
    model.graph.node.insert(place, q)
    node(model, "layer1.add").input[:] = ["main_dq", "maxpool"]


def other_projection_side(model):
    """Of two convolutions that meet, the deeper one has the pair: right too."""
    for name, scale in (("layer2.conv2", "layer2.downsample_scale"),):
        zero = "layer2.downsample_zero_point"
        q, dq = node(model, "layer2.downsample_quantized"), node(model, "layer2.downsample_dequantized")
        q.input[:] = [name, scale, zero]
        nodes = [item for item in model.graph.node if item not in (q, dq)]
        place = nodes.index(node(model, name)) + 1
        nodes[place:place] = [q, dq]
        add = node(model, "layer2.add")
        add.input[:] = ["layer2.downsample_dequantized", "layer2.downsample"]
        del model.graph.node[:]
        nodes.remove(add)
        nodes.insert(nodes.index(next(n for n in nodes if n.name == "layer2.downsample")) + 1, add)
        order = {n.name: i for i, n in enumerate(nodes)}
        assert order["layer2.add"] > order["layer2.downsample_dequantized"]
        model.graph.node.extend(nodes)


def floats_dequantized(model):
    quantize = node(model, "maxpool_quantized")
    node(model, "maxpool_dequantized").input[0] = quantize.input[0]
    model.graph.node.remove(quantize)


def two_dimensional_scales(model):
    scales = numpy_helper.to_array(initializer(model, "conv1.weight_scale"))
    set_value(model, "conv1.weight_scale", scales.reshape(-1, 1))


def half_before_flatten(model):
    for item in model.graph.node:
        if item.name.startswith("pool_"):
            item.input[1] = "pool_half"
    model.graph.initializer.append(numpy_helper.from_array(np.float16(0.03), "pool_half"))


def integers_read_directly(model):
    made = helper.make_node("MaxPool", ["images_quantized"], ["pooled"], name="max", kernel_shape=[1, 1])
    place = list(model.graph.node).index(node(model, "images_dequantized"))
    model.graph.node.insert(place, made)
