"""CSV lists of files and labels."""

import pytest
from measured import peak

from edgeship.calibration import csv_list
from edgeship.calibration.datasets import open_dataset
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.pipeline.fingerprints import fingerprint


@pytest.fixture
def write(tmp_path, jpeg):
    """Write a CSV next to three images 0.jpg, 1.jpg and sub/2.jpg."""
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


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", "   "])
@pytest.mark.parametrize("header", ["", "file{}label\n", "#image{}class\n"])
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".tsv", ".lst"])
def test_every_separator_with_and_without_a_header(write, separator, header, suffix):
    lines = [
        f"{name}{separator}{label}"
        for name, label in (("1.jpg", "cat"), ("0.jpg", "dog"), ("sub/2.jpg", "cat"))
    ]
    path = write(header.format(separator) + "\n".join(lines))
    dataset = open_dataset(path.rename(path.with_suffix(suffix)))
    assert [item.name for item in dataset.items] == ["1.jpg", "0.jpg", "sub/2.jpg"]
    assert (dataset.classes, dataset.labels.tolist()) == (("cat", "dog"), [0, 1, 0])


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        pytest.param('"a b.jpg" 1\n0.jpg 0\n', ("0", "1"), [1, 0], id="a quoted name with a space"),
        pytest.param("a b.jpg 1\n0.jpg 0\n", ("0", "1"), [1, 0], id="a name with a space"),
        pytest.param("a b.jpg\n0.jpg\n", (), [-1, -1], id="names alone"),
        pytest.param('"a b.jpg","tabby, cat"\n0.jpg,dog\n', ("dog", "tabby, cat"), [1, 0], id="a comma"),
        pytest.param("a b.jpg\ttabby, cat\n0.jpg\tdog;x\n", ("dog;x", "tabby, cat"), [1, 0], id="tabs"),
        pytest.param("a b.jpg 10.0\n0.jpg 2.0\n", tuple(map(str, range(11))), [10, 2], id="10.0 is 10"),
        pytest.param("label,file\n1,a b.jpg\n0,0.jpg\n", ("0", "1"), [1, 0], id="label first"),
        pytest.param("1,a b.jpg\n0,0.jpg\n", ("0", "1"), [1, 0], id="label first, no header"),
        pytest.param(
            "Width;ClassId;Path\n9;1;a b.jpg\n9;0;0.jpg\n", ("0", "1"), [1, 0], id="columns by name"
        ),
        pytest.param(".\\a b.jpg,1\nsub\\2.jpg,0\n", ("0", "1"), [1, 0], id="backslashes"),
        pytest.param("{tmp}/a b.jpg,1\n0.jpg,0\n", ("0", "1"), [1, 0], id="absolute"),
    ],
)
def test_forms_of_lines(write, tmp_path, jpeg, text, classes, labels):
    (tmp_path / "a b.jpg").write_bytes(jpeg(9))
    dataset = open_dataset(write(text.replace("{tmp}", str(tmp_path))))
    assert (dataset.classes, dataset.labels.tolist()) == (classes, labels)
    assert dataset.read(0) == jpeg(9)


def test_utf16_as_spreadsheets_write_it(write):
    assert len(open_dataset(write("0.jpg\ta\n1.jpg\tb\n", "utf-16"))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("0.jpg,1000000000000\n", "label 1000000000000 is no class", id="1e12"),
        pytest.param("0.jpg,100000\n", "is no class", id="too large"),
        pytest.param("0.jpg," + "9" * 5000 + "\n", "is no class", id="5000 digits"),
        pytest.param("0.jpg,-1\n1.jpg,0\n", "label -1 is no class", id="negative"),
        pytest.param(
            "file,a,b\n0.jpg,1,2\n", "label column is ambiguous: file, a, b", id="columns without a name"
        ),
        pytest.param("0.jpg,1\n./0.jpg,2\n", "0.jpg twice", id="twice in two spellings"),
        pytest.param("x" * 300 + ".jpg,1\n", "unknown file", id="a name too long"),
        pytest.param("0\0.jpg,1\n", "unknown file|NUL", id="NUL"),
        pytest.param('"' + "x" * 200_000 + ".jpg,1\n", "no list of files|unknown", id="an open quote"),
    ],
)
def test_what_is_no_list_is_refused_fast(write, text, message):
    with peak() as used, pytest.raises(DataError, match=message) as caught:
        open_dataset(write(text))
    assert used.seconds < 2 and used.megabytes < 100
    assert len(str(caught.value)) < 1000 and caught.value.hint


def test_the_files_of_any_list_are_part_of_its_fingerprint(write, tmp_path):
    path = write("0.jpg 1\nsub\\2.jpg 0\ngone.jpg 0\n").rename(tmp_path / "list.txt")
    assert csv_list.listed_files(path) == ["0.jpg", "sub/2.jpg"]
    assert csv_list.listed_files(write("a\nb\n")) == []
    before = fingerprint(path, tmp_path / "memory").content
    (tmp_path / "sub" / "2.jpg").write_bytes(b"changed")
    assert fingerprint(path, tmp_path / "memory").content != before


def test_a_label_without_end_does_not_fill_the_terminal(write):
    with pytest.raises(DataError, match="one class only") as caught:
        open_dataset(write("0.jpg,x\x1b" + "y" * 5000 + "\n"), labelled=True)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300
