"""Preprocessing on devices: with Pillow the calibration's own, without it the same pixels from NumPy."""

import numpy as np
import PIL
import pytest
from PIL import Image

from edgeship.calibration import preprocess
from edgeship.targets.runner import imaging
from edgeship.toolkit.core.tensors import Preprocess

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")

# Pillow 13 chooses the order of the passes by the sizes, earlier releases did not
LEVELS = 0 if int(PIL.__version__.split(".")[0]) >= 13 else 1


def picture(height, width, seed=0):
    """Return a picture-like array: smooth colours with noise and hard edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([np.sin(x / 7 + k) + np.cos(y / (5 + k)) for k in range(3)], -1) * 60 + 128
    edges = np.where((x // 11 + y // 13)[..., None] % 2, 40, -40)
    return np.clip(smooth + edges + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("height", "width", "resize"),
    [(375, 500, 256), (500, 375, 256), (32, 32, 64), (640, 480, (64, 64)), (97, 211, (50, 100)), (1, 9, 4)],
)
def test_numpy_gives_pillows_pixels(height, width, resize, interpolation):
    image = picture(height, width)
    sides = imaging.resized_sides(height, width, resize)
    expected = Image.fromarray(image).resize(sides[::-1], Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(imaging.resample(image, sides, interpolation), np.asarray(expected))


def test_numpy_follows_pillow_for_any_sizes():
    rng = np.random.default_rng(3)
    for _ in range(80):
        height, width, *sides = map(int, rng.integers(2, 90, 4))
        image = picture(height, width)
        expected = Image.fromarray(image).resize(sides[::-1], Image.Resampling.BILINEAR)
        difference = imaging.resample(image, tuple(sides), "bilinear").astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= LEVELS, (height, width, sides)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("resize", [None, 40, (40, 36)])
def test_without_pillow_the_inputs_are_those_of_calibration(channels, resize, monkeypatch):
    image = picture(61, 45)
    values = Preprocess(resize, (32, 30), (0.5, 0.4, 0.3)[:channels], (0.2, 0.3, 0.4)[:channels])
    expected = preprocess.apply(Image.fromarray(image), values)
    arguments = (image, resize, (32, 30), "bilinear", channels)
    with_pillow = imaging.pixels(*arguments)
    monkeypatch.setattr(imaging, "Image", None)
    without = imaging.pixels(*arguments)
    np.testing.assert_allclose(with_pillow.astype(int), without, rtol=0, atol=LEVELS)
    np.testing.assert_array_equal(imaging.normalize(with_pillow[None], values.mean, values.std)[0], expected)


def test_a_grey_array_is_repeated_over_the_channels(monkeypatch):
    grey = picture(40, 40)[..., 0]
    with_pillow = imaging.pixels(grey, 32, (32, 32), "bilinear", 3)
    monkeypatch.setattr(imaging, "Image", None)
    np.testing.assert_array_equal(imaging.pixels(grey, 32, (32, 32), "bilinear", 3), with_pillow)


@pytest.mark.parametrize("pillow", [True, False])
def test_an_image_smaller_than_the_crop_is_refused(pillow, monkeypatch):
    if not pillow:
        monkeypatch.setattr(imaging, "Image", None)
    with pytest.raises(ValueError, match="20 x 30, smaller than the crop of 32 x 32"):
        imaging.pixels(picture(30, 20), None, (32, 32), "bilinear", 3)
