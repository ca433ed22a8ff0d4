"""Rules of the repository: file sizes, the README's words, pinned dependencies, public data."""

import re
from pathlib import Path

import pytest

from edgeship.toolkit.core.options import read_toml

ROOT = Path(__file__).parent.parent
PACKAGES = ("toolkit", "quantize", "targets", "calibration", "docs")


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


def test_the_readme_has_at_most_120_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
