"""Class name files in all supported formats."""

import json

import pytest
from measured import peak

from edgeship.calibration.class_names import index_labels, read_class_aliases
from edgeship.toolkit.core.errors import DataError

NAMES = ("tench", "great white shark, Carcharodon", "hen")
IDS = ("n01440764", "n01484850", "n01514859")
PAIRS = tuple(zip(IDS, NAMES, strict=True))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "\n".join(NAMES)),
        ("a.txt", "\ufeff" + "\r\n".join(NAMES) + "\r\n\r\n"),
        ("a.names", "".join(f"{index} {name}\n" for index, name in enumerate(NAMES))),
        ("a.txt", "".join(f"{index}: {name}\n" for index, name in reversed(list(enumerate(NAMES))))),
        ("a.json", json.dumps(NAMES)),
        ("a.json", json.dumps({str(index): name for index, name in enumerate(NAMES)})),
        ("a.json", json.dumps({name: index for index, name in enumerate(NAMES)})),
        ("a.json", json.dumps({"model_type": "resnet", "id2label": dict(enumerate(NAMES))})),
        ("a.json", json.dumps({str(index): pair for index, pair in enumerate(PAIRS)})),
        ("a.csv", "index,name\n" + "".join(f'{index},"{name}"\n' for index, name in enumerate(NAMES))),
        ("a.csv", "".join(f'"{name}",{index}\n' for index, name in reversed(list(enumerate(NAMES))))),
        ("a.csv", "".join(f"{index};{name}\n" for index, name in enumerate(NAMES))),
        (
            "a.tsv",
            "id\twnid\tname\n" + "".join(f"{i}\t{pair[0]}\t{pair[1]}\n" for i, pair in enumerate(PAIRS)),
        ),
        ("a.csv", "name\n" + "".join(f'"{name}"\n' for name in NAMES)),
    ],
)
def test_every_form_has_the_same_names(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert tuple(each[-1] for each in read_class_aliases(tmp_path / name)) == NAMES


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_index.json", json.dumps({str(index): pair for index, pair in enumerate(PAIRS)})),
        ("synset_words.txt", "".join(f"{each} {name}\n" for each, name in PAIRS)),
    ],
)
def test_both_names_of_imagenet_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_class_aliases(tmp_path / name) == PAIRS


def test_names_may_be_numbers_or_alike(tmp_path):
    (tmp_path / "a.txt").write_text("crane\ncrane\n3 of spades\n")  # ImageNet has two classes named crane
    assert [each[-1] for each in read_class_aliases(tmp_path / "a.txt")] == ["crane", "crane", "3 of spades"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "no class names|no list"),
        ("a.txt", "cat\n\ndog\n", "empty line"),
        ("a.json", '{"0": "a", "2": "b"}', "are not 0 to 1"),
        ("a.json", '{"999999999999": "a"}', "is no index"),
        ("a.json", '{"a": 10000000000000000000}', "is no index"),
        ("a.json", '["a", 5]', "is no name"),
        ("a.json", '"cat"', "neither a list nor"),
        ("a.json", "[" * 100_000, "no list of class names"),
        ("a.json", "{", "no list of class names"),
        ("a.csv", "0,a\n0,b\n", "occurs twice"),
    ],
)
def test_what_is_no_list_of_names(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with peak() as used, pytest.raises(DataError, match=message) as caught:
        read_class_aliases(tmp_path / name)
    assert caught.value.hint and used.seconds < 2 and used.megabytes < 200


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_class_aliases(tmp_path / "a.txt")


def test_labels_are_indices_or_names():
    assert index_labels(["2", "00", "1.0", "+1"], "x") == (("0", "1", "2"), [2, 0, 1, 1])
    assert index_labels(["2", "a"], "x") == (("2", "a"), [0, 1])
    assert index_labels(["1.5", "0.5"], "x") == (("0.5", "1.5"), [1, 0])
