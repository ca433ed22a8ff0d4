"""The documentation builds without a warning and without network, and its reference is that of the code."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from browsing import violations
from workshop import PAGES

from docs import pictures
from docs.generators import benchmarks, commands, errors, recipe, schema
from edgeship.toolkit.cli import app as cli
from edgeship.toolkit.core import errors as error_module
from edgeship.toolkit.core.results import RunReport
from edgeship.toolkit.pipeline.recipe import option_help
from edgeship.toolkit.report import render
from edgeship.toolkit.report.gather import gather

ROOT = Path(__file__).parent.parent.parent
LINKS = ("https://zensical.org/",)  # the notice of the generator
AUDITED = (
    "index",
    "methods/calibration",
    "reference/commands/quantize",
    "reference/devices",
    "errors/DataError",
)

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the generator takes Python 3.11, not Python 3.10"
)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    pytest.importorskip("zensical", reason="needs zensical")
    out = tmp_path_factory.mktemp("docs")
    without_network = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "docs.build", "--out", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **without_network, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "site"


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?(https?:[^\"\s>]*)", text
        )
        assert loaded == [], page
        linked = set(re.findall(r"<a\b[^>]*?href=\"?(https?:[^\"\s>]*)", text))
        assert linked <= set(LINKS), page


def test_every_picture_is_there(site):
    pictures = [
        page.parent / source
        for page in site.rglob("*.html")
        for source in re.findall(r"<img\b[^>]*?src=\"?([^\"\s>]*)", page.read_text(encoding="utf-8"))
        if not source.startswith("data:")
    ]
    assert pictures
    assert [picture for picture in pictures if not picture.is_file()] == []


def test_every_page_is_reached_from_the_navigation_or_a_list(site):
    config = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'= "([\w/.-]+\.md)"', config))
    pages = {str(page.relative_to(site.parent / "pages")) for page in (site.parent / "pages").rglob("*.md")}
    assert listed <= pages
    below = ("reference/commands/", "benchmarks/")  # their index lists them
    assert [page for page in pages - listed if not page.startswith(below)] == []


def test_search_finds_a_command(site):
    index = json.loads((site / "search.json").read_text(encoding="utf-8"))
    assert any("export-jetson" in json.dumps(item) for item in index["items"])


@pytest.mark.parametrize("page", AUDITED)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(site, browser, axe, page, dark):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get((site / f"{page}.html").as_uri())
    assert violations(browser, axe) == []


def test_every_command_and_option_has_its_place():
    text = "".join(page for _, page in commands.pages())
    for name in cli.app.list_commands(None):
        command = cli.app.get_command(None, name)
        assert f"# edgeship {name}\n" in text
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert all(f"`{option}`" in text for option in parameter.opts)


def test_every_recipe_key_has_its_place_and_default():
    (_, text), (_, bundled) = recipe.pages()
    for name, default, meaning in option_help():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert default in row.replace("\\|", "|") or "*required*" in row or default in ('""', "[]"), row
        assert meaning.split(".")[0][:20] in row
        assert len(row.split(" | ")) == 4, row
    assert "| `prune.keep` | `prune.keep_ratio` |" in text
    assert "## quickstart" in bundled


def test_every_key_of_a_report_is_in_its_schema(tmp_path):
    from synthetic import COMMAND, STAGES, synthetic_run

    gathered = gather(
        synthetic_run(tmp_path / "run"), recipe={"name": "synthetic"}, stages=STAGES, command=COMMAND
    )
    render.write(gathered, tmp_path, thumbnails=lambda *_: None)
    report = json.loads((tmp_path / "report.json").read_text())
    (_, text) = next(schema.pages())
    kinds = {kind.__name__: kind for kind in schema.types(RunReport)}

    def check(value, kind):
        assert set(value) <= {name for name, _, _ in schema.keys(kind)}
        for name, hint, _ in schema.keys(kind):
            assert f"| `{name}` |" in text
            inner = [each for each in kinds.values() if each.__name__ in str(hint)]
            for item in value[name] if isinstance(value[name], list) else [value[name]]:
                if isinstance(item, dict) and inner:
                    check(item, inner[0])

    check(report, RunReport)
    assert "variants" in schema.stable(RunReport)
    assert "findings" not in schema.stable(RunReport)
    assert {field.name for field in dataclasses.fields(RunReport)} >= schema.stable(RunReport)


def test_every_error_class_has_cause_cure_and_messages():
    kinds = [kind for kind in vars(error_module).values() if isinstance(kind, type)]
    assert set(errors.classes()) == {kind for kind in kinds if issubclass(kind, error_module.ToolkitError)}
    pages = dict(errors.pages())
    for kind in errors.classes():
        text = pages[f"errors/{kind.__name__}.md"]
        assert f"Exit code {kind.exit_code}" in text
        assert "**Cause.**" in text
        assert "**Cure.**" in text
    assert "| MODEL is a {suffix} file: {model} |" in pages["errors/RecipeError.md"]
    assert "in {images + 1} |" in pages["errors/RecipeError.md"]
    assert r"`[ -t 0 ] \|\| return`" in pages["errors/DeviceError.md"]
    assert sum(1 for _ in errors.messages()) > 200


def test_examples_have_commands_and_options_by_their_current_names():
    seen = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^\$ edgeship (.*)", text, re.M):
            name, *words = shlex.split(line, comments=True)
            command = cli.app.get_command(None, name)
            assert command is not None, f"{page.name}: {line}"
            if isinstance(command, click.Group):
                command = command.commands.get(words[0], command)
            known = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
            used = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert used <= known, f"{page.name}: {line}"
            seen += 1
    assert seen > 50


def test_an_error_in_a_terminal_links_to_the_page_of_its_class(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    with pytest.raises(SystemExit):
        cli.main(["run", "no-such-recipe"])
    address = re.search(r"\x1b\]8;;(file://\S+)\x1b\\.*error:", capsys.readouterr().err)[1]
    kind = Path(address.removeprefix("file://")).stem
    assert kind in [each.__name__ for each in errors.classes()]


def test_the_summary_of_benchmarks_is_that_of_the_results():
    rows = benchmarks.rows_of("quantization-accuracy", "resnet18", "OpenVINO")
    assert rows["edgeship balanced"]["agreement %"] == "99.60"
    assert (
        "| ResNet-18 | OpenVINO | edgeship | 0.11 [0.01, 0.23] | 99.60 % | 37.8 dB |" in benchmarks.summary()
    )


@pytest.mark.parametrize("name", ["layers", "frontier"])
def test_drawings_are_those_of_today(name):
    drawn = (pictures.PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn == getattr(pictures, name)(), "run `python -m docs.pictures drawings`"


def test_pictures_load_nothing_from_elsewhere():
    for file in pictures.PICTURES.glob("*.svg"):
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
        assert "http" not in text, file
        assert "<title>" in text or 'class="rich-terminal"' in text


def test_the_figures_of_the_readme_are_those_of_the_results():
    assert benchmarks.summary() in (ROOT / "README.md").read_text(encoding="utf-8")
