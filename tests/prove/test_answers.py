"""Outputs of applications: every malformed line, command and tensor is an error that names it."""

import json
import sys

import numpy as np
import pytest

from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.prove import answers

NAMES, LABELS = ["a.jpg", "b/a.jpg", "b/c.png"], ["kiwi", "sour lime"]


def row(image, **values):
    return json.dumps({"image": image, **values})


def read(tmp_path, *lines):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(lines))
    return answers.from_lines(file, NAMES, LABELS)


def test_lines_in_any_order_with_paths(tmp_path):
    given = read(
        tmp_path,
        row("/x/b/c.png", logits=[5, 6]),
        "",
        row("a.jpg", logits=[1, 2]),
        row("b\\a.jpg", logits=[3, 4]),
    )
    assert given.kind == "logits"
    assert given.values.tolist() == [[1, 2], [3, 4], [5, 6]]
    classes = read(tmp_path, row("a.jpg", **{"class": "sour  lime"}), row("b/a.jpg", **{"class": 0}),
                   row("c.png", classes=[{"index": 1, "label": "sour lime"}]))  # fmt: skip
    assert classes.kind == "classes"
    assert classes.values.tolist() == [1, 0, 1]


GOOD = [row("a.jpg", logits=[1, 2]), row("b/a.jpg", logits=[1, 2])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (row("b/c.png", logits=[1, 2])[:-5], "line 3.*cut off"),
        ("hello", "line 3 is no answer"),
        ("[1, 2]", "line 3 is no answer"),
        (row("b/c.png", logits=[1, 2, 3]), "3 logits, expected 2"),
        ('{"image": "b/c.png", "logits": [NaN, 1]}', "NaN"),
        ('{"image": "b/c.png", "logits": [1e999, 1]}', "infinite"),
        (row("b/c.png", logits=["x", 1]), "no list of numbers"),
        (row("b/c.png", logits=None), "1 logits, expected 2|no list"),
        (row("a.jpg", logits=[1, 2]), "twice"),
        (row("d.png", logits=[1, 2]), "none of the images"),
        (row("b/c.png"), "none of logits"),
        (row("b/c.png", logits=[1, 2], probabilities=[1, 2]), "logits and probabilities"),
        (row("b/c.png", probabilities=[0.5, 0.5]), "several kinds"),
        (row("b/c.png", **{"class": 2}), "class 2, expected 0 to 1"),
        (row("b/c.png", **{"class": "kiwis"}), "no class named"),
        (row("b/c.png", **{"class": None}), "the class is None"),
        ("", "no answer for 1 of 3 images: b/c"),
        ("[" * 100_000, "line 3 is no answer"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, *GOOD, line)


def test_bad_files(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (tmp_path / "x.jsonl", "UTF-8"),
        (tmp_path / "none", "cannot read"),
        (tmp_path, "cannot read"),
    ):
        with pytest.raises(DataError, match=message):
            answers.from_lines(path, NAMES, LABELS)


def program(tmp_path, code):
    (tmp_path / "app.py").write_text(f"import sys, time\n{code}\n")
    return f"{sys.executable} {tmp_path / 'app.py'}"


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("print('noise'); print('[1, 2.5]'); print('bye')", [1, 2.5]),
        ("print('loading'); print('{\"logits\": [1, 2.5]}')", [1, 2.5]),
        ("print('sour lime')", 1),
        ("print(1)", 1),
    ],
)
def test_commands_print_their_answer_anywhere(tmp_path, code, values):
    given = answers.from_command(program(tmp_path, code) + " {image}", {"a.jpg": b""}, LABELS)
    assert given.values.tolist() == [values]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('no camera')", "exit code 1: no camera"),
        ("pass", "no answer: it is empty"),
        ("print('done')", "no answer: done"),
        ("time.sleep(600)", "took over 0.5 s"),
        ("import os; os.fork(); time.sleep(600)", "took over 0.5 s"),
        ("print('[1, 2, 3]')", "3 logits, expected 2"),
        ("sys.stdout.buffer.write(b'\\xff' * 9)", "no answer"),
    ],
)
def test_commands_that_fail(tmp_path, code, message):
    timeout_s = 0.5 if "sleep" in code else 120.0
    with pytest.raises(DataError, match=message):
        answers.from_command(program(tmp_path, code) + " {image}", {"a.jpg": b""}, LABELS, timeout_s)


def test_an_endless_output_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "_MOST_BYTES", 2**20)
    for stream in ("stdout", "stderr"):
        command = program(tmp_path, f"while True: print('x' * 999, file=sys.{stream})") + " {image}"
        with pytest.raises(DataError, match="printed over 1 MB"):
            answers.from_command(command, {"a.jpg": b""}, LABELS)


def test_commands_that_cannot_run(tmp_path):
    for command in ("app", "app 'x", ""):
        with pytest.raises(RecipeError):
            answers.from_command(command, {"a.jpg": b""}, LABELS)
    for command in (f"{tmp_path}/none {{image}}", f"{tmp_path} {{image}}"):
        with pytest.raises(DataError, match="cannot start"):
            answers.from_command(command, {"a.jpg": b""}, LABELS)


def test_tensors(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(12, dtype=np.float16).reshape(1, 3, 2, 2))
    (tmp_path / "b").mkdir()
    np.arange(12, dtype="<f4").tofile(tmp_path / "b" / "a.bin")
    np.save(tmp_path / "b" / "c.png.npy", np.ones((2, 2, 3), np.uint8))
    given = answers.from_tensors(tmp_path, NAMES, (3, 2, 2))
    assert given.values.shape == (3, 12)
    assert given.values[:2].tolist() == [list(range(12))] * 2
    for values, message in (
        (np.ones(11), "expected 12"),
        (np.full(12, np.nan), "NaN"),
        (np.ones(12, complex), "type"),
    ):
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(DataError, match=message):
            answers.from_tensors(tmp_path, NAMES, (3, 2, 2))
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(DataError, match="no array"):
        answers.from_tensors(tmp_path, NAMES, (3, 2, 2))
    (tmp_path / "a.npy").unlink()
    with pytest.raises(DataError, match="no tensor of a"):
        answers.from_tensors(tmp_path, NAMES, (3, 2, 2))
    with pytest.raises(DataError, match="no folder"):
        answers.from_tensors(tmp_path / "none", NAMES, (3, 2, 2))
