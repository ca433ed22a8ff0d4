"""uint8 input: every pixel is quantized to the integer of the float path, so logits are the same."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from float_graphs import residual
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.calibration.preprocess import normalize
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.targets.onnxruntime import simulate
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import QuantScheme, QuantSpec
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph import edit, io
from edgeship.toolkit.graph.pixels import add_pixel_input, affine

PREPROCESS = Preprocess(resize=16, crop=16)
SCHEME = QuantScheme(
    "test", QuantSpec("int8", True, 0), QuantSpec("int8", True), None, "skip", "input", store_integers=True
)
EVERY = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (1, 1, 1, 3))  # in every channel


def pixels(count=4, size=16):
    """Not square in content: rows, columns and channels all differ."""
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3), np.uint8)


def quantizer(scale, zero_point, dtype):
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17})
    constants = [
        edit.add_constant(graph, "scale", np.float32(scale)),
        edit.add_constant(graph, "zero", np.asarray(zero_point, dtype)),
    ]
    return ir.node("QuantizeLinear", [ir.Value(name="x"), *constants])


def integers(values, scale, zero_point, dtype):
    ends = np.iinfo(dtype)
    return np.clip(np.rint(values / np.float32(scale)) + zero_point, ends.min, ends.max)


def differing(gain, shift, preprocess, scale, zero_point, dtype):
    """(3, 256): which pixels become another integer, rounded after each operation, or fused."""
    expected = integers(normalize(EVERY, preprocess), scale, zero_point, dtype)
    levels = EVERY.astype(np.float32)
    unfused = levels * gain - shift
    fused = (levels.astype(np.float64) * gain - shift).astype(np.float32)
    by_inverse = fused * (np.float32(1) / np.float32(scale))
    results = [integers(each.transpose(0, 3, 1, 2), scale, zero_point, dtype) for each in (unfused, fused)]
    results.append(integers(by_inverse.transpose(0, 3, 1, 2), 1, zero_point, dtype))
    return np.any([each != expected for each in results], axis=0).reshape(3, 256)


def on_a_border(preprocess, scale):
    """(3, 256): pixels exactly between two integers, within float32 precision."""
    real = [
        (np.arange(256) / 255 - m) / s / scale for m, s in zip(preprocess.mean, preprocess.std, strict=True)
    ]
    return np.abs(np.abs(real - np.rint(real)) - 0.5) < 1e-4


def unexcused(gain, shift, preprocess, scale, zero_point, dtype):
    """As `differing`, without several on a border: rounded to even, they lie on no straight line."""
    border = on_a_border(preprocess, scale)
    excused = border & (border.sum(1, keepdims=True) > 1)
    return differing(gain, shift, preprocess, scale, zero_point, dtype) & ~excused


channel = st.floats(0.05, 0.95)
spread = st.floats(0.1, 0.6)


@given(
    mean=st.tuples(channel, channel, channel),
    std=st.tuples(spread, spread, spread),
    scale=st.floats(0.004, 0.2),
    kind=st.sampled_from([(0, "int8"), (0, "uint8"), (114, "uint8"), (-9, "int8")]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_pixel_becomes_the_integer_of_the_float_path(mean, std, scale, kind):
    preprocess = Preprocess(mean=mean, std=std)
    gain, shift = affine(preprocess, [quantizer(scale, *kind)])
    assert (gain.dtype, shift.dtype) == (np.float32, np.float32)
    assert not unexcused(gain, shift, preprocess, scale, *kind).any()


def test_where_plain_constants_miss_an_integer_the_shift_is_moved():
    """Scales at which a pixel lies on the border between two integers: plain constants decide by chance."""
    preprocess, missed = Preprocess(), 0
    plain = affine(preprocess, [])
    np.testing.assert_allclose(plain[1], np.divide(preprocess.mean, preprocess.std), rtol=1e-6)
    for level in range(0, 256, 5):
        value = (level / 255 - preprocess.mean[0]) / preprocess.std[0]
        scale = np.float32(abs(value) / 40.5)
        if scale > 0.004:
            missed += differing(*plain, preprocess, scale, 0, "int8").any()
            moved = affine(preprocess, [quantizer(scale, 0, "int8")])
            assert not unexcused(*moved, preprocess, scale, 0, "int8").any()
    assert missed > 5


def test_a_scale_that_cuts_everything_off_moves_the_shift_by_less_than_a_pixel():
    preprocess = Preprocess()
    gain, shift = affine(preprocess, [quantizer(1e-6, 0, "int8"), SimpleNamespace(op_type="Conv")])
    assert (np.abs(shift - np.divide(preprocess.mean, preprocess.std)) < gain / 2).all()
    assert not differing(gain, shift, preprocess, 1e-6, 0, "int8").any()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    path = residual(seed=1).save(folder / "float.onnx")
    statistics = collect(path, [normalize(pixels(), PREPROCESS)])
    quantize(path, statistics, SCHEME, QuantizeOptions(effort="fast"), folder / "int8.onnx")
    return folder / "int8.onnx"


@pytest.mark.parametrize("count", [1, 4])
def test_logits_are_equal_to_the_last_bit(quantized, count, tmp_path):
    add_pixel_input(quantized, PREPROCESS, tmp_path / "pixels.onnx")
    onnx.checker.check_model(str(tmp_path / "pixels.onnx"), full_check=True)
    with simulate(quantized, threads=1) as floats, simulate(tmp_path / "pixels.onnx", threads=1) as takes:
        assert takes.takes_pixels and not floats.takes_pixels
        expected = floats.infer(normalize(pixels(count), PREPROCESS))
        np.testing.assert_array_equal(takes.infer(pixels(count)), expected)
        assert np.abs(takes.infer(pixels(count)[..., ::-1].copy()) - expected).max() > 0.01  # RGB is not BGR


def test_a_float_graph_differs_by_rounding_only(tmp_path):
    path = residual(seed=1, batch=2).save(tmp_path / "float.onnx")
    add_pixel_input(path, PREPROCESS, tmp_path / "pixels.onnx")
    with simulate(path, threads=1) as floats, simulate(tmp_path / "pixels.onnx", threads=1) as takes:
        expected = floats.infer(normalize(pixels(5), PREPROCESS))  # five images by twos
        np.testing.assert_allclose(takes.infer(pixels(5)), expected, atol=1e-5 * np.abs(expected).max())


def test_what_it_looks_like_from_outside(quantized, tmp_path):
    add_pixel_input(quantized, PREPROCESS, tmp_path / "pixels.onnx")
    classifier = io.read(tmp_path / "pixels.onnx")
    assert (classifier.input, classifier.takes_pixels, classifier.quantized) == ("images", True, True)
    assert (classifier.batch, classifier.channels, classifier.size, classifier.classes) == (None, 3, 16, 5)
    first = [node.op_type for node in classifier.model.graph][:5]
    assert classifier.model.graph.initializers["images/gain"].shape == (
        16,
        3,
    )  # a row: 3 would be repeated slowly
    assert first == ["Cast", "Mul", "Sub", "Transpose", "QuantizeLinear"]  # TensorRT: only a Cast reads uint8


def test_pixels_twice_other_channels_and_float16_are_refused(quantized, tmp_path):
    add_pixel_input(quantized, PREPROCESS, tmp_path / "pixels.onnx")
    with pytest.raises(ModelError, match="takes UINT8, not float32") as caught:
        add_pixel_input(tmp_path / "pixels.onnx", PREPROCESS, tmp_path / "twice.onnx")
    assert caught.value.hint
    with pytest.raises(ModelError, match="takes 3 channels, its preprocessing has 1") as caught:
        add_pixel_input(quantized, Preprocess(mean=(0.5,), std=(0.5,)), tmp_path / "grey.onnx")
    assert "one number for each channel" in caught.value.hint
    assert not (tmp_path / "twice.onnx").exists() and not (tmp_path / "grey.onnx").exists()
