"""All stages on a tiny network: files, figures, caching, a missing target, limits."""

import json

import numpy as np
import pytest
import torch

from edgeship import targets
from edgeship.toolkit.cli import app
from edgeship.toolkit.core.errors import GateError, TargetError
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, run
from edgeship.toolkit.report import compare_runs

RUNS = 3  # timed inferences: the figures do not matter here


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    weights.save(resnet.ResNet(resnet.architecture("resnet20", width=4)), folder)
    return {
        "load": {"weights": str(folder / "model.safetensors")},
        "export": {"size": 16},
        "select": {"source": "digits:train", "images": 12},
        "quantize": {"effort": "fast"},
        "evaluate": {"source": "digits:test", "images": 40},
        "bench": {"runs": RUNS, "throughput_s": 0.01, "warmup_s": 0.0},
    }


class Absent:
    """A target whose SDK is not installed; the scheme is known all the same."""

    scheme = targets.get("tensorrt").scheme
    precisions = targets.get("tensorrt").precisions
    opens_graphs = False

    def compile(self, model, out, precision, *, version=None):
        raise TargetError("tensorrt is not installed", hint="pip install it")


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        got = targets.get
        patch.setattr(targets, "get", lambda name: Absent() if name == "tensorrt" else got(name))
        result = run(Recipe.build(recipe), store=Store(folder / "store"), out=folder / "out")
        again = run(Recipe.build(recipe), store=Store(folder / "store"), out=folder / "out")
    return result, again, folder


def read(result, stage, name):
    return json.loads((result.folder(stage) / name).read_text())


def test_every_stage_leaves_what_the_next_and_others_rely_on(finished):
    result, _, _ = finished
    expected = {
        "load": {"model.safetensors", "widths.json", "model.json"},
        "prune": {"model.safetensors", "widths.json", "plan.json"},
        "finetune": {"model.safetensors", "widths.json", "history.json"},
        "export": {"float.onnx", "graphs.json"},
        "select": {"manifest.json", "findings.json"},
        "calibrate": {"float", "scales.json", "findings.json"},
        "quantize": {"openvino.onnx", "onnxruntime.onnx", "tensorrt.onnx", "quantize.json"},
        "compile": {"compiled.json", "openvino-int8", "onnxruntime-fp32"},
        "guard": {"guards.json"},
        "evaluate": {"accuracy.json", "guarded.json", "logits", "labels.npy", "images.json"},
        "bench": {"latency.json", "device.json"},
        "report": {"report.json", "report.md", "report.html"},
    }
    assert [stage.name for stage in result.stages] == list(expected)
    for stage, names in expected.items():
        assert names <= {path.name for path in result.folder(stage).iterdir()}, stage


def test_the_calibration_says_whether_its_images_are_enough(finished):
    curve = read(finished[0], "calibrate", "scales.json")["float"]
    assert curve["images"] == [1, 2, 4, 8, 12] and curve["scale"][-1] == 1.0
    assert curve["scale"] == sorted(curve["scale"])
    (found,) = read(finished[0], "calibrate", "findings.json")
    assert "calibration images" in found["what"] and found["severity"] in ("info", "warning")
    html = (finished[0].folder("report") / "report.html").read_text()
    assert "calibration images" in html


def test_an_absent_target_is_noted_and_the_others_go_on(finished):
    compiled = read(finished[0], "compile", "compiled.json")["variants"]
    assert compiled["tensorrt-int8"]["error"] == "tensorrt is not installed"
    assert compiled["tensorrt-int8"]["hint"] == "pip install it"
    assert set(read(finished[0], "evaluate", "accuracy.json")["variants"]) == {
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "openvino-fp32",
        "openvino-int8",
    }
    rows = {variant["name"]: variant for variant in read(finished[0], "report", "report.json")["variants"]}
    assert rows["tensorrt-int8"]["top1"] is None and rows["openvino-int8"]["top1"] is not None


def test_accuracy_is_that_of_the_kept_logits(finished):
    result = finished[0]
    labels = np.load(result.folder("evaluate") / "labels.npy")
    assert len(labels) == 40
    assert np.bincount(labels).tolist() == [4] * 10  # balanced by class
    for name, row in read(result, "evaluate", "accuracy.json")["variants"].items():
        logits = np.load(result.folder("evaluate") / "logits" / f"{name}.npy")
        assert row["top1"] == pytest.approx((logits.argmax(1) == labels).mean())


