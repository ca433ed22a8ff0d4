"""Small images with known content, as files and folders."""

import io

import numpy as np
import pytest
from PIL import Image


def _picture(seed, size=(40, 30), mode="RGB"):
    """Return a smooth random image; neighbouring pixels are similar, as in photographs."""
    grain = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(grain).resize(size, Image.Resampling.BICUBIC).convert(mode)


def _encode(image, kind="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def picture():
    return _picture


@pytest.fixture
def encode():
    return _encode


@pytest.fixture
def jpeg():
    """Return a function from seed to the bytes of a JPEG."""
    return lambda seed, size=(40, 30), quality=90: _encode(_picture(seed, size), quality=quality)


@pytest.fixture
def class_folder(tmp_path, jpeg):
    """Make a folder of class folders: class_folder({"cat": 3, "dog": 2}) -> its path; seeds are 0, 1, 2..."""

    def make(counts, name="data", first_seed=0):
        seed = first_seed
        for label, count in counts.items():
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index:03d}.jpg").write_bytes(jpeg(seed))
                seed += 1
        return tmp_path / name

    return make
