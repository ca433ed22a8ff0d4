"""A folder, archive or list opens as the same data set; ambiguous or missing sources are errors."""

import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeship.calibration import manifest
from edgeship.calibration.datasets import open_dataset
from edgeship.toolkit.core.artifact import sha256_bytes
from edgeship.toolkit.core.errors import DataError


def pack_zip(folder, out, prefix=""):
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*"), reverse=True):  # the order of members is irrelevant
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return out


def pack_tar(folder, out, prefix="", mode="w"):
    with tarfile.open(out, mode) as archive:
        archive.add(folder, prefix or ".")
    return out


def shape(dataset):
    """Return names below the class folders, labels and bytes."""
    digests = [dataset.digest(index) for index in range(len(dataset))]
    names = ["/".join(item.name.split("/")[-2:]) for item in dataset.items]
    return dataset.classes, names, dataset.labels.tolist(), digests


@pytest.fixture
def folder(class_folder):
    return class_folder({"dog": 2, "cat": 3})


def test_folder_has_sorted_classes_and_names(folder, jpeg):
    dataset = open_dataset(folder, labelled=True)
    assert dataset.classes == ("cat", "dog")
    assert [(item.name, item.label) for item in dataset.items] == [
        ("cat/000.jpg", 0),
        ("cat/001.jpg", 0),
        ("cat/002.jpg", 0),
        ("dog/000.jpg", 1),
        ("dog/001.jpg", 1),
    ]
    assert dataset.name == "data"
    assert dataset.digest(3) == sha256_bytes(jpeg(0))
    assert dataset.size_bytes(3) == len(jpeg(0))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda f, t: pack_zip(f, t / "a.zip"), id="zip"),
        pytest.param(lambda f, t: pack_zip(f, t / "a.zip", "train/"), id="zip with a wrapping folder"),
        pytest.param(lambda f, t: pack_zip(f, t / "a.zip", "a/train/"), id="zip with two wrapping folders"),
        pytest.param(lambda f, t: pack_tar(f, t / "a.tar"), id="tar"),
        pytest.param(lambda f, t: pack_tar(f, t / "a.tar.gz", "root", "w:gz"), id="tar.gz with a root"),
        pytest.param(lambda f, t: pack_tar(f, t / "a.tgz", mode="w:gz"), id="tgz"),
        pytest.param(lambda f, t: Path(shutil.copytree(f, t / "b" / "val")).parent, id="wrapping folder"),
        pytest.param(lambda f, t: f"{pack_zip(f, t / 'a.zip', 'val/')}/val", id="a folder inside a zip"),
        pytest.param(lambda f, t: (t / "link").symlink_to(f) or t / "link", id="a link to the folder"),
    ],
)
def test_every_form_is_the_same_data_set(folder, tmp_path, make):
    other = open_dataset(make(folder, tmp_path))
    assert shape(other) == shape(open_dataset(folder))
    assert shape(pickle.loads(pickle.dumps(other))) == shape(other)


def test_hidden_and_foreign_files_are_ignored(folder):
    (folder / "README.txt").write_text("hello")
    (folder / "cat" / "notes.csv").write_text("hello")
    (folder / "cat" / ".DS_Store.jpg").write_bytes(b"")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.jpg").write_bytes(b"")
    dataset = open_dataset(folder)
    assert dataset.classes == ("cat", "dog")
    assert len(dataset) == 5
    assert [(each.file, each.reason) for each in dataset.unused] == [
        (".cache/", "hidden"),
        ("cat/.DS_Store.jpg", "hidden"),
        ("cat/notes.csv", "no image's suffix: .csv"),
        ("README.txt", "no image's suffix: .txt"),
    ]


