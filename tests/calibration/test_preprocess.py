"""Resize, crop and normalization against hand-worked sizes and an independent computation."""

from dataclasses import replace

import numpy as np
import pytest
from measured import peak
from PIL import Image

from edgeship.calibration.preprocess import apply, check, normalize, pixels
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.tensors import Preprocess

PLAIN = Preprocess(resize=None, crop=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def coordinates(width, height):
    """Return an image with red = x and green = y."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, 0 * x], -1))


@pytest.mark.parametrize(
    ("size", "left", "top"),
    [
        pytest.param((4, 4), 0, 0, id="nothing to cut"),
        pytest.param((10, 8), 3, 2, id="even"),
        pytest.param((9, 7), 2, 2, id="halves go to even: 2.5 and 1.5 are both 2"),
        pytest.param((7, 9), 2, 2, id="1.5 and 2.5"),
        pytest.param((5, 4), 0, 0, id="0.5 is 0"),
    ],
)
def test_crop_is_the_centre(size, left, top):
    values = pixels(coordinates(*size), PLAIN)
    assert values[0, 0].tolist() == [left, top, 0]
    assert values[-1, -1].tolist() == [left + 3, top + 3, 0]


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((500, 375), (341, 256)),  # 256 * 500 / 375 = 341.33
        ((375, 500), (256, 341)),
        ((333, 500), (256, 384)),  # 384.38
        ((256, 300), (256, 300)),
        ((32, 32), (256, 256)),
    ],
)
def test_shorter_side_is_resized_and_the_longer_cut_to_a_whole_number(size, resized, picture):
    image = picture(0, size)
    whole = image.resize(resized, Image.Resampling.BILINEAR) if size != resized else image
    left, top = round((resized[0] - 224) / 2), round((resized[1] - 224) / 2)
    expected = np.asarray(whole)[top : top + 224, left : left + 224]
    assert (pixels(image, Preprocess()) == expected).all()


@pytest.mark.parametrize(
    ("size", "left", "top"),
    [((6, 4), 0, 0), ((10, 8), 2, 2), ((9, 7), 2, 2), ((7, 9), 0, 2), ((6, 5), 0, 0)],
)
def test_a_crop_of_two_sides_is_the_centre(size, left, top):
    values = pixels(coordinates(*size), replace(PLAIN, crop=(4, 6)))
    assert values.shape == (4, 6, 3)
    assert values[0, 0].tolist() == [left, top, 0]
    assert values[-1, -1].tolist() == [left + 5, top + 3, 0]


def test_the_shorter_side_is_resized_whatever_the_crop(picture):
    image = picture(0, (500, 375))
    whole = np.asarray(image.resize((170, 128), Image.Resampling.BILINEAR))  # 128 * 500 / 375 = 170.67
    assert (pixels(image, Preprocess(128, (96, 160))) == whole[16:112, 5:165]).all()


@pytest.mark.parametrize("size", [(500, 375), (300, 400), (64, 48)])
def test_a_resize_of_two_sides_changes_the_aspect_ratio(size, picture):
    image = picture(1, size)
    whole = np.asarray(image.resize((80, 60), Image.Resampling.BILINEAR))
    assert (pixels(image, Preprocess((60, 80), (60, 80))) == whole).all()
    assert (pixels(image, Preprocess((60, 80), (40, 64))) == whole[10:50, 8:72]).all()
    assert apply(image, Preprocess((60, 80), (40, 64))).shape == (3, 40, 64)


@pytest.mark.parametrize(
    ("resize", "crop", "problem"),
    [
        (90, (96, 128), "resize (90) is smaller than crop (96x128)"),
        ((100, 120), (96, 128), "resize (100x120) is smaller than crop (96x128)"),
        (None, (0, 128), "crop is 0x128"),
    ],
)
def test_sizes_that_no_image_fits_are_refused(resize, crop, problem):
    with pytest.raises(DataError) as caught:
        check(Preprocess(resize, crop))
    assert problem in str(caught.value)


def test_an_image_too_narrow_for_the_crop_is_named_with_the_cure():
    with pytest.raises(DataError, match=r"a.png is 96 x 144, smaller than the crop of 96x128") as caught:
        pixels(coordinates(40, 60), Preprocess(96, (96, 128)), "a.png")
    assert "resize to 96x128" in caught.value.hint


def test_shrinking_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))).convert("RGB")
    values = pixels(stripes, replace(PLAIN, resize=8, crop=8))
    assert np.abs(values[:, 1:-1].astype(int) - 127).max() <= 8  # without it, all 0 or all 255
    assert set(pixels(stripes, replace(PLAIN, resize=8, crop=8, interpolation="nearest")).ravel()) <= {0, 255}


def doubled(values, axis):
    """Upsample by 2 with bilinear interpolation between pixel centres: weights 1/4 and 3/4."""
    last = values.shape[axis] - 1
    at = np.arange(last + 1)
    before, after = values.take(np.maximum(at - 1, 0), axis), values.take(np.minimum(at + 1, last), axis)
    pair = np.stack([0.25 * before + 0.75 * values, 0.75 * values + 0.25 * after], axis + 1)
    return pair.reshape(*values.shape[:axis], -1, *values.shape[axis + 1 :])


def test_enlarging_is_bilinear_between_pixel_centres(picture):
    image = picture(3, (32, 32))
    expected = doubled(doubled(np.asarray(image).astype(float), 0), 1)
    values = pixels(image, replace(PLAIN, resize=64, crop=64))
    assert np.abs(values - expected).max() <= 1  # Pillow rounds to 8 bits after rows and after columns
    assert np.abs(values - expected).mean() < 0.4


def test_normalization_is_float32_step_by_step():
    stated = Preprocess(resize=None, crop=4)
    levels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
    values = normalize(levels, stated)
    assert values.shape == (1, 3, 4, 4) and values.dtype == np.float32 and values.flags.c_contiguous
    for channel in range(3):
        mean, std = np.float32(stated.mean[channel]), np.float32(stated.std[channel])
        one = (np.float32(levels[0, 1, 2, channel]) / np.float32(255) - mean) / std
        assert values[0, channel, 1, 2] == one
    assert (apply(Image.fromarray(levels[0]), stated) == values[0]).all()
    assert apply(Image.new("RGB", (4, 4), (255, 0, 128)), PLAIN)[:, 0, 0].tolist() == [
        1.0,
        0.0,
        np.float32(128) / np.float32(255),
    ]


def test_one_channel_is_luma():
    grey = replace(PLAIN, mean=(0.5,), std=(0.25,))
    values = apply(Image.new("RGB", (4, 4), (255, 0, 0)), grey)
    assert values.shape == (1, 4, 4)
    assert values[0, 0, 0] == (np.float32(76) / np.float32(255) - np.float32(0.5)) / np.float32(
        0.25
    )  # 0.299 * 255


@pytest.mark.parametrize("size", [(3, 9), (9, 3), (1, 1)])
def test_an_image_smaller_than_the_crop_is_named(size):
    with pytest.raises(DataError, match=r"cat/1\.jpg is \d x \d, smaller .* 4 pixels") as caught:
        apply(Image.new("RGB", size), PLAIN, "cat/1.jpg")
    assert "resize" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "crop is 0"),
        ({"resize": 3}, r"resize \(3\) is smaller than crop \(4\)"),
        ({"mean": (0.0, 0.0)}, "3 channels"),
        ({"std": (1.0,)}, "3 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (float("nan"),) * 3}, "finite"),
        ({"interpolation": "cubic"}, "no interpolation named 'cubic'"),
    ],
)
def test_impossible_descriptions(change, message):
    check(PLAIN)
    with pytest.raises(DataError, match=message):
        check(replace(PLAIN, **change))


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 9_000)])
def test_sides_too_unequal_are_refused_before_the_resize(size):
    image, ordinary = Image.new("RGB", size), Preprocess(resize=256, crop=224)
    with peak() as used, pytest.raises(DataError, match=r"cat/1\.png is \d+ x \d+: resized") as caught:
        apply(image, ordinary, "cat/1.png")
    assert used.megabytes < 50 and used.seconds < 1
    assert "unequal" in caught.value.hint
    assert apply(image, replace(ordinary, resize=None, crop=1), "cat/1.png").shape == (3, 1, 1)
    assert apply(Image.new("RGB", (30, 4_000)), ordinary).shape == (3, 224, 224)
