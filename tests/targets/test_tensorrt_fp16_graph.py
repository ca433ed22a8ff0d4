"""The FP16-typed graph: the same integers, the same network, FP32 outside."""

import numpy as np
import onnx
import pytest
from float_graphs import Graph
from onnx import numpy_helper
from qdq_graphs import FLOAT, TENSORRT, findings_of, images, residual_net, save

from edgeship.targets import onnxruntime
from edgeship.targets.tensorrt import fp16_graph, rtx_check
from edgeship.toolkit.core.errors import ModelError


def constants(model):
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


@pytest.mark.parametrize("placement", [TENSORRT, FLOAT], ids=["Q/DQ", "float"])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_the_network_stays_the_same_and_its_ends_stay_fp32(placement, batch, tmp_path):
    path = save(residual_net(placement, batch=batch), tmp_path / "net.onnx")
    fp16_graph.to_half(path, tmp_path / "half.onnx")
    model = onnx.load(tmp_path / "half.onnx")
    assert not {str(value.dtype) for value in constants(model).values()} & {"float32"}
    with onnxruntime.simulate(path) as one, onnxruntime.simulate(tmp_path / "half.onnx") as two:
        wanted, got = one.infer(images(2)), two.infer(images(2))
    assert got.dtype == np.float32
    assert np.abs(wanted - got).max() < 0.02 * np.abs(wanted).max()
    assert findings_of(model, "10.13") == []
    if placement is TENSORRT:
        assert "scale-type" in {item.rule for item in findings_of(model, "8.6")}


def test_a_resize_keeps_its_scales_in_fp32_even_if_others_read_them_too(tmp_path):
    g = Graph(8)
    by = g.constant("by", [1, 1, 2, 2])
    up = g.node("Resize", [g.conv("images", 4), "", by], (4, 16, 16), mode="nearest")
    factor = g.node("Reshape", [by, g.constant("shape", [1, 4, 1, 1], np.int64)], (4, 1, 1))
    path = save(g.head(g.node("Mul", [up, factor], (4, 16, 16))).model(), tmp_path / "net.onnx")
    fp16_graph.to_half(path, tmp_path / "half.onnx")
    floats = [value for value in constants(onnx.load(tmp_path / "half.onnx")).values() if value.dtype == "f4"]
    assert [value.tolist() for value in floats] == [[1, 1, 2, 2]]
    with onnxruntime.simulate(path) as one, onnxruntime.simulate(tmp_path / "half.onnx") as two:
        wanted, got = one.infer(images(2, 8)), two.infer(images(2, 8))
    assert np.abs(wanted - got).max() < 0.02 * np.abs(wanted).max()


def test_an_operator_of_fp32_alone_has_no_such_form(tmp_path):
    g = Graph(8)
    path = save(g.head(g.unary("Celu", g.conv("images", 4))).model(), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="no FP16-typed form"):
        fp16_graph.to_half(path, tmp_path / "half.onnx")


def test_quantized_weights_keep_their_integers(tmp_path):
    model = residual_net(TENSORRT)
    before = constants(model)
    fp16_graph.to_half(save(model, tmp_path / "net.onnx"), tmp_path / "half.onnx")
    after = constants(onnx.load(tmp_path / "half.onnx"))
    for name in ("conv1.weight", "layer2.conv2.weight", "fc.weight"):
        shape = (-1, *[1] * (before[name].ndim - 1))
        one = np.round(before[name] / before[f"{name}_scale"].reshape(shape))
        two = np.round(after[name] / after[f"{name}_scale"].reshape(shape))  # in FP16, as TensorRT does
        np.testing.assert_array_equal(one, two)


def test_a_value_that_fp16_cannot_hold_is_named(tmp_path):
    def blow_up(model):
        bias = next(item for item in model.graph.initializer if item.name == "conv1.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(32, 1e5, np.float32), "conv1.bias"))

    path = save(residual_net(TENSORRT), tmp_path / "net.onnx", blow_up)
    with pytest.raises(ModelError, match=r"conv1\.bias"):
        fp16_graph.to_half(path, tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()


def test_a_tiny_scale_is_not_rounded_to_zero():
    got = fp16_graph._half(np.float32([1e-9, 0.0, 1.0]), "scales")
    assert got[0] > 0
    assert got[1] == 0


@pytest.mark.parametrize("capability", ["SM75", "SM80", "SM86", "SM89", "SM120", "SM121"])
def test_it_is_accepted_for_every_capability(capability, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    fp16_graph.to_half(path, path)
    verdict = rtx_check.check(path, (capability,))
    assert verdict.accepted, verdict.errors
    wanted = {"fp16"} if capability == "SM75" else {"int8"}  # it has no INT8 convolutions for Turing
    assert {item.precision for item in verdict.layers if item.kind == "Convolution"} == wanted


def test_operators_that_opset_18_changed_are_written_as_it_has_them(tmp_path):
    g = Graph(8)
    x = g.unary("Relu", g.conv("images", 4))
    g.nodes.append(onnx.helper.make_node("Split", [x], ["one", "two"], name="split", axis=1))
    g.shapes |= dict.fromkeys(["one", "two"], (2, 8, 8))
    x = g.node("ReduceMean", [g.add("one", "two")], (2, 1, 1), axes=[2, 3], keepdims=1)
    x = g.node("Flatten", [x], (2,))
    weight = g.constant("fc.weight", g.random.normal(size=(2, 5)))
    g.nodes.append(onnx.helper.make_node("MatMul", [x, weight], ["logits"], name="fc"))
    g.shapes["logits"] = (5,)
    path, pixels = g.save(tmp_path / "net.onnx"), images(2)[:, :, :8, :8]
    fp16_graph.to_half(path, tmp_path / "half.onnx")
    with onnxruntime.simulate(path) as one, onnxruntime.simulate(tmp_path / "half.onnx") as two:
        wanted, got = one.infer(pixels), two.infer(pixels)
    assert np.abs(wanted - got).max() < 0.02 * np.abs(wanted).max()