def test_openvino_and_onnxruntime_agree_in_float(finished):
    folder = finished[0].folder("evaluate") / "logits"
    one, other = np.load(folder / "onnxruntime-fp32.npy"), np.load(folder / "openvino-fp32.npy")
    np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())


def test_everything_that_ran_is_timed(finished):
    latency = read(finished[0], "bench", "latency.json")
    assert (latency["batch"], latency["threads"]) == (1, 1)
    assert {len(row["samples_ms"]) for row in latency["variants"].values()} == {RUNS}
    assert all(row["throughput_ips"] > 0 for row in latency["variants"].values())
    for row in latency["variants"].values():
        assert row["memory_bytes"] >= row["resident_bytes"] > 100_000
        assert min(row["end_to_end_ms"]) > 0


def test_two_runs_are_compared_image_by_image(finished):
    out = finished[2] / "out"
    (difference,) = [
        each
        for each in compare_runs.compare([compare_runs.Run.read(out), compare_runs.Run.read(out)])
        if each.variant == "openvino-int8"
    ]
    assert difference.paired and difference.p == 1.0 and difference.drop_pp == 0.0


def test_out_holds_report_engines_and_graphs(finished):
    out = finished[2] / "out"
    assert (out / "report.html").is_file() and (out / "run.json").is_file()
    assert {path.name for path in (out / "engines" / "openvino" / "openvino-int8").iterdir()} == {
        "model.xml",
        "model.bin",
        "graph.onnx",
    }
    assert not (out / "engines" / "tensorrt").exists()


def test_a_second_run_finds_everything(finished):
    first, again, folder = finished
    stages = json.loads((folder / "out" / "report.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == [stage.name for stage in again.stages]
    assert all(stage["cached"] for stage in stages) and stages == again.report["stages"]
    assert not any(stage["cached"] for stage in first.report["stages"])
    assert all(stage.cached for stage in again.stages)
    assert [stage.digest for stage in again.stages] == [stage.digest for stage in first.stages]


def test_a_missed_limit_is_exit_code_3_after_the_report_is_written(recipe, finished, tmp_path, capsys):
    missed = {"max_latency_ms": 1e-6, "judge_by": "point"}
    limits = {**recipe, "compile": {"targets": ["openvino"]}, "report": missed}
    result = run(Recipe.build(limits), store=Store(finished[2] / "store"))
    with pytest.raises(GateError, match="openvino-int8 misses max_latency_ms"):
        result.check_gates()
    toml = tmp_path / "tiny.toml"
    toml.write_text(
        f"load.weights = {json.dumps(recipe['load']['weights'])}\nexport.size = 16\n"
        'select = {source = "digits:train", images = 12}\nevaluate = {source = "digits:test", images = 40}\n'
        'quantize.effort = "fast"\n'
        f"bench = {{runs = {RUNS}, throughput_s = 0.01, warmup_s = 0.0}}\n"
    )
    arguments = [
        "run",
        str(toml),
        "--store",
        str(finished[2] / "store"),
        "--out",
        str(tmp_path / "out"),
        "--overwrite",
    ]
    arguments += ["--set", "compile.targets=openvino"]
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--set", "report.max_latency_ms=1e-6", "--set", "report.judge_by=point"])
    out, err = capsys.readouterr()
    assert left.value.code == 3
    assert "error: openvino-int8 misses max_latency_ms" in err and "openvino-int8" in out
    assert (tmp_path / "out" / "report.html").is_file()
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--set", "report.max_drop_pp=0.5"])
    assert left.value.code == 3  # an untrained network: its drop is meaningless
    shown = capsys.readouterr()
    assert "(no verdict)" in shown.out and "misses max_drop_pp: nothing could be judged" in shown.err


def test_json_is_all_that_stdout_gets(recipe, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the default of --out is a folder there
    toml = tmp_path / "tiny.toml"
    toml.write_text(f"load.weights = {json.dumps(recipe['load']['weights'])}\n")
    arguments = ["run", str(toml), "--store", str(finished[2] / "store"), "--json"]
    for name in ("export", "select", "quantize", "evaluate", "bench"):
        for key, value in recipe[name].items():
            arguments += ["--set", f"{name}.{key}={value}"]
    with pytest.raises(SystemExit) as left:
        app.main([*arguments, "--set", "compile.targets=openvino"])
    out, _ = capsys.readouterr()
    assert left.value.code == 0
    assert json.loads(out)["schema"] == 1
