"""Exported folders: complete, reproducible in form, refused where they would be wrong."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from edgeship.toolkit import export_app
from edgeship.toolkit.cli import app


def export(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        app.main(["export-app", *map(str, arguments)])
    captured = capsys.readouterr()
    return leaving.value.code or 0, captured.out, captured.err


@pytest.mark.parametrize("kind", export_app.names())
def test_a_folder_says_how_it_starts_its_pixels_and_what_was_checked(published, tmp_path, capsys, kind):
    out = tmp_path / "folder with a space"
    code, printed, _ = export(capsys, published.folder, "--for", kind, "--out", out)
    assert code == 0 and "next: cd '" in printed
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "Checked:" in text and "Preprocessing:" in text
    assert export_app.kind_module(kind).SUMMARY[1:] in text
    code, _, errors = export(capsys, published.folder, "--for", kind, "--out", out)
    assert code == 1 and "not an empty folder" in errors


def test_the_programs_have_the_syntax_of_python_3_8():
    folder = Path(export_app.__file__).parent / "programs"
    for path in folder.glob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_engine_is_the_int8_one_or_the_named_one(published, tmp_path, capsys):
    arguments = (published.folder, "--for", "http", "--json", "--out")
    _, printed, _ = export(capsys, *arguments, tmp_path / "a")
    done = json.loads(printed)
    assert done["variant"] == "openvino-int8" and "model/model.xml" in done["files"]
    _, printed, _ = export(capsys, *arguments, tmp_path / "b", "--variant", "onnxruntime-fp32")
    assert json.loads(printed)["variant"] == "onnxruntime-fp32"
    code, _, errors = export(capsys, *arguments, tmp_path / "c", "--variant", "openvino-int4")
    assert code == 2 and "openvino-int8" in errors and not (tmp_path / "c").exists()


def test_another_folder_and_files_of_different_runs_are_refused(published, tmp_path, capsys):
    code, _, errors = export(capsys, tmp_path, "--for", "http", "--out", tmp_path / "x")
    assert code == 1 and "is no run" in errors
    copy = tmp_path / "run"
    shutil.copytree(published.folder, copy)
    described = copy / "engines" / "model.json"
    record = json.loads(described.read_text())
    described.write_text(json.dumps({**record, "labels": record["labels"][1:]}))
    code, _, errors = export(capsys, copy, "--for", "http", "--out", tmp_path / "x")
    assert code == 1 and "10 classes" in errors and "9 class names" in errors
    described.write_text("{}")
    code, _, errors = export(capsys, copy, "--for", "http", "--out", tmp_path / "x")
    assert code == 1 and "field" in errors
    shutil.rmtree(copy / "engines" / "openvino")
    shutil.rmtree(copy / "engines" / "onnxruntime")
    shutil.rmtree(copy / "engines" / "tensorrt")
    code, _, errors = export(capsys, copy, "--for", "http", "--out", tmp_path / "x")
    assert code == 1 and "no engine" in errors