def test_macos_forks_in_a_zip_are_ignored(folder, tmp_path):
    path = pack_zip(folder, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/cat/._000.jpg", b"fork")
    assert len(open_dataset(path)) == 5


def test_a_link_back_up_ends(folder):
    (folder / "cat" / "again").symlink_to(folder)
    assert len(open_dataset(folder)) == 5


def test_flat_images_have_no_labels(tmp_path, jpeg):
    (tmp_path / "flat").mkdir()
    for index in range(3):
        (tmp_path / "flat" / f"{index}.JPG").write_bytes(jpeg(index))
    dataset = open_dataset(tmp_path / "flat")
    assert dataset.classes == ()
    assert dataset.labels.tolist() == [-1, -1, -1]
    assert not dataset.labelled
    wrapped = open_dataset(pack_zip(tmp_path / "flat", tmp_path / "a.zip", "a/"))
    assert not wrapped.labelled
    with pytest.raises(DataError, match="have no labels"):
        open_dataset(tmp_path / "flat", labelled=True)


def test_one_class_calibrates_but_does_not_evaluate(class_folder):
    path = class_folder({"cat": 2})
    assert open_dataset(path).classes == ("cat",)
    with pytest.raises(DataError, match="one class only: cat") as caught:
        open_dataset(path, labelled=True)
    assert "two classes" in caught.value.hint


def test_digits_are_split_into_balanced_parts_by_index():
    train, test = open_dataset("digits:train", labelled=True), open_dataset("digits:test", labelled=True)
    assert (len(train), len(test), len(open_dataset("digits"))) == (1442, 355, 1797)
    assert np.bincount(test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert not {item.name for item in train.items} & {item.name for item in test.items}
    digests = [{data.digest(index) for index in range(len(data))} for data in (train, test)]
    assert not digests[0] & digests[1]
    image = train.image(0)
    assert (image.size, image.mode) == ((8, 8), "RGB")
    # scikit-learn's first digit, a zero: the first row 0 0 5 13 9 1 0 0 of 16 levels
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


def test_listing_digest_is_of_content_names_and_labels_and_fingerprint_notices_a_touch(class_folder):
    one, two = class_folder({"a": 2, "b": 1}, "one"), class_folder({"a": 2, "b": 1}, "two")
    assert open_dataset(one).listing_digest() == open_dataset(two).listing_digest()
    before = open_dataset(one).fingerprint()
    assert open_dataset(one).fingerprint() == before
    os.utime(one / "a" / "000.jpg", ns=(1, 1))
    assert open_dataset(one).fingerprint() != before
    (two / "b" / "000.jpg").rename(two / "b" / "001.jpg")
    assert open_dataset(one).listing_digest() != open_dataset(two).listing_digest()


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("{tmp}/missing", "no such file or folder", "data"),
        ("{tmp}/dtaa", "no such file or folder", "did you mean 'data'?"),
        ("{tmp}/data/cat/000.jpg/x", "no such file or folder", "check the path"),
        ("{tmp}/empty", "holds no images", "jpg"),
        ("{tmp}/notes.md", "neither a folder, an archive, a list nor an array", "digits"),
        ("{tmp}/notes.txt", "lists no images", "file,label"),
        ("{tmp}/a.zip/val", "holds no images", "jpg"),
        ("digits:tset", "no data named 'digits:tset'", "digits:test"),
        ("", "no images are given", "digits"),
        ("{tmp}/" + "x" * 300, "cannot open", "path"),
    ],
)
def test_what_is_not_there(folder, tmp_path, source, message, hint):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "notes.md").write_text("x")
    pack_zip(folder, tmp_path / "a.zip", "train/")
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(source.replace("{tmp}", str(tmp_path)))
    assert hint in caught.value.hint


def test_train_and_test_side_by_side_are_not_two_classes(folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "both" / split)
    with pytest.raises(DataError, match="several sets of images: test, train") as caught:
        open_dataset(tmp_path / "both")
    assert caught.value.hint.endswith("both/train")


def test_loose_images_beside_class_folders_are_named(folder, jpeg):
    (folder / "preview.jpg").write_bytes(jpeg(9))
    with pytest.raises(DataError, match=r"loose images \(preview.jpg\)"):
        open_dataset(folder)


def test_an_image_that_vanishes_is_an_error_at_reading(folder):
    dataset = open_dataset(folder)
    (folder / "cat" / "000.jpg").unlink()
    with pytest.raises(DataError, match=r"cat/000\.jpg: No such file"):
        dataset.read(0)


@pytest.mark.parametrize(
    "name", ["a.jfif", "a.JPE", "a.JPG", "a.webp", "a.bmp", "a.tif", "a.TIFF", "a.gif", "a.pgm", "a.pbm"]
)
def test_usual_suffixes_whatever_the_content(tmp_path, encode, picture, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(encode(picture(0), "PNG"))  # the content sets the format
    dataset = open_dataset(tmp_path / "data")
    assert (np.asarray(dataset.image(0)) == np.asarray(picture(0))).all()


def test_images_in_subfolders_belong_to_their_class(folder, jpeg):
    (folder / "cat" / "more" / "deep").mkdir(parents=True)
    (folder / "cat" / "more" / "deep" / "9.jpg").write_bytes(jpeg(9))
    dataset = open_dataset(folder)
    assert [item.label for item in dataset.items if item.name.endswith("deep/9.jpg")] == [0]
    assert dataset.classes == ("cat", "dog")


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_an_empty_class_keeps_the_index_of_those_after_it(folder, tmp_path, form):
    (folder / "cow").mkdir()
    packs = {
        "zip": lambda: pack_zip(folder, tmp_path / "a.zip"),
        "tar": lambda: pack_tar(folder, tmp_path / "a.tar"),
    }
    dataset = open_dataset(packs[form]() if form in packs else folder)
    assert dataset.classes == ("cat", "cow", "dog")
    assert dataset.labels.tolist() == [0, 0, 0, 2, 2]
    assert dataset.empty_classes == ("cow",)
    assert any("without images: cow" in note for note in dataset.notes)
    without = dataset.without_empty_classes()
    assert (without.classes, without.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1])


