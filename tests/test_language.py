"""Rules of prose (CONTRIBUTING.md, "Language"): openings of docstrings and banned words."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("edgeship", "toolkit", "quantize", "targets", "calibration", "docs", "tests")
SUFFIXES = {".py", ".md", ".toml", ".j2", ".js", ".css"}
BANNED = re.compile(
    r"(?<![a-z])"
    r"(told|tells|whoever|nobody|wish(?:es|ed)?|hand(?:s|ed) on|apart|beside|in vain|at work|said)"
    r"(?![a-z])",
    re.IGNORECASE,
)
OPENING = re.compile(r"(What|Whether|How|Where|Which|Who)\b")
ALLOWED = re.compile(r"\bdef test_\w+|\bapart_db\b")  # names of tests; a key of report.json


def files():
    top = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "mkdocs.yml")]
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES)
    texts = [*(path for path in top if path.exists()), *below]
    return sorted(str(path.relative_to(ROOT)) for path in texts if path != Path(__file__))


def documented(tree):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def violations(text, python):
    rows = []
    if python:
        for node in documented(ast.parse(text)):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if OPENING.match(first):
                rows.append((getattr(node, "lineno", 1), first))
    for number, line in enumerate(text.splitlines(), 1):
        if BANNED.search(ALLOWED.sub("", line)):
            rows.append((number, line.strip()))
    return sorted(rows)


@pytest.mark.parametrize("name", files())
def test_docstrings_open_with_a_verb_or_noun_and_no_banned_word_is_used(name):
    assert violations((ROOT / name).read_text(encoding="utf-8"), name.endswith(".py")) == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('"""Return the file."""\n', []),
        ('"""Whether it is."""\n', [1]),
        ('def f():\n    """How it is."""\n', [1]),
        ("x = 1  # as the user said\n", [1]),
        ("is_told = 1\n", [1]),
        ("def test_what_is_said():\n    besides = aside\n", []),
        ('print("Hands on")\n', [1]),
    ],
)
def test_the_rules_are_checked(text, lines):
    assert [number for number, _ in violations(text, True)] == lines
