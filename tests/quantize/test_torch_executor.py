"""The float graph in PyTorch computes what ONNX Runtime does."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from float_graphs import Graph, images, residual
from onnx import TensorProto, helper

from edgeship.quantization.torch_executor import TorchExecutor, one_thread, side_by_side
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.threads import default_workers
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.signs import clip_bounds, never_negative


def every_operation():
    g = Graph()
    x = g.conv("images", 8, stride=2)
    x = g.add(g.unary("Sigmoid", g.conv(x, 8, group=4)), g.unary("HardSwish", g.conv(x, 8, bias=False)))
    x = g.concat(g.batch_norm(x), g.unary("LeakyRelu", x, alpha=0.1))
    x = g.node("Mul", [x, g.unary("HardSigmoid", x, alpha=0.3, beta=0.4)], g.shapes[x])
    x = g.node("Sub", [x, g.unary("Relu", x)], g.shapes[x])
    x = g.node("Clip", [x, g.constant("low", -0.5), g.constant("high", 0.7)], g.shapes[x])
    pads = g.constant("pads", [0, 2, 1, 0, 0, 1, 0, 1], np.int64)
    x = g.node("Pad", [x, pads], (19, 5, 5))
    bounds = [
        g.constant(n, v, np.int64) for n, v in (("s", [1, 0]), ("e", [9, 99]), ("a", [1, 2]), ("t", [2, 1]))
    ]
    x = g.node("Slice", [x, *bounds], (4, 5, 5))
    x = g.node("MaxPool", [x], (4, 3, 3), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = g.node("AveragePool", [x], (4, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    x = g.node("AveragePool", [x], (4, 2, 2), kernel_shape=[2, 2], count_include_pad=1)
    x = g.node("AveragePool", [x], (4, 2, 2), kernel_shape=[2, 2], pads=[0, 0, 1, 1])
    x = g.node("AveragePool", [x], (4, 1, 1), kernel_shape=[2, 2], auto_pad="VALID")
    return g.head(x, kind="MatMul")


def every_unusual_operation():
    """Build a network with attention, several activations and channels-last blocks."""
    g = Graph()
    x = g.conv("images", 8)
    x = g.node("PRelu", [x, g.constant("slopes", np.full((8, 1, 1), 0.2))], g.shapes[x])
    x = g.add(g.unary("Elu", x, alpha=0.7), g.unary("Tanh", g.unary("Softplus", x)))
    x = g.node("Pow", [g.unary("Sqrt", g.unary("Sigmoid", x)), g.constant("cube", 3.0)], g.shapes[x])
    x = g.node("Max", [x, g.unary("Erf", x), g.constant("floor", 0.05)], g.shapes[x])
    x = g.node("Min", [x, g.constant("ceiling", 0.9)], g.shapes[x])
    for mode, sides in (("reflect", [0, 0, 2, 1, 0, 0, 0, 3]), ("edge", [0, 0, 1, 0, 0, 0, 2, 1])):
        _, height, width = g.shapes[x]
        shape = (8, height + sides[2] + sides[6], width + sides[3] + sides[7])
        x = g.node("Pad", [x, g.constant(mode, sides, np.int64)], shape, mode=mode)
    x = g.node("Gather", [x, g.constant("some", [3, 0, 6], np.int64)], (3, *g.shapes[x][1:]), axis=1)
    bounds = [("s", [-1, 9]), ("e", [-99, 2]), ("a", [3, 2]), ("t", [-1, -2])]
    x = g.node("Slice", [x, *(g.constant(n, v, np.int64) for n, v in bounds)], (3, 4, g.shapes[x][2]))
    width = g.shapes[x][2]
    x = g.node("Transpose", [x], (4, width, 3), perm=[0, 2, 3, 1])
    scale, shift = g.constant("gain", [0.5, 1.0, 2.0]), g.constant("shift", [0.1, 0.0, -0.1])
    x = g.node("LayerNormalization", [x, scale, shift], g.shapes[x], axis=-1)
    x = g.node("Softmax", [x], g.shapes[x], axis=2)
    x = g.node("Transpose", [x], (3, 4, width), perm=[0, 3, 1, 2])
    x = g.node("Reshape", [x, g.constant("heads", [0, 0, 2, -1], np.int64)], (3, 2, 2 * width))
    ones = g.node("ReduceSum", [x, g.constant("across", [-1], np.int64)], (3, 2, 1))
    x = g.node("GlobalMaxPool", [g.node("Mul", [x, ones], g.shapes[x])], (3, 1, 1))
    x = g.node("Squeeze", [x, g.constant("last", [-1], np.int64)], (3, 1))
    x = g.node("Unsqueeze", [x, g.constant("back", [3], np.int64)], (3, 1, 1))
    return g.head(x)


@pytest.mark.parametrize(
    "build",
    [every_operation, every_unusual_operation, lambda: residual()],
    ids=["operations", "unusual", "residual"],
)
def test_it_agrees_with_onnx_runtime(build, tmp_path):
    g = build()
    pixels = images(3, g.shapes["images"][1])
    path = g.save(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"images": pixels})[0]
    with torch.inference_mode():
        got = TorchExecutor(io.read_classifier(path).model)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(got, expected, atol=5e-5 * np.abs(expected).max())


def test_gradients_of_every_activation_are_those_of_differences(tmp_path):
    network = TorchExecutor(io.read_classifier(residual().save(tmp_path / "m.onnx")).model)
    tensors = {}

    def keep(name, value):
        value = value if value.requires_grad else value.detach().requires_grad_()
        value.retain_grad()
        tensors[name] = value
        return value

    network(torch.from_numpy(images(1, 16)), keep)[0, 0].backward()
    for name in ("conv0", "add6"):
        index = tuple(
            int(i) for i in np.unravel_index(int(tensors[name].grad.abs().argmax()), tensors[name].shape)
        )

        def shifted(by, name=name, index=index):
            def change(at, value):
                if at == name:
                    value = value.clone()
                    value[index] += by
                return value

            return float(network(torch.from_numpy(images(1, 16)), change)[0, 0])

        slope = (shifted(1e-2) - shifted(-1e-2)) / 2e-2
        assert float(tensors[name].grad[index]) == pytest.approx(slope, rel=2e-2)


def test_an_operator_that_nobody_can_run_is_named():
    g = Graph()
    model = ir.from_proto(g.head(g.unary("Identity", g.conv("images", 4))).model())
    node = next(node for node in model.graph if node.op_type == "Identity")
    node.op_type, node.domain = "Unheard", "of.somebody"
    model.graph.opset_imports["of.somebody"] = 1
    with pytest.raises(ModelError, match=r"Unheard \(node 'identity1'\)") as caught:
        TorchExecutor(model)(torch.from_numpy(images(2)))
    assert "effort" in caught.value.hint


def test_what_would_mix_images_is_named():
    g = Graph()
    x = g.conv("images", 4)
    mean = g.node("ReduceMean", [x], (1, 1, 1), axes=[0, 2, 3])
    network = TorchExecutor(ir.from_proto(g.head(g.node("Sub", [x, mean], g.shapes[x])).model()))
    with pytest.raises(ModelError, match=r"reducemean1.*mixes images"):
        network(torch.from_numpy(images(2)))


@pytest.mark.parametrize(("bounds", "never"), [({"min": 0.0, "max": 6.0}, True), ({"max": 0.5}, False)])
def test_a_clip_of_before_opset_11_has_its_bounds_as_attributes(bounds, never):
    pixels = torch.from_numpy(10 * images(2))
    node = ir.node("Clip", [ir.Value(name="x")], attributes=bounds)
    assert (
        clip_bounds(node) == (bounds.get("min"), bounds["max"]) and never_negative(node.outputs[0]) == never
    )
    g = Graph()
    g.head(g.unary("Clip", "images", **bounds))
    onnx_model = helper.make_model(_graph(g), opset_imports=[helper.make_opsetid("", 10)], ir_version=8)
    result = {}
    TorchExecutor(ir.from_proto(onnx_model))(pixels, lambda name, value: result.setdefault(name, value))
    torch.testing.assert_close(result["clip0"], pixels.clamp(bounds.get("min"), bounds["max"]))


def _graph(g):
    shapes = {"images": ["n", *g.shapes["images"]], "logits": ["n", *g.shapes["logits"]]}
    image, logits = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    return helper.make_graph(g.nodes, "net", [image], [logits], g.initializers)


def test_threads_come_back_after_errors_nested_and_abandoned_work():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(side_by_side(lambda item: torch.get_num_threads(), range(4))) == [1] * 4
        assert torch.get_num_threads() == 3
        with one_thread(), one_thread() as workers:
            assert torch.get_num_threads() == 1 and workers == min(3, default_workers())
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            list(side_by_side(lambda item: 1 // item, range(3)))
        assert torch.get_num_threads() == 3
        abandoned = side_by_side(lambda item: item, range(9))
        next(abandoned)
        abandoned.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
