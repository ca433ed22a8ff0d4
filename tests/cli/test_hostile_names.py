"""Names from graphs, folders and reports reach terminals, pages and XML escaped; damage is no traceback."""

import json
import os
import shutil
import xml.dom.minidom

import onnx
import pytest
import torch
from PIL import Image

import edgeship
from edgeship.calibration.datasets import open_dataset
from edgeship.toolkit.cli import app as cli
from edgeship.toolkit.core.errors import RecipeError, ToolkitError
from edgeship.toolkit.core.text import escaped
from edgeship.toolkit.models import export, resnet

EVIL = "\x1b[31mA\x07<script>alert(1)</script>|]]>&\n\x08\u202e\x9b2J"
STATED = [
    part for text in ("mean=0.5,0.5,0.5", "std=0.5,0.5,0.5", "resize=16") for part in ("--preprocess", text)
]
BASE = {"resize": 16, "crop": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A graph, class folders and files whose names have control characters and bytes that are no UTF-8."""
    root = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    net = resnet.ResNet(resnet.architecture("resnet20", width=4)).eval()
    export.export(net, root / "plain.onnx", size=16)
    model = onnx.load(root / "plain.onnx")
    names = {}
    for node in model.graph.node:
        node.name = names.setdefault(f"node {node.name}", f"{EVIL}{len(names)}")
        for side in (node.input, node.output):
            side[:] = [each and names.setdefault(each, f"{EVIL}{len(names)}") for each in side]
    for each in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        each.name = names.get(each.name, EVIL)
    onnx.save(model, root / "evil.onnx")
    for label in range(10):
        folder = os.fsencode(root / "photos") + b"/c\xff\x1b" + str(label).encode()
        os.makedirs(folder)  # noqa: PTH103 (bytes)
        for number in range(4):
            side = Image.new("RGB", (16, 16), (20 * label, 60 * number, 200 - 20 * label))
            with open(folder + b"/\xe9\x07" + str(number).encode() + b".png", "wb") as stream:  # noqa: PTH123
                side.save(stream, "PNG")
    return root


def clean(text):
    return all(each.isprintable() or each in "\n\t" for each in text)


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setenv("EDGESHIP_STORE", str(place / "store"))
        arguments = ("run", place / "evil.onnx", "--data", place / "photos", "--out", out, "--effort", "fast")
        quick = ("--target", "onnxruntime", "--duration", "0.02", "--set", "bench.throughput_s=0", "-q")
        cli.main([*map(str, arguments), *quick, "--max-drop", "50", *STATED])
    assert left.value.code in (None, 0, 3)
    return out


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "graph", "evil.onnx"),
        ("inspect", "ranges", "evil.onnx", "photos", *STATED),
        ("audit", "evil.onnx", "--target", "tensorrt"),
        ("data", "check", "photos", "-v"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_commands_print_names_escaped(call, command):
    code, out, err = call(*command)
    assert code in (0, 3) and out + err, err
    assert clean(out + err)


def test_reports_have_names_escaped(call, run):
    for command in (("report", run), ("report", run, "--format", "md"), ("predict", run, "photos")):
        code, out, err = call(*command)
        assert code == 0 and clean(out + err), err
    assert clean((run / "report.md").read_text()) and clean((run / "engines" / "labels.txt").read_text())
    assert "<script>alert" not in (run / "report.html").read_text()
    xml.dom.minidom.parse(str(run / "junit.xml"))
    assert "c\\udcff\\x1b0" in (run / "engines" / "labels.txt").read_text()


@pytest.mark.parametrize("kind", ["md", "junit", "html", "json", None])
def test_a_foreign_report_is_escaped(call, run, tmp_path, kind):
    report = json.loads((run / "report.json").read_text())

    report["model"]["name"] = EVIL
    for variant in report["variants"]:
        variant["notes"] = [EVIL]
    for gate in report["gates"]:
        gate["reason"] = EVIL
    (tmp_path / "report.json").write_text(json.dumps(report))
    code, out, err = call("report", tmp_path / "report.json", *(["--format", kind] if kind else []))
    assert code == 0, err
    if kind == "junit":
        xml.dom.minidom.parseString(out)
    if kind == "html":
        assert "<script>alert" not in out and "\x1b" not in out
    else:
        assert clean(out)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("crop", value) for value in (0, -1, "0x0", 10**30, None, "x", [], 1.5)],
        *[("mean", value) for value in ("abc", "0x0", [], [None], [float("nan")] * 3, {"a": 1}, 0)],
        *[("std", value) for value in ([0, 0, 0], [-1, 1, 1], [1e999] * 3, "1", None)],
        *[("resize", value) for value in (-1, 10**9, "x", True)],
        *[("interpolation", value) for value in ("best", 1, None, ["a"])],
    ],
)
def test_damaged_metadata_of_a_graph_is_no_traceback(place, tmp_path, key, value):
    model = onnx.load(place / "plain.onnx")
    onnx.helper.set_model_props(model, {"preprocess": json.dumps({**BASE, key: value}), "labels": "[" * 5000})
    onnx.save(model, tmp_path / "net.onnx")
    try:
        edgeship.evaluate(str(tmp_path / "net.onnx"), str(place / "photos"))
    except ToolkitError as error:
        assert error.hint and clean(str(error))


def test_a_damaged_run_is_no_traceback(call, run, tmp_path):
    for section in ("bench", "evaluate", "compile"):
        for damage in ({}, {"threads": "x", "source": 3, "jetpack": []}, None, 7):
            folder = tmp_path / "run"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(run, folder)
            index = json.loads((run / "run.json").read_text())
            index["recipe"][section] = damage
            (folder / "run.json").write_text(json.dumps(index))
            code, _, err = call("bundle", folder)
            assert code in (0, 1) and (code == 0 or "hint:" in err)


def test_escaping_keeps_structure():
    assert escaped({"a\n": ["\x1b", 1, None, {"b": "é"}]}) == {"a\\n": ["\\x1b", 1, None, {"b": "é"}]}


def test_classes_keep_their_order_and_number(place):
    dataset = open_dataset(place / "photos")
    assert len(set(dataset.classes)) == 10 and all(map(str.isprintable, dataset.classes))


@pytest.mark.parametrize("path", [None, 3, b"net.onnx", "~no-such-user-7/net"])
def test_python_refuses_what_is_no_path(path):
    with pytest.raises(ToolkitError):
        edgeship.Classifier(path)


def test_python_errors_name_arguments(place):
    with pytest.raises(RecipeError, match=r"^target cannot be 'x'"):
        edgeship.quantize(str(place / "plain.onnx"), str(place / "photos"), target="x")
    with pytest.raises(RecipeError, match=r"^duration_s"):
        edgeship.benchmark(str(place / "plain.onnx"), target="onnxruntime", duration_s=-1)


@pytest.mark.parametrize(
    "command",
    [
        ("run", "no.pth", "--data", "photos"),
        ("run", "plain.onnx", "--data", "no"),
        ("quantize", "no.onnx", "photos", "--target", "onnxruntime", "--out", "q.onnx"),
        ("quantize", "plain.onnx", "no", "--target", "onnxruntime", "--out", "q.onnx"),
        ("train", "no", "--model", "resnet20", "--out", "trained"),
        ("predict", "no", "photos"),
        ("predict", "plain.onnx", "no.png"),
        ("inspect", "graph", "no.onnx"),
        ("data", "check", "no"),
        ("report", "no"),
        ("bundle", "no"),
        ("compare", "no", "no"),
    ],
    ids=" ".join,
)
def test_a_missing_path_is_wrong_usage_in_every_command(call, command):
    code, _, err = call(*command)
    assert code == 2 and "no" in err and "hint:" in err
