"""The catalogue: every fault is what another library, or a formula, makes of the same image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from prove.applications import encoded, picture

from edgeship.targets.runner import imaging
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.prove import pixels
from edgeship.toolkit.prove.faults import CATALOGUE, STEPS

HOW = Preprocess(resize=36, crop=32)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(48, 40), (37, 91), (36, 36), (20, 30)])
@pytest.mark.parametrize(
    "how", [HOW, Preprocess(resize=(40, 36), crop=(32, 30)), Preprocess(64, 64, interpolation="bicubic")]
)
def test_without_a_change_the_pixels_are_those_of_the_calibration(size, how):
    image = picture(RNG, *size)
    expected = imaging.pixels(image, how.resize, how.sides, how.interpolation, 3)
    np.testing.assert_array_equal(pixels.prepared(image, how), expected)


@pytest.mark.parametrize(
    ("how", "mode", "corners"),
    [
        ("linear", "bilinear", False),
        ("linear-corners", "bilinear", True),
        ("cubic", "bicubic", False),
        ("floor", "nearest", None),
    ],
)
@pytest.mark.parametrize("side", [(24, 30), (70, 95)])
def test_resizes_without_antialias_are_those_of_pytorch(how, mode, corners, side):
    image = picture(RNG, 57, 43)
    values = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(values, side, mode=mode, align_corners=corners)
    wanted = wanted[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
    assert np.abs(np.asarray(pixels.resized(image, side, how)).astype(int) - wanted).max() <= 1


def test_chroma_is_repeated_in_blocks_of_two_and_luma_stays():
    data = encoded(picture(RNG, 64, 48), format="JPEG", quality=95, subsampling="4:2:0")
    with Image.open(io.BytesIO(data)) as image:
        image.draft("YCbCr", image.size)
        right = np.asarray(image.copy()).astype(int)
    ours = np.asarray(pixels.repeated_chroma(data)).astype(float)
    luma = ours @ [0.299, 0.587, 0.114]
    cb = (ours[..., 2] - luma) / 1.772
    plain = ((ours > 2) & (ours < 253)).all(2)  # not clipped
    whole = plain.reshape(24, 2, 32, 2).all((1, 3))
    blocks = cb.reshape(24, 2, 32, 2)
    assert (blocks.max((1, 3)) - blocks.min((1, 3)))[whole].max() < 2.5
    assert np.abs(luma - right[..., 0])[plain].max() < 1.5
    fancy = np.asarray(pixels.decoded(data)).astype(float)
    assert np.abs(fancy - ours).max() > 20
    for other in (encoded(picture(RNG, 64, 48), format="PNG"),
                  encoded(picture(RNG, 64, 48), format="JPEG", subsampling="4:4:4")):  # fmt: skip
        np.testing.assert_array_equal(pixels.repeated_chroma(other), pixels.decoded(other))


@pytest.mark.parametrize("decode", [pixels.repeated_chroma, pixels.reduced, pixels.unrotated])
def test_orientation_is_applied_by_all_decoders_but_one(decode):
    image = picture(RNG, 48, 32)
    exif = image.getexif()
    exif[0x0112] = 6
    data = encoded(image, format="JPEG", exif=exif)
    upright = pixels.decoded(data)
    assert upright.size == (32, 48)
    sizes = {pixels.repeated_chroma: (32, 48), pixels.reduced: (16, 24), pixels.unrotated: (48, 32)}
    assert decode(data).size == sizes[decode]


def test_video_ranges_invert_each_other_and_have_their_black_and_white():
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    assert pixels.limited_as_full(ends).tolist() == [[[16] * 3, [235] * 3]]
    image = np.asarray(picture(RNG, 30, 30))
    assert np.abs(pixels.full_as_limited(pixels.limited_as_full(image)).astype(int) - image).max() <= 2
    grey = np.full((2, 2, 3), 90, np.uint8)
    np.testing.assert_array_equal(pixels.bt709_for_bt601(grey), grey)


MEAN, STD = np.array(HOW.mean), np.array(HOW.std)
VALUES = {  # formulas on pixels in 0..1
    "range-255": lambda x: (255 * x - MEAN) / STD,
    "range-1": lambda x: (x / 255 - MEAN) / STD,
    "mean-missing": lambda x: x / STD,
    "std-missing": lambda x: x - MEAN,
    "std-multiplied": lambda x: (x - MEAN) * STD,
    "mean-std-swapped": lambda x: (x - STD) / MEAN,
    "mean-std-bgr": lambda x: (x - MEAN[::-1]) / STD[::-1],
    "normalized-twice": lambda x: ((x - MEAN) / STD - MEAN) / STD,
}


@pytest.mark.parametrize("name", VALUES)
def test_values_follow_their_formula(name):
    image = np.asarray(picture(RNG, 20, 10))[None]
    (fault,) = (each for each in CATALOGUE if each.name == name)
    expected = VALUES[name](image / 255).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(fault.apply(image, HOW), expected, rtol=1e-5, atol=1e-5)


def test_every_fault_has_a_step_a_title_and_a_line_with_the_values_of_the_calibration():
    assert len({fault.name for fault in CATALOGUE}) >= 14
    assert len({fault.title for fault in CATALOGUE}) == len(CATALOGUE)
    for fault in CATALOGUE:
        assert fault.step in STEPS
        assert "{" not in fault.advice(HOW), fault.name
    (missing,) = (each for each in CATALOGUE if each.name == "mean-missing")
    assert "[0.485, 0.456, 0.406]" in missing.advice(HOW)
    (filtered,) = (each for each in CATALOGUE if each.name == "bicubic")
    assert "36" in filtered.advice(HOW)
    assert "BILINEAR" in filtered.advice(HOW)
