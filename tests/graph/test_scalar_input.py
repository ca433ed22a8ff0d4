"""One scale for all channels: the classes and integers of the graph with a std of each channel."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeship.targets.runner.imaging import normalize
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph.scalar_input import to_scalar_input
from edgeship.toolkit.models import export, resnet

USUAL = Preprocess(resize=None, crop=16)
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)


def run(path, images):
    session = onnxruntime.InferenceSession(str(path))
    return np.concatenate([session.run(None, {"images": image[None]})[0] for image in images])


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("scalar") / "net.onnx"
    export.export(resnet.ResNet(resnet.architecture("resnet20", width=4)), path, size=16)
    model = onnx.load(path)
    stated = {"preprocess": "{}", "model_info mean_values": "1 2 3", "labels": '["a"]'}
    onnx.helper.set_model_props(model, stated)
    onnx.save(model, path)
    return path


def with_input_pair(plain, path, scale=0.0187):
    """Quantize the images of a graph: the first convolution then reads a DequantizeLinear."""
    model = onnx.load(plain)
    for node in model.graph.node:
        node.input[:] = ["q/out" if name == "images" else name for name in node.input]
    arrays = {"q/scale": np.float32(scale), "q/zero": np.int8(0)}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(a), n) for n, a in arrays.items())
    pair = [
        helper.make_node("QuantizeLinear", ["images", "q/scale", "q/zero"], ["q/q"], "q"),
        helper.make_node("DequantizeLinear", ["q/q", "q/scale", "q/zero"], ["q/out"], "dq"),
    ]
    for node in reversed(pair):
        model.graph.node.insert(0, node)
    onnx.save(model, path)
    return path


def test_the_std_goes_into_the_first_weights(plain, tmp_path):
    done = to_scalar_input(plain, USUAL, tmp_path / "out.onnx")
    assert done.form == "first weights"
    old, new = (onnx.load(path) for path in (plain, tmp_path / "out.onnx"))
    assert [node.op_type for node in new.graph.node] == [*(n.op_type for n in old.graph.node), "Softmax"]
    assert [each.key for each in new.metadata_props] == ["labels"]  # the rest is of the other input
    expected = softmax(run(plain, normalize(PIXELS, USUAL.mean, USUAL.std)))
    computed = run(tmp_path / "out.onnx", done.inputs(PIXELS))
    np.testing.assert_allclose(computed, expected, atol=2e-6)
    np.testing.assert_array_equal(computed.argmax(1), expected.argmax(1))
    # the mean of a channel, not 0, is the padding of a pixel: the border shows a wrong fold
    border = np.zeros_like(PIXELS)
    np.testing.assert_allclose(
        run(tmp_path / "out.onnx", done.inputs(border)),
        softmax(run(plain, normalize(border, USUAL.mean, USUAL.std))),
        atol=2e-6,
    )


@pytest.mark.parametrize("scale", [0.0187, 0.02, 0.0208, 1 / 48])
def test_a_quantized_input_keeps_its_integers(plain, tmp_path, scale):
    quantized = with_input_pair(plain, tmp_path / "q.onnx", scale)
    done = to_scalar_input(quantized, USUAL, tmp_path / "out.onnx")
    assert done.form == "multiplication"
    weights = {each.name: each.raw_data for each in onnx.load(quantized).graph.initializer}
    after = {each.name: each.raw_data for each in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert {name: after[name] for name in weights} == weights
    expected = softmax(run(quantized, normalize(PIXELS, USUAL.mean, USUAL.std)))
    np.testing.assert_allclose(
        run(tmp_path / "out.onnx", done.inputs(PIXELS)), expected, rtol=1e-5, atol=1e-7
    )
    model = onnx.load(tmp_path / "out.onnx")
    model.graph.output.append(helper.make_tensor_value_info("q/q", TensorProto.INT8, None))
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    integers = session.run(["q/q"], {"images": done.inputs(levels)})[0]
    path = normalize(levels, USUAL.mean, USUAL.std)
    np.testing.assert_array_equal(integers, np.clip(np.round(path / np.float32(scale)), -128, 127))


@pytest.mark.parametrize(
    "preprocess", [Preprocess(crop=16, mean=(0.1, 0.5, 0.9), std=(0.5, 0.5, 0.5)), Preprocess(crop=16)]
)
def test_equal_std_leave_the_weights(plain, tmp_path, preprocess):
    done = to_scalar_input(plain, preprocess, tmp_path / "out.onnx")
    assert (done.form == "unchanged") == (len(set(preprocess.std)) == 1)
    expected = softmax(run(plain, normalize(PIXELS, preprocess.mean, preprocess.std)))
    np.testing.assert_allclose(run(tmp_path / "out.onnx", done.inputs(PIXELS)), expected, atol=2e-6)


def test_other_channels_and_pixel_inputs_are_refused(plain, tmp_path):
    from edgeship.toolkit.graph.pixels import add_pixel_input

    with pytest.raises(ModelError, match="3 channels"):
        to_scalar_input(plain, Preprocess(crop=16, mean=(0.5,), std=(0.5,)), tmp_path / "out.onnx")
    add_pixel_input(plain, USUAL, tmp_path / "pixels.onnx")
    with pytest.raises(ModelError, match="UINT8"):
        to_scalar_input(tmp_path / "pixels.onnx", USUAL, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
