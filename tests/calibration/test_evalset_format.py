"""The packed evaluation set: its documented layout, its digest, and the device runner that reads it."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from edgeship.calibration import evalset_format
from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.loader import batches
from edgeship.calibration.preprocess import pixels
from edgeship.targets.runner.evalset import Packed
from edgeship.toolkit.core.artifact import sha256_bytes
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.tensors import Preprocess

SMALL = Preprocess(resize=28, crop=24, interpolation="bicubic")


@pytest.fixture
def dataset(class_folder):
    return open_dataset(class_folder({"a": 12, "b": 3}))


def test_layout_is_what_the_documentation_says(dataset, tmp_path):
    out = tmp_path / "eval.images"
    assert evalset_format.pack(dataset, [14, 0, 3], SMALL, out) == ()
    data = out.read_bytes()
    magic, length = struct.unpack("<8sQ", data[:16])
    header, start = json.loads(data[16 : 16 + length]), 16 + length
    assert (magic, start % 64) == (b"EDGESET1", 0)
    assert header["sha256"] == sha256_bytes(data[start:])
    assert {key: header[key] for key in ("schema", "images", "height", "width", "channels", "skipped")} == {
        "schema": 1,
        "images": 3,
        "height": 24,
        "width": 24,
        "channels": 3,
        "skipped": 0,
    }
    assert header["classes"] == ["a", "b"]
    assert header["preprocess"]["interpolation"] == "bicubic"
    size = 3 * 24 * 24 * 3
    assert data[start : start + size] == b"".join(
        pixels(dataset.image(index), SMALL).tobytes() for index in (14, 0, 3)
    )
    assert data[start + size :] == struct.pack("<3i", 1, 0, 0)


def test_read_gives_back_what_was_packed(dataset, tmp_path):
    evalset_format.pack(dataset, range(15), SMALL, tmp_path / "x")
    packed = evalset_format.read(tmp_path / "x")
    assert (packed.name, packed.classes, packed.preprocess) == ("data", ("a", "b"), SMALL)
    assert packed.labels.tolist() == [0] * 12 + [1] * 3
    assert (packed.images[7] == pixels(dataset.image(7), SMALL)).all()


def test_equal_inputs_give_equal_files(dataset, tmp_path):
    for name, workers in (("one", 1), ("two", 3)):
        evalset_format.pack(dataset, range(15), SMALL, tmp_path / name, workers=workers)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_device_computes_on_the_numbers_of_calibration(dataset, tmp_path):
    evalset_format.pack(dataset, range(15), SMALL, tmp_path / "x")
    device = Packed(str(tmp_path / "x"))
    packed = b"".join(data for data, _ in device.batches(4, 15))
    (host,) = batches(dataset, range(15), SMALL, batch=15)
    assert (np.frombuffer(packed, "<f4").reshape(15, 3, 24, 24) == host.images).all()
    assert device.labels == host.labels.tolist()


def test_skipped_images_are_named_and_counted(class_folder, tmp_path):
    folder = class_folder({"a": 12, "b": 3})
    for name in ("a/001.jpg", "b/002.jpg"):
        (folder / name).write_bytes(b"broken")
    dataset = open_dataset(folder)
    with pytest.raises(DataError, match=r"a/001\.jpg"):
        evalset_format.pack(dataset, range(15), SMALL, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert evalset_format.pack(dataset, range(15), SMALL, tmp_path / "x", skip_bad=True) == (
        "a/001.jpg",
        "b/002.jpg",
    )
    packed = evalset_format.read(tmp_path / "x")
    assert packed.labels.tolist() == [0] * 11 + [1] * 2
    assert (packed.images[12] == pixels(dataset.image(13), SMALL)).all()
    assert Packed(str(tmp_path / "x")).count == 13


def test_one_channel(dataset, tmp_path):
    evalset_format.pack(dataset, [0], replace(SMALL, mean=(0.5,), std=(0.5,)), tmp_path / "x")
    assert evalset_format.read(tmp_path / "x").images.shape == (1, 24, 24, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "digest"),
        (lambda data: data[:-9] + b"\x07" + data[-8:], "digest"),
        (lambda data: b"PK\x03\x04" + data, "no packed evaluation set"),
        (lambda data: data[:8] + struct.pack("<Q", 1 << 60) + data[16:], "header is broken"),
        (lambda data: data[:60], "header is broken"),
        (lambda data: data.replace(b'"images":2', b'"images":3'), "header is broken"),
        (lambda data: data.replace(b'"schema":1', b'"schema":7'), "schema is 7"),
        (lambda data: data.replace(b'"std"', b'"sdt"'), "header is broken"),
        (lambda data: b"", "no packed evaluation set"),
    ],
)
def test_damaged_files_are_named(dataset, tmp_path, damage, message):
    path = tmp_path / "eval.images"
    evalset_format.pack(dataset, [0, 1], SMALL, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"eval\.images cannot be used: .*{message}"):
        evalset_format.read(path)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        evalset_format.read(tmp_path / "x")
