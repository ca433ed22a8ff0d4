"""Every command, snippet and output of README and docs runs, in a folder like a reader's."""

import re
import shutil
import signal

import pytest
from loopback import running

pytest.importorskip("sybil", reason="needs sybil")
import workshop
from workshop import LANGUAGES, MARK, PAGES, REASONS, ROOT, Workshop, mark

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)


def blocks(page):
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        before = MARK.search(text[: match.start()])
        yield match[1], match[2], before[1] if before else ""


def named(page):
    return str(page.relative_to(ROOT))


def with_marks(*marks):
    return [
        page for page in PAGES if any(language != "text" and m in marks for language, _, m in blocks(page))
    ]


@pytest.fixture(scope="session")
def materials(tmp_path_factory):
    folder = tmp_path_factory.mktemp("materials")
    workshop.materials(folder)
    return folder


@pytest.fixture
def folder(materials, tmp_path, tmp_path_factory, monkeypatch):
    folder = tmp_path / "reader"
    shutil.copytree(materials, folder)
    store = tmp_path_factory.getbasetemp() / "store"  # pages share results
    for name, value in {
        "EDGESHIP_STORE": store,
        "HOME": tmp_path / "home",
        "XDG_CONFIG_HOME": tmp_path / "config",
        "COLUMNS": 80,
        "FORCE_COLOR": 1,  # a terminal, for rich
        "PYTHONPATH": ROOT,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(folder)
    before = signal.getsignal(signal.SIGTERM)
    yield folder
    signal.signal(signal.SIGTERM, before)


def run(page, folder, marks, park=None):
    shop = Workshop(folder, park)
    for example in shop.examples(page):
        if mark(example) in ("", "output", *marks):
            example.evaluate()


@pytest.mark.parametrize("page", with_marks(""), ids=named)
def test_examples(page, folder):
    run(page, folder, ())


@pytest.mark.slow
@pytest.mark.parametrize("page", with_marks("slow"), ids=named)
def test_slow_examples(page, folder):
    run(page, folder, ("slow",))


@pytest.mark.parametrize("page", with_marks("device"), ids=named)
def test_examples_with_a_device(page, folder, tmp_path, monkeypatch):
    with running(tmp_path, monkeypatch) as park:
        run(page, folder, ("device",), lambda: park)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_is_run_or_says_why_not(page):
    for language, text, note in blocks(page):
        assert language in LANGUAGES, text
        assert language == "console" or not re.search(r"^\$ ", text, re.M), text
        if note.startswith("not run"):
            assert note.removeprefix("not run: ") in REASONS, text


@pytest.mark.parametrize(
    ("expected", "found"),
    [(["a 1.5 ms", "...", "b"], True), (["b", "a 2 ms"], False), (["a 2 s"], False), (["−2 b"], False)],
)
def test_outputs_are_compared_line_by_line_and_in_order(expected, found):
    try:
        workshop.compare(expected, "a  2.25 ms\nc\nb\n", "")
    except AssertionError:
        assert not found
    else:
        assert found


def test_a_command_with_output_below_and_a_continued_line_are_read():
    block = "$ one \\\n    --two    # exit code 3\nline\n$ three\n"
    assert list(workshop.commands(block)) == [("one --two    # exit code 3", ["line"]), ("three", [])]
