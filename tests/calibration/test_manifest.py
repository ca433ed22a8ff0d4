"""The choice of calibration images: balanced, by seed, disjoint from evaluation, and verifiable."""

import json
from collections import Counter

import pytest

from edgeship.calibration import manifest
from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.manifest import select
from edgeship.toolkit.core.errors import DataError


def chosen(result):
    return {entry.file for entry in result.entries}


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits:train")


def test_classes_are_balanced_and_so_is_every_first_part(digits):
    result = select(digits, 104, seed=0)
    for count in (10, 50, 104):
        counts = Counter(entry.label for entry in result.entries[:count])
        assert set(counts) == set(range(10))
        assert max(counts.values()) - min(counts.values()) <= (count % 10 > 0)


def test_a_small_class_gives_all_and_the_others_the_rest(class_folder):
    dataset = open_dataset(class_folder({"a": 2, "b": 9, "c": 9}))
    counts = Counter(entry.label for entry in select(dataset, 14, seed=1).entries)
    assert counts == {0: 2, 1: 6, 2: 6}


def test_seed_decides_and_nothing_else(digits):
    one = select(digits, 50, seed=3)
    assert one == select(digits, 50, seed=3)
    assert len(chosen(one) & chosen(select(digits, 50, seed=4))) < 15
    assert chosen(one) < chosen(select(digits, 80, seed=3))


def test_the_choice_is_the_same_on_every_machine(digits):
    # Computed once from SHA-256; another number here would silently change everyone's calibration.
    assert [entry.file for entry in select(digits, 4, seed=0).entries] == [
        "1410.pgm",
        "1408.pgm",
        "0826.pgm",
        "0212.pgm",
    ]


def test_one_more_image_changes_at_most_one(class_folder, jpeg):
    folder = class_folder({"a": 30, "b": 30})
    before = select(open_dataset(folder), 20, seed=0)
    (folder / "a" / "new.jpg").write_bytes(jpeg(99))
    assert len(chosen(before) - chosen(select(open_dataset(folder), 20, seed=0))) <= 1


def test_entries_record_content(class_folder):
    dataset = open_dataset(class_folder({"a": 2, "b": 2}))
    result = select(dataset, 3, seed=0)
    for entry, index in zip(result.entries, manifest.locate(result, dataset), strict=True):
        assert entry.file == dataset.items[index].name
        assert entry.digest == dataset.digest(index)
        assert entry.size_bytes == len(dataset.read(index))
        assert entry.label == dataset.items[index].label
    assert (result.seed, result.source, result.source_digest) == (0, "data", dataset.listing_digest())


@pytest.mark.parametrize("count", [0, -1])
def test_no_images_asked(digits, count):
    with pytest.raises(DataError, match=f"cannot calibrate with {count} images"):
        select(digits, count, seed=0)


def test_fewer_images_than_asked_names_the_count(class_folder):
    dataset = open_dataset(class_folder({"a": 2, "b": 2}))
    with pytest.raises(DataError, match=r"4 usable images.* 5 ") as caught:
        select(dataset, 5, seed=0)
    assert "select.images to 4" in caught.value.hint


def test_bad_images_are_passed_over_when_asked(class_folder):
    folder = class_folder({"a": 5, "b": 5})
    bad = select(open_dataset(folder), 1, seed=0).entries[0].file
    (folder / bad).write_bytes(b"broken")
    dataset = open_dataset(folder)
    assert bad in chosen(select(dataset, 4, seed=0))
    result = select(dataset, 4, seed=0, skip_bad=True)
    assert bad not in chosen(result)
    assert Counter(entry.label for entry in result.entries)[0] in (1, 2)
    with pytest.raises(DataError, match=r"9 usable images.* 10"):
        select(dataset, 10, seed=0, skip_bad=True)
    some = select(dataset, 10, seed=0, skip_bad=True, at_most=True)
    assert len(some.entries) == len(dataset) - 1 and bad not in chosen(some)


def test_overlap_by_content_is_an_error_whatever_the_names(class_folder, tmp_path):
    train = open_dataset(class_folder({"a": 6, "b": 6}, "train"))
    other = open_dataset(class_folder({"x": 6, "y": 6}, "test", first_seed=100))
    select(train, 12, seed=0, exclude=other)
    (class_folder({"x": 0}, "more") / "x" / "renamed.jpg").write_bytes(train.read(3))
    with pytest.raises(DataError, match=r"1 of 12 calibration .* a/003\.jpg = x/renamed\.jpg") as caught:
        select(train, 12, seed=0, exclude=open_dataset(tmp_path / "more"))
    assert "not evaluated on" in caught.value.hint


def test_the_same_source_for_both_is_an_error(digits):
    with pytest.raises(DataError, match=r"20 of 20 calibration images .* and 17 more"):
        select(digits, 20, seed=0, exclude=open_dataset("digits"))
    select(digits, 20, seed=0, exclude=open_dataset("digits:test"))


def test_only_images_of_equal_length_are_read_for_overlap(class_folder, monkeypatch):
    train = open_dataset(class_folder({"a": 3, "b": 3}, "train"))
    folder = class_folder({"x": 3}, "test", first_seed=50)
    (folder / "x" / "big.jpg").write_bytes(b"0" * 100_000)
    other, read = open_dataset(folder), []
    monkeypatch.setattr(type(other.store), "read", lambda self, name: read.append(name) or b"")
    manifest.check_disjoint(select(train, 6, seed=0), other)
    assert "x/big.jpg" not in read


def test_written_and_read_again(digits, tmp_path):
    result = select(digits, 20, seed=0)
    manifest.write(tmp_path / "manifest.json", result)
    assert manifest.read(tmp_path / "manifest.json") == result
    first = (tmp_path / "manifest.json").read_bytes()
    manifest.write(tmp_path / "manifest.json", select(digits, 20, seed=0))
    assert (tmp_path / "manifest.json").read_bytes() == first


def test_changed_and_missing_images_are_noticed(class_folder, jpeg):
    folder = class_folder({"a": 2, "b": 2})
    result = select(open_dataset(folder), 4, seed=0)
    (folder / "a" / "001.jpg").write_bytes(jpeg(77))
    with pytest.raises(DataError, match=r"a/001\.jpg in data"):
        manifest.locate(result, open_dataset(folder))
    (folder / "a" / "001.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 .*a/001\.jpg"):
        manifest.locate(result, open_dataset(folder))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data | {"schema": 9},
        lambda data: {"schema": 1},
        lambda data: data | {"entries": [{"file": "x"}]},
        lambda data: data | {"entries": 5},
        lambda data: [1],
    ],
)
def test_damaged_manifests_are_named(digits, tmp_path, damage):
    path = tmp_path / "manifest.json"
    manifest.write(path, select(digits, 2, seed=0))
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=r"manifest\.json"):
        manifest.read(path)
