"""Preprocessing on devices: with Pillow the calibration's own, without it the same pixels from NumPy."""

import math
from fractions import Fraction

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


KNOWN = {  # (Y, Cb, Cr) -> RGB by the formulas of ITU-R BT.601-7 and BT.709-6, computed by hand
    ("bt601", "limited"): {
        (16, 128, 128): (0, 0, 0),
        (235, 128, 128): (255, 255, 255),
        (81, 90, 240): (254, 0, 0),
        (145, 54, 34): (0, 255, 1),
        (41, 240, 110): (0, 0, 255),
        (126, 100, 150): (163, 121, 72),
    },
    ("bt709", "limited"): {
        (63, 102, 240): (255, 1, 0),
        (173, 42, 26): (0, 255, 1),
        (126, 100, 150): (168, 122, 69),
    },
    ("bt601", "full"): {
        (76, 85, 255): (254, 0, 0),
        (126, 100, 150): (157, 120, 76),
        (255, 128, 128): (255,) * 3,
    },
    ("bt709", "full"): {(126, 100, 150): (161, 121, 74), (0, 128, 128): (0, 0, 0)},
}


def coefficients(matrix, levels):
    """Return the exact weights of (Y, Cb, Cr) in R, G and B, and the luma of black."""
    kr, kb = {"bt601": (Fraction(299, 1000), Fraction(114, 1000))}.get(
        matrix, (Fraction(2126, 10000), Fraction(722, 10000))
    )
    kg = 1 - kr - kb
    y, c, black = (
        (Fraction(255, 219), Fraction(255, 224), 16) if levels == "limited" else (Fraction(1),) * 2 + (0,)
    )
    red, blue = 2 * (1 - kr) * c, 2 * (1 - kb) * c
    return [(y, 0 * c, red), (y, -blue * kb / kg, -red * kr / kg), (y, blue, 0 * c)], black


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("matrix", "levels"), KNOWN)
def test_nv12_has_the_rounded_values_of_the_standard(matrix, levels, full):
    for (y, cb, cr), expected in KNOWN[matrix, levels].items():
        frame = np.array([[y, y], [y, y], [cb, cr]], np.uint8)
        np.testing.assert_array_equal(imaging.from_nv12(frame, matrix, levels), np.full((2, 2, 3), expected))
    chroma = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), -1).reshape(256, 512)
    cb, cr = chroma[:, 0::2].astype(np.int64) - 128, chroma[:, 1::2].astype(np.int64) - 128
    weights, black = coefficients(matrix, levels)
    for y in range(256 if full else 8):
        frame = np.vstack([np.full((512, 512), y * (1 if full else 32)), chroma]).astype(np.uint8)
        pixels = imaging.from_nv12(frame, matrix, levels)[::2, ::2]
        for channel, row in enumerate(weights):
            whole = math.lcm(*(each.denominator for each in row))
            a, b, c = (int(each * whole) for each in row)
            total = a * (int(frame[0, 0]) - black) + b * cb + c * cr
            expected = np.clip((2 * total + whole) // (2 * whole), 0, 255)  # in integers, halves go up
            np.testing.assert_array_equal(pixels[..., channel], expected)


def test_nv12_luma_is_of_each_pixel_and_chroma_of_each_block():
    frame = np.array([[16, 50, 90, 130], [170, 200, 235, 30], [90, 240, 54, 34]], np.uint8)
    rgb = imaging.from_nv12(frame, "bt601", "limited")
    for (row, column), (cb, cr) in {
        (0, 1): (90, 240),
        (1, 0): (90, 240),
        (0, 3): (54, 34),
        (1, 2): (54, 34),
    }.items():
        one = np.array([[frame[row, column]] * 2] * 2 + [[cb, cr]], np.uint8)
        np.testing.assert_array_equal(rgb[row, column], imaging.from_nv12(one, "bt601", "limited")[0, 0])
    padded = np.pad(frame, ((0, 0), (0, 3)))[:, :4]
    np.testing.assert_array_equal(imaging.from_nv12(padded, "bt601", "limited"), rgb)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((6, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((6, 4, 1), np.uint8),
        np.zeros((6, 4), np.int16),
        np.zeros(24, np.uint8),
    ],
    ids=["rows", "odd width", "empty", "three sides", "type", "flat"],
)
def test_other_forms_are_no_nv12_frame(frame):
    with pytest.raises(ValueError, match="no NV12 frame"):
        imaging.from_nv12(frame, "bt601", "limited")
