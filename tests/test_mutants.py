"""The list of mutants follows the code: each module, test file and text of it exists."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_list_names_texts_and_files_that_exist(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "mutants"))
    import run

    try:
        texts = {module: (ROOT / module).read_text(encoding="utf-8") for module in run.TESTS}
        tests = {name for names in run.TESTS.values() for name in names}
        for module, names, before, _ in run.REVIEW:
            assert before in (ROOT / module).read_text(encoding="utf-8"), (module, before)
            tests.update(names)
    finally:
        for name in ("run", "mutations"):
            sys.modules.pop(name, None)
    assert all(texts.values())
    assert [name for name in tests if not (ROOT / "tests" / name).exists()] == []
