"""Sizes as they are written, and preprocessing as JSON of old and new files."""

import json

import pytest

from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.tensors import Preprocess, as_size, read_size, sides, size_text


@pytest.mark.parametrize(
    ("written", "size", "text"),
    [
        (224, 224, "224"),
        ("224", 224, "224"),
        ("96x128", (96, 128), "96x128"),
        ("96X128", (96, 128), "96x128"),
        ("96,128", (96, 128), "96x128"),
        ([96, 128], (96, 128), "96x128"),
        ((64, 64), 64, "64"),
        ("64x64", 64, "64"),
    ],
)
def test_a_size_is_read_and_written(written, size, text):
    assert read_size(written) == size
    assert size_text(size) == text
    assert as_size(*sides(size)) == size


def test_both_sides_of_a_resize_stay_a_pair():
    assert read_size("64x64", exact=True) == (64, 64)
    assert read_size("64", exact=True) == 64


@pytest.mark.parametrize(
    "written", ["", "x", "96x", "axb", "1x2x3", [], [1, 2, 3], [1.5, 2], True, 224.0, None, {}]
)
def test_what_is_no_size_is_refused(written):
    with pytest.raises(ValueError, match=r"size|whole number|invalid literal"):
        read_size(written)


@pytest.mark.parametrize(
    "preprocess",
    [Preprocess(), Preprocess((110, 146), (96, 128)), Preprocess((64, 64), 64), Preprocess(None, (8, 16))],
)
def test_preprocessing_comes_back_from_json(preprocess):
    assert Preprocess.from_json(json.loads(json.dumps(plain(preprocess)))) == preprocess
    height, width = preprocess.sides
    assert preprocess.crop == as_size(height, width)


def test_json_of_square_images_is_as_it_was():
    stored = plain(Preprocess(256, 224))
    assert (stored["resize"], stored["crop"]) == (256, 224)
