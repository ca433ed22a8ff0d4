"""CSV lists of files and labels."""

import pytest

from calibration.datasets import open_dataset
from toolkit.core.errors import DataError


@pytest.fixture
def write(tmp_path, jpeg):
    """Write a CSV beside three images 0.jpg, 1.jpg and sub/2.jpg."""
    (tmp_path / "sub").mkdir()
    for index, name in enumerate(("0.jpg", "1.jpg", "sub/2.jpg")):
        (tmp_path / name).write_bytes(jpeg(index))

    def make(text, encoding="utf-8"):
        path = tmp_path / "list.csv"
        path.write_text(text, encoding=encoding)
        return path

    return make


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        pytest.param("1.jpg,cat\n0.jpg,dog\nsub/2.jpg,cat\n", ("cat", "dog"), [0, 1, 0], id="names"),
        pytest.param("file,label\n1.jpg,2\n0.jpg,0\nsub/2.jpg,0\n", ("0", "1", "2"), [2, 0, 0], id="numbers"),
        pytest.param(
            "\ufefffile,label\n1.jpg, b\n0.jpg,a\n\nsub/2.jpg,b", ("a", "b"), [1, 0, 1], id="untidy"
        ),
        pytest.param("image\n1.jpg\n0.jpg\nsub/2.jpg\n", (), [-1, -1, -1], id="no labels"),
    ],
)
def test_order_is_the_lists_and_labels_are_understood(write, text, classes, labels):
    dataset = open_dataset(write(text))
    assert [item.name for item in dataset.items] == ["1.jpg", "0.jpg", "sub/2.jpg"]
    assert dataset.classes == classes
    assert dataset.labels.tolist() == labels
    assert dataset.name == "list"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("0.jpg,a\n7.jpg,a\n8.jpg,b\n", r"2 unknown file\(s\): 7.jpg, 8.jpg", id="unknown files"),
        pytest.param("0.jpg,a\n1.jpg\n", "no label for 1.jpg", id="a label is missing"),
        pytest.param("0.jpg,a\n1.jpg,b\n0.jpg,b\n", "lists 0.jpg twice", id="twice"),
        pytest.param("file,label\n", "lists no images", id="only a header"),
        pytest.param("", "lists no images", id="empty"),
    ],
)
def test_bad_lists_are_named(write, text, message):
    with pytest.raises(DataError, match=message):
        open_dataset(write(text))


def test_not_utf8(write):
    with pytest.raises(DataError, match="not a text in UTF-8"):
        open_dataset(write("é.jpg,a\n", "latin-1"))


def test_missing_list(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "list.csv")
