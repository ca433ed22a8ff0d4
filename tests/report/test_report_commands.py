"""Commands `edgeship report` and `edgeship compare`."""

import json
import webbrowser

import pytest
from click.testing import CliRunner
from synthetic import STAGES, thumbnail

from edgeship.toolkit.cli import compare, report
from edgeship.toolkit.core.errors import DataError, ToolkitError
from edgeship.toolkit.report import render
from edgeship.toolkit.report.gather import gather


@pytest.fixture
def folder(run, tmp_path):
    gathered = gather(run, recipe="synthetic", stages=STAGES, max_drop_pp=1.0)
    render.write(gathered, tmp_path / "out", thumbnails=thumbnail, evaluated=run["evaluate"])
    return tmp_path / "out"


def call(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("kind", "file"),
    [("json", "report.json"), ("md", "report.md"), ("junit", "junit.xml"), ("html", "report.html")],
)
def test_each_format_prints_what_was_written(folder, kind, file):
    result = call(report.command, folder, "--format", kind)
    assert result.exit_code == 0
    assert result.stdout.strip() == (folder / file).read_text().strip()


def test_the_table_is_the_default(folder):
    assert "openvino-int8" in call(report.command, folder).stdout


def test_html_is_made_again_where_the_page_is_gone(folder):
    (folder / "report.html").unlink()
    assert call(report.command, folder, "--format", "html").stdout.startswith("<!doctype html>")


def test_open_starts_the_browser_on_the_page(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    assert call(report.command, folder, "--open").exit_code == 0
    assert opened == [(folder / "report.html").as_uri()]


def test_open_without_a_browser_says_where_the_page_is(folder, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    with pytest.raises(ToolkitError) as caught:
        call(report.command, folder, "--open")
    assert str(folder / "report.html") in caught.value.hint


def test_a_folder_without_a_report_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no report\.json"):
        call(report.command, tmp_path)


def test_compare_prints_a_table_markdown_or_json(folder):
    assert "within noise" in call(compare.command, folder, folder).stdout
    assert call(compare.command, folder, folder, "--format", "md").stdout.startswith("| variant | run |")
    comparison = json.loads(call(compare.command, folder, folder, "--format", "json").stdout)
    assert comparison["base"] == str(folder)
    assert {d["variant"] for d in comparison["differences"]} >= {"openvino-int8", "tensorrt-int8"}
    assert all(d["drop_pp"] == 0 for d in comparison["differences"])


@pytest.mark.parametrize(("command", "runs"), [(report.command, 1), (compare.command, 2)])
def test_json_is_an_option_as_of_other_commands(folder, command, runs):
    arguments = [folder] * runs
    assert call(command, *arguments, "--json").stdout == call(command, *arguments, "--format", "json").stdout
    assert call(command, *arguments).stdout != call(command, *arguments, "--json").stdout


def test_compare_needs_two_runs(folder):
    result = call(compare.command, folder)
    assert result.exit_code == 2
    assert "at least 2 runs, got 1" in result.output
