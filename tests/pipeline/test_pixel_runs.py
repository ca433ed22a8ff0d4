"""export.input = "uint8" through all stages: same figures, engines with pixel input, devices."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch

from edgeship.toolkit.cli import app
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.models import export, resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, run

MEAN, STD = (0.4, 0.45, 0.5), (0.25, 0.2, 0.3)
STATED = ["--preprocess", "mean=0.4,0.45,0.5", "--preprocess", "std=0.25,0.2,0.3"]
RUNNING = ("onnxruntime-fp32", "openvino-fp32", "openvino-int8", "onnxruntime-int8")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    model = resnet.ResNet(resnet.architecture("resnet20", width=4))
    weights.save(model, folder)
    export.export(model.eval(), folder / "unstated.onnx", size=16)
    return {
        "load": {"weights": str(folder / "model.safetensors"), "preprocess": {"mean": MEAN, "std": STD}},
        "export": {"size": 16},
        "select": {"source": "digits:train", "images": 12},
        "quantize": {"effort": "fast"},
        "evaluate": {"source": "digits:test", "images": 40},
        "bench": {"runs": 3, "throughput_s": 0.0, "warmup_s": 0.0},
    }


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory):
    """The run with ready images, then with pixels, in one store."""
    folder = tmp_path_factory.mktemp("runs")
    store = Store(folder / "store")
    measured = {**recipe["bench"], "throughput_s": 0.01}
    pixels = {**recipe, "export": {"size": 16, "input": "uint8"}, "bench": measured}
    return (
        run(Recipe.build(recipe), store=store, out=folder / "float32"),
        run(Recipe.build(pixels), store=store, out=folder / "uint8"),
        folder,
    )


def read(result, stage, name):
    return json.loads((result.folder(stage) / name).read_text())


def test_calibration_and_quantization_are_not_done_again(runs):
    cached = {stage.name for stage in runs[1].stages if stage.cached}
    assert {"load", "select", "calibrate", "quantize"} <= cached
    assert not {"compile", "evaluate", "bench"} & cached


def test_int8_logits_are_the_same_to_the_last_bit(runs):
    for name in (*RUNNING, "tensorrt-int8"):
        one, other = (np.load(each.folder("evaluate") / "logits" / f"{name}.npy") for each in runs[:2])
        if "int8" in name:
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_every_engine_takes_pixels_and_what_that_saves_is_told(runs):
    result = runs[1]
    compiled = read(result, "compile", "compiled.json")["variants"]
    assert {record["input"] for record in compiled.values()} == {"uint8"}
    assert {record["input"] for record in read(runs[0], "compile", "compiled.json")["variants"].values()} == {
        "float32"
    }
    timed = read(result, "bench", "latency.json")["variants"]
    reported = {variant["name"]: variant for variant in read(result, "report", "report.json")["variants"]}
    for name in RUNNING:
        assert (
            compiled[name]["warnings"]
            == read(runs[0], "compile", "compiled.json")["variants"][name]["warnings"]
        )
        for key in ("end_to_end_ms", "float_end_to_end_ms"):
            assert min(timed[name][key]) > 0
            assert reported[name][key] == pytest.approx(np.median(timed[name][key]))
    assert "With float32 input" in (result.folder("report") / "report.html").read_text()
    assert all(
        not row["float_end_to_end_ms"] for row in read(runs[0], "bench", "latency.json")["variants"].values()
    )


def test_people_get_the_graph_that_takes_pixels(runs):
    for target, name in (
        ("openvino", "graph.onnx"),
        ("onnxruntime", "model.onnx"),
        ("tensorrt", "model.onnx"),
    ):
        graph = onnx.load(runs[2] / "uint8" / "engines" / target / f"{target}-int8" / name).graph
        image = graph.input[0].type.tensor_type
        assert image.elem_type == onnx.TensorProto.UINT8
        assert [dim.dim_value for dim in image.shape.dim] == [1, 16, 16, 3]


def test_a_bundle_of_it_proves_itself_on_this_machine(runs, tmp_path, capfd):
    devices = str(tmp_path / "devices.toml")
    placed = ["--host", "local", "--root", str(tmp_path / "here"), "--python", sys.executable]
    for arguments in (
        ["device", "add", "here", "--target", "openvino", *placed],
        [
            "deploy",
            str(runs[2] / "uint8"),
            "--device",
            "here",
            "--time",
            "0.05",
            "--report",
            str(tmp_path / "fleet"),
        ],
    ):
        with pytest.raises(SystemExit) as ended:
            app.main([*arguments, "--inventory", devices])
        assert ended.value.code in (0, None), capfd.readouterr().err
    (device,) = json.loads((tmp_path / "fleet" / "fleet.json").read_text())["devices"]
    assert device["state"] == "live"
    assert device["record"]["selftest"]["top1_agreement"] == 1.0
    assert device["record"]["accuracy"]["agreement"] == 1.0


def test_pixels_of_a_network_that_nobody_described_are_refused(recipe, tmp_path):
    unstated = {**recipe, "load": {"weights": recipe["load"]["weights"]}, "export": {"input": "uint8"}}
    with pytest.raises(ModelError, match="mean and std of training are unknown") as caught:
        run(Recipe.build(unstated), store=Store(tmp_path), until="export")
    assert "--set load.preprocess.mean=" in caught.value.hint and "float32" in caught.value.hint
    ready = {**unstated, "export": {"input": "float32"}}
    run(Recipe.build(ready), store=Store(tmp_path), until="export")  # assumed, as ever


def quantize(recipe, tmp_path, *more):
    model = recipe["load"]["weights"].replace("model.safetensors", "unstated.onnx")
    with pytest.raises(SystemExit) as ended:
        app.main(
            [
                *("quantize", model, "digits:train", "--target", "openvino", "--images", "8"),
                *("--effort", "fast", "--input", "uint8", "--out", str(tmp_path / "q.onnx"), *more),
            ]
        )
    return ended.value.code or 0


def test_the_quantize_command_writes_it_too(recipe, tmp_path, capfd):
    assert quantize(recipe, tmp_path, *STATED) == 0
    graph = onnx.load(tmp_path / "q.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert "QuantizeLinear" in {node.op_type for node in graph.node}
    (tmp_path / "q.onnx").unlink()
    capfd.readouterr()
    assert quantize(recipe, tmp_path) == 1
    error = capfd.readouterr().err
    assert "error: an engine with uint8 input" in error and "--preprocess mean=" in error
    assert not (tmp_path / "q.onnx").exists()
