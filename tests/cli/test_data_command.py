"""`edgeship data check`: unused files are listed with reasons, in a terminal and as JSON."""

import json

import numpy as np
import pytest
from PIL import Image

from edgeship.toolkit.cli import app as cli


@pytest.fixture
def source(tmp_path):
    """Return folders with two classes of four pictures, and unusable files."""
    rng = np.random.default_rng(0)
    for folder in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{index}.jfif", format="JPEG")
    train = tmp_path / "data" / "train"
    (train / "ant").mkdir()
    (train / "dog" / "empty.jpg").write_bytes(b"")
    (train / "dog" / "no\x1b[31m.jpg").write_bytes(b"hello")
    for number in range(5):
        (train / "dog" / f"{number}.xml").write_bytes(b"")
    (train / "cat" / "._0.jpg").write_bytes(b"fork")
    (train / "cat" / "gone.jpg").symlink_to("/nowhere")
    return tmp_path / "data"


def check(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(("data", "check", *arguments))
    return left.value.code, capsys.readouterr().out


def test_every_file_that_is_not_used_has_its_reason(source, capsys):
    code, out = check(capsys, str(source), "--evaluation", str(source), "--size", "32", "--json")
    assert code == 1  # files that cannot be decoded
    train, val = json.loads(out)["sources"]
    assert (train["name"], train["images"], train["unreadable"]) == ("data/train", 10, 2)
    assert (val["name"], val["images"], val["unreadable"]) == ("data/val", 8, 0)
    assert (train["classes"], train["empty_classes"]) == (["ant", "cat", "dog"], ["ant"])
    assert {each["file"]: each["reason"] for each in train["unused"]} == {
        "train/cat/._0.jpg": "hidden",
        "train/cat/gone.jpg": "a broken link",
        **{f"train/dog/{number}.xml": "no image's suffix: .xml" for number in range(5)},
        "val/": "not in train: 8 images",
        "train/dog/empty.jpg": "is empty (0 bytes)",
        "train/dog/no\x1b[31m.jpg": "is not an image",
    }
    used = {name for each in (train, val) for name in [item["file"] for item in each["unused"]]}
    files = {str(path.relative_to(source)) for path in source.rglob("*") if not path.is_dir()}
    assert len(files - used) == 16  # every other file is one of the images


def test_a_terminal_gets_counts_and_first_names_and_all_on_request(source, capsys):
    _, short = check(capsys, str(source), "--size", "32")
    assert "suffix: 5 (train/dog/0.xml, " in short
    assert "without images: ant" in short and "4.xml" not in short
    _, whole = check(capsys, str(source), "--size", "32", "--verbose")
    assert "4.xml" in whole
    assert "\x1b" not in short + whole
