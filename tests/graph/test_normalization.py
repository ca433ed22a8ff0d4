"""Detection of normalization in the first nodes of a graph."""

import input_forms
import numpy as np
import onnx
import pytest
from input_forms import MEAN, STD, channel, in_front, ordinary

from edgeship.toolkit.graph import io

SIZE = (24, 32)
HALF = np.full(3, 0.5, "f4")
F = onnx.TensorProto.FLOAT


def normalization(tmp_path, *steps):
    model = in_front(ordinary(SIZE), input_forms.planes(SIZE), F, *steps)
    onnx.save(model, tmp_path / "net.onnx")
    return io.read_classifier(tmp_path / "net.onnx").normalization


@pytest.mark.parametrize(
    ("steps", "mean", "std", "scale"),
    [
        ([("Sub", {}, channel(MEAN)), ("Div", {}, channel(STD))], MEAN, STD, 1),
        ([("Mul", {}, channel(1 / STD)), ("Add", {}, channel(-MEAN / STD))], MEAN, STD, 1),
        ([("Mul", {}, np.float32(2)), ("Sub", {}, np.float32(1))], HALF, HALF, 1),
        ([("Div", {}, np.float32(127.5)), ("Sub", {}, np.float32(1))], HALF, HALF, 255),
        ([("Div", {}, np.float32(255))], 0 * HALF, 2 * HALF, 255),
        ([("Sub", {}, channel(255 * MEAN))], MEAN, np.full(3, 1 / 255), 255),
        (
            [("Gather", {"axis": 1}, np.array([2, 1, 0])), ("Sub", {}, channel(255 * MEAN[::-1]))],
            MEAN,
            np.full(3, 1 / 255),
            255,
        ),
        (
            [("Mul", {}, np.float32(255)), ("Sub", {}, channel(255 * MEAN)), ("Div", {}, channel(255 * STD))],
            MEAN,
            STD,
            1,
        ),
    ],
)
def test_mean_and_deviation_are_found(steps, mean, std, scale, tmp_path):
    got = normalization(tmp_path, *steps)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got.std, std, rtol=1e-5)
    assert got.scale == scale
    raw = got.raw
    assert (raw.mean, raw.std) == ((0.0,) * 3, (1 / scale,) * 3)


def test_a_mean_image_is_averaged_and_not_taken_for_a_mean(tmp_path):
    image = np.random.default_rng(0).uniform(90, 150, (1, 3, *SIZE)).astype("f4")
    got = normalization(tmp_path, ("Sub", {}, image))
    np.testing.assert_allclose(np.multiply(got.mean, 255), image.mean((0, 2, 3)), rtol=1e-5)
    assert (got.scale, got.output) == (255, "")


@pytest.mark.parametrize(
    "steps",
    [
        [("Identity", {})],
        [("Mul", {}, channel(STD / 0.5)), ("Add", {}, channel((MEAN - 0.5) / 0.5))],  # of normalized images
        [
            (
                "BatchNormalization",
                {},
                np.ones(3, "f4"),
                np.zeros(3, "f4"),
                np.zeros(3, "f4"),
                np.ones(3, "f4"),
            )
        ],
        [("Mul", {}, np.float32(-2)), ("Add", {}, np.float32(1))],
        [("Relu", {}), ("Sub", {}, channel(MEAN)), ("Div", {}, channel(STD))],
    ],
)
def test_what_is_no_normalization_of_pixels_is_not_taken_for_one(steps, tmp_path):
    assert normalization(tmp_path, *steps) is None


def test_the_normalized_tensor_is_what_the_graph_computes(tmp_path):
    model, _ = input_forms.FORMS["sub-mul-255"]
    onnx.save(model(SIZE), tmp_path / "net.onnx")
    got = io.read_classifier(tmp_path / "net.onnx").normalization
    assert got.output == "front1"
    images = np.random.default_rng(1).integers(0, 256, (2, 3, *SIZE)).astype("f4")
    expected = (images / 255 - channel(MEAN)) / channel(STD)
    np.testing.assert_allclose(got.apply(images), expected, rtol=1e-5, atol=1e-5)
