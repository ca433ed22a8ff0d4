"""Rules of the repository: file sizes, the README's words, pinned dependencies, public data."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeship.toolkit.cli.app import app
from edgeship.toolkit.core.options import read_toml

ROOT = Path(__file__).parent.parent
PACKAGES = ("toolkit", "quantize", "targets", "calibration")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def sources():
    return [path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_over_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("pinned", ["constraints.txt", "constraints-3.10.txt"])
def test_every_dependency_is_pinned(pinned):
    project = read_toml(ROOT / "pyproject.toml")["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=; ]", line)[0].lower() for line in wanted} - {"edgeship", "tomli"}
    pins = (ROOT / pinned).read_text(encoding="utf-8").lower().replace("_", "-")
    assert names <= set(re.findall(r"^([a-z0-9.-]+)==", pins, re.M))


@pytest.mark.parametrize(
    "line", sorted(set(re.findall(r"^\$ (edgeship .+?)(?:\s+#.*|\s*\\)?$", README, re.M)))
)
def test_commands_of_the_readme_exist(line):
    words = line.split()
    command = app.get_command(None, words[1])
    assert command is not None, line
    if hasattr(command, "get_command") and len(words) > 2:
        command = command.get_command(None, words[2])
        assert command is not None, line
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert set(re.findall(r"(--[a-z-]+)", line)) <= options, line


def test_the_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(example.strip().splitlines()) <= 10
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    monkeypatch.setenv("EDGESHIP_STORE", str(tmp_path / "store"))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "openvino-int8" in done.stdout
