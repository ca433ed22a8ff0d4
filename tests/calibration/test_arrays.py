"""Image arrays: every layout opens as the same data set; non-pixels and ambiguous shapes are errors."""

import pickle

import numpy as np
import pytest

from edgeship.calibration.datasets import open_dataset
from edgeship.toolkit.core.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 0, 2, 1])


def images(dataset):
    return np.stack([np.asarray(dataset.image(index)) for index in range(len(dataset))])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(PIXELS, id="NHWC"),
        pytest.param(PIXELS.transpose(0, 3, 1, 2), id="NCHW"),
        pytest.param(np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2)), id="NCHW contiguous"),
        pytest.param(np.asfortranarray(PIXELS), id="Fortran order"),
        pytest.param(np.concatenate([PIXELS, 255 - PIXELS[..., :1]], 3), id="RGBA"),
    ],
)
def test_npy_of_any_layout(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    dataset = open_dataset(tmp_path / "a.npy")
    assert (images(dataset) == PIXELS).all()
    assert not dataset.labelled and dataset.name == "a"
    assert dataset.size_bytes(0) == len(dataset.read(0))
    assert (images(pickle.loads(pickle.dumps(dataset))) == PIXELS).all()


@pytest.mark.parametrize("values", [PIXELS[..., 0], PIXELS[..., :1], PIXELS[:, None, :, :, 0]])
def test_grey(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    assert (images(open_dataset(tmp_path / "a.npy")) == PIXELS[..., :1]).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("arrays", "labels"),
    [
        ({"x": PIXELS, "y": LABELS}, LABELS),
        ({"arr_0": PIXELS, "arr_1": LABELS.astype(np.uint8)}, LABELS),
        ({"images": PIXELS, "labels": LABELS[:, None], "ids": LABELS[::-1]}, LABELS),
        ({"data": PIXELS, "target": np.array(["c", "a", "b", "a", "c", "b"])}, LABELS),
        ({"data": PIXELS, "target": np.array([b"c", b"a", b"b", b"a", b"c", b"b"])}, LABELS),
        ({"images": PIXELS, "ids": LABELS}, [-1] * 6),
    ],
)
def test_npz_with_labels(tmp_path, save, arrays, labels):
    save(tmp_path / "a.npz", **arrays)
    dataset = open_dataset(tmp_path / "a.npz")
    assert (images(dataset) == PIXELS).all()
    assert dataset.labels.tolist() == list(labels)
    assert [each.file for each in dataset.unused] == [key for key in arrays if key == "ids"]


@pytest.mark.parametrize("keys", ["x_{}/y_{}", "{}_images/{}_labels", "x{}/y{}"])
def test_sets_in_an_npz_are_chosen_by_use(tmp_path, keys):
    image, label = keys.split("/")
    arrays = {}
    for name, part in (("train", slice(4)), ("test", slice(4, 6))):
        name = name.title() if image == "x{}" else name
        arrays |= {image.format(name): PIXELS[part], label.format(name): LABELS[part]}
    np.savez(tmp_path / "a.npz", **arrays)
    train, test = (open_dataset(tmp_path / "a.npz", use=use) for use in ("train", "evaluate"))
    assert (images(train) == PIXELS[:4]).all() and train.labels.tolist() == [2, 0, 1, 0]
    assert (images(test) == PIXELS[4:]).all() and test.labels.tolist() == [2, 1]
    assert len(test.notes) == 1 and len(test.unused) == 2
    with pytest.raises(DataError, match="several sets"):
        open_dataset(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (PIXELS.astype(np.float32) / 255, "float32 .*normalization of floats"),
        (PIXELS.astype(np.int64), "int64 .*expected uint8"),
        (PIXELS[0], "one image"),
        (PIXELS[:, :3], "may be"),
        (PIXELS.reshape(6, -1), "neither"),
        (PIXELS[:0], "expected uint8"),
        (PIXELS[..., :2], "neither"),
        (np.array([{}], object), "object|Python"),
    ],
)
def test_what_is_no_array_of_images(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path / "a.npy")
    assert "uint8" in caught.value.hint


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": LABELS}, "no array of images: y int64"),
        ({"x": PIXELS, "images": PIXELS[:5], "x2": PIXELS}, "several arrays of images: x, x2"),
        ({"x": PIXELS.astype(np.float16), "y": LABELS}, "float16"),
        ({"x": PIXELS, "y": LABELS - 1}, "label -1 is no class"),
        ({"x": PIXELS, "y": LABELS + 10**12}, "1000000000000.* is no class"),
        ({"x": PIXELS, "y": LABELS / 2}, "labels 'y' are float64"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "a.npz")


def test_a_shape_that_is_not_there(tmp_path):
    head = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999999, 999, 999, 3), }"
    )
    (tmp_path / "a.npy").write_bytes(head.ljust(127) + b"\n" + b"x" * 100)
    with pytest.raises(DataError, match="no readable array"):
        open_dataset(tmp_path / "a.npy")