def test_a_class_of_unknown_files_is_a_class(folder):
    (folder / "cow").mkdir()
    (folder / "cow" / "1.heic").write_bytes(b"x")
    dataset = open_dataset(folder)
    assert dataset.classes == ("cat", "cow", "dog")
    assert [(each.file, each.reason) for each in dataset.unused] == [
        ("cow/1.heic", "no image's suffix: .heic")
    ]


def test_classes_take_the_order_of_names(folder):
    dataset = open_dataset(folder).reindexed(["dog", "cow", "cat"])
    assert dataset.labels.tolist() == [2, 2, 2, 0, 0]
    assert dataset.classes == ("dog", "cow", "cat")
    for names in (["dog"], ["dog", "cat", "cat"]):
        with pytest.raises(DataError, match="not once among"):
            open_dataset(folder).reindexed(names)


@pytest.mark.parametrize(
    ("folders", "use", "chosen"),
    [
        (("train", "val"), "train", "train"),
        (("train", "val"), "evaluate", "val"),
        (("Training", "Testing"), "evaluate", "Testing"),
        (("train", "val", "test"), "evaluate", "test"),
        (("train", "val", "test", "notes"), "train", "train"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "images/"])
def test_a_set_is_chosen_by_what_it_is_for(folder, tmp_path, jpeg, folders, use, chosen, wrapper):
    for number, name in enumerate(folders):
        place = shutil.copytree(folder, tmp_path / "both" / f"{wrapper}{name}")
        (place / "cat" / "own.jpg").write_bytes(jpeg(100 + number))
    dataset = open_dataset(tmp_path / "both", use=use, labelled=True)
    assert dataset.classes == ("cat", "dog")
    assert {item.name.split("/")[wrapper.count("/")] for item in dataset.items} == {chosen}
    assert dataset.name == f"both/{chosen}"
    assert [note for note in dataset.notes if f"{chosen} is used" in note]
    assert [each.file for each in dataset.unused] == [
        f"{wrapper}{name}/" for name in sorted(set(folders) - {chosen})
    ]
    assert shape(dataset) == shape(open_dataset(tmp_path / "both" / f"{wrapper}{chosen}"))
    assert shape(open_dataset(pack_zip(tmp_path / "both", tmp_path / "a.zip"), use=use)) == shape(dataset)


def test_a_test_set_without_labels_is_no_evaluation(folder, tmp_path, jpeg):
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / "both" / split)
    (tmp_path / "both" / "test").mkdir()
    (tmp_path / "both" / "test" / "1.jpg").write_bytes(jpeg(50))
    assert open_dataset(tmp_path / "both", use="evaluate").name == "both/val"


def test_a_set_that_is_missing_is_asked_for(folder, tmp_path):
    for split in ("val", "test"):
        shutil.copytree(folder, tmp_path / "both" / split)
    with pytest.raises(DataError, match="several sets of images: test, val"):
        open_dataset(tmp_path / "both", use="train")


def test_a_zip_with_backslashes(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.rglob("*"):
            name = "root\\" + str(path.relative_to(folder)).replace("/", "\\")
            if path.is_dir():
                archive.writestr(zipfile.ZipInfo(name + "\\"), b"")
            else:
                archive.writestr(name, path.read_bytes())
    assert shape(open_dataset(tmp_path / "a.zip")) == shape(open_dataset(folder))


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_other_packings_of_a_tar(folder, tmp_path, mode):
    path = pack_tar(folder, tmp_path / f"a.tar.{mode[2:]}", mode=mode)
    assert shape(open_dataset(path)) == shape(open_dataset(folder))


def test_a_linked_class_has_the_name_of_the_folder_itself(tmp_path, class_folder):
    path = class_folder({"b": 1, "c": 1})
    (path / "a").symlink_to(path / "b")
    dataset = open_dataset(path)
    assert [item.name for item in dataset.items] == ["b/000.jpg", "c/000.jpg"]
    assert ["listed already" in each.reason for each in dataset.unused] == [True]


def test_names_of_any_bytes(tmp_path, jpeg):
    for name in (b"a\xff.jpg", b"b\x1b[31m.jpg", b"c\n.jpg", b"d" * 251 + b".jpg"):
        (tmp_path / "data" / "cat").mkdir(parents=True, exist_ok=True)
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/data/cat/" + name)).write_bytes(jpeg(1))
    dataset = open_dataset(tmp_path / "data")
    chosen = manifest.select(dataset, 4, 0)
    manifest.write(tmp_path / "m.json", chosen)
    assert len(manifest.locate(manifest.read(tmp_path / "m.json"), dataset)) == 4
    (tmp_path / "data" / "cat" / "c\n.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"c\\n\.jpg is empty") as caught:
        [dataset.image(index) for index in range(4)]
    assert str(caught.value).isprintable()
    assert dataset.unreadable == {"cat/c\n.jpg": "is empty (0 bytes)"}
