"""Near duplicates: eight bits of the hash may differ, and the thumbnails correlate."""

import numpy as np
import pytest
from PIL import Image

from edgeship.calibration.duplicates import ImageHash, hash_image, similar_pairs

PICTURE = np.random.default_rng(0).normal(size=256).astype(np.float32)
PICTURE /= np.linalg.norm(PICTURE)


def image_hash(different, cosine=1.0):
    bits = np.ones(64, np.int8)
    bits[:different] = -1
    other = np.roll(PICTURE, 7) - PICTURE * (PICTURE @ np.roll(PICTURE, 7))
    other /= np.linalg.norm(other)
    return ImageHash(bits, (cosine * PICTURE + np.sqrt(1 - cosine**2) * other).astype(np.float32))


@pytest.mark.parametrize(("different", "alike"), [(0, True), (5, True), (8, True), (9, False), (32, False)])
def test_bits_that_may_differ(different, alike):
    assert similar_pairs([image_hash(0), image_hash(different)]) == ([(0, 1)] if alike else [])
    assert similar_pairs([image_hash(0)], [image_hash(different)]) == ([(0, 0)] if alike else [])


def test_equal_hashes_of_other_pictures_are_no_pair():
    assert similar_pairs([image_hash(0), image_hash(0, cosine=0.5)]) == []
    assert similar_pairs([], [image_hash(0)]) == similar_pairs([image_hash(0)], []) == []


def test_a_recompressed_half_size_copy_is_found_and_another_picture_is_not(tmp_path):
    random = np.random.default_rng(1)
    small = [Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)) for _ in range(2)]
    first, other = (each.resize((128, 128), Image.Resampling.BICUBIC) for each in small)
    first.resize((64, 64)).save(tmp_path / "copy.jpg", quality=60)
    with Image.open(tmp_path / "copy.jpg") as copy:
        hashes = [hash_image(first), hash_image(other), hash_image(copy)]
    assert similar_pairs(hashes) == [(0, 2)]
    assert all(np.linalg.norm(each.thumbnail) == pytest.approx(1, abs=1e-5) for each in hashes)


@pytest.mark.parametrize(
    "image", [Image.new("L", (64, 64), 90), Image.fromarray(np.arange(256, dtype=np.uint8).reshape(64, 4))]
)
def test_flat_and_tiny_images_are_like_no_other(image):
    assert not hash_image(image).thumbnail.any()
    assert similar_pairs([hash_image(image)] * 2) == []
