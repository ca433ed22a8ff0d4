"""The file that is shipped: one, reproducible, in Python 3.8, of small modules, its commands documented."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeship.targets import runner
from edgeship.targets.runner import cli
from edgeship.toolkit.core import signals

FOLDER = Path(runner.__file__).parent
ROOT = FOLDER.parent.parent
SHARED = Path(signals.__file__)
MODULES = [*sorted(FOLDER.rglob("*.py")), SHARED]


def test_the_same_bytes_every_time_and_nothing_of_this_machine_in_them():
    assert runner.source() == runner.source()
    assert str(Path(runner.__file__).parent).encode() not in runner.source()


def test_the_archive_holds_every_module(runner_file):
    with zipfile.ZipFile(runner_file) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            "__main__.py",
            "edgeship/__init__.py",
            "edgeship/targets/__init__.py",
            "edgeship/toolkit/__init__.py",
            "edgeship/toolkit/core/__init__.py",
            *(f"edgeship/{path.relative_to(ROOT)}" for path in MODULES),
        }
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_syntax_is_python_3_8_and_imports_are_standard(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "edgeship.toolkit.core":
            assert [name.name for name in node.names] == [SHARED.stem]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(node.module.partition(".")[0])
    assert imported <= set(sys.stdlib_module_names) | {"numpy", "openvino", "onnxruntime", "PIL"}
    assert len(path.read_text().splitlines()) < 500


def test_python_3_8_compiles_and_runs_it(runner_file, python38, tmp_path):
    for path in MODULES:
        copy = tmp_path / "_".join(path.relative_to(ROOT).parts)
        copy.write_bytes(path.read_bytes())
        subprocess.run([python38, "-m", "py_compile", copy], check=True)
    done = subprocess.run([python38, "-S", runner_file, "probe"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"]
    assert result["facts"]["python"]["version"].startswith("3.8")
    assert result["facts"]["python"]["numpy"] is None


def test_an_older_python_is_told_so_in_json():
    started = ast.parse(runner._MAIN, feature_version=(3, 4))  # readable there, so that it can answer
    refusal = ast.Module(started.body[:2], [])
    pretend = "import sys; sys.version_info = (3, 6, 9)\n" + ast.unparse(refusal)
    done = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert answer["ok"] is False
    assert answer["error"]["code"] == "python-too-old"
    assert "3.6" in answer["error"]["message"]


def test_every_command_and_option_is_in_the_help(runner_file):
    done = subprocess.run([sys.executable, runner_file, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == cli.__doc__.strip()
    for name, parser in cli._parser()._subparsers._group_actions[0].choices.items():
        assert f"\n{name} " in cli.__doc__
        for action in parser._actions:
            assert not action.option_strings or action.option_strings[0] in cli.__doc__


def test_a_wrong_command_line_is_answered_in_json(run):
    for arguments in (["tiem"], ["time"], ["build", "--graph", "g", "--out", "o", "--profile", "8:4:1"]):
        answer = run(*arguments)
        assert answer.exit_code == 2
        assert answer.result["error"]["code"] == "usage"


def test_what_an_sdk_prints_never_mixes_with_the_json(run, tmp_path):
    chatty = "import os\nos.write(1, b'written from C\\n')\nprint('printed')\nraise ImportError('no')\n"
    (tmp_path / "openvino.py").write_text(chatty)
    answer = run("probe", PYTHONPATH=str(tmp_path))  # the fixture parses every line
    assert answer.result["ok"]
    assert "written from C" in answer.stderr
    assert "printed" in answer.stderr
