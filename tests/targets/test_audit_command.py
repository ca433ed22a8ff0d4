"""`edgeship audit` and `edgeship export-jetson` as a user meets them: output, exit code, hint."""

import json
import re

import numpy as np
import pytest
from engine_records import dynamic
from qdq_graphs import FLOAT, OPENVINO, TENSORRT, Placement, images, residual_net, save

from edgeship import targets
from edgeship.quantization import calibrate, float8
from edgeship.quantization.statistics import Statistics
from edgeship.toolkit.cli.app import main
from edgeship.toolkit.runs.index import RunIndex, StageResult


@pytest.fixture
def edgeship(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(item) for item in arguments])
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return run


def test_a_clean_graph(edgeship, tmp_path):
    code, out, err = edgeship("audit", save(residual_net(TENSORRT), tmp_path / "net.onnx"), "--trt", "8.5")
    assert (code, out, err) == (0, "TensorRT 8.5: nothing to change\n", "")


def test_an_fp16_engine_is_audited_as_one(edgeship, tmp_path):
    record = dynamic()
    for item in record["Layers"]:
        item.pop("Weights", None)
        item.pop("TacticName", None)
        for tensor in (*item["Inputs"], *item["Outputs"]):
            tensor["Format/Datatype"] = "Row major linear FP16 format"
    (tmp_path / "graph.json").write_text(json.dumps(record))
    code, out, _ = edgeship("audit", tmp_path / "graph.json", "--precision", "fp16")
    assert code == 0 and re.search(r"^(\d+) of \1 weighted layers run in FP16$", out, re.M)
    code, out, err = edgeship("audit", tmp_path / "graph.json", "--precision", "fp8")
    assert code == 3 and "0 of" in out and "do not run in FP8" in err and "it runs in FP16" in err


def test_a_float_graph_is_right_for_fp16_and_not_for_int8(edgeship, tmp_path):
    path = save(residual_net(FLOAT), tmp_path / "net.onnx")
    assert edgeship("audit", path, "--precision", "fp16")[:2] == (0, "TensorRT 8.5: nothing to change\n")
    assert edgeship("audit", path)[0] == 3
    code, _, err = edgeship("audit", path, "--target", "onnxruntime", "--precision", "fp16")
    assert code == 1 and "has no FP16" in err and "--precision int8" in err


def test_a_bad_graph_is_told_and_repaired(edgeship, tmp_path):
    path = save(residual_net(OPENVINO), tmp_path / "net.onnx")
    code, out, err = edgeship("audit", path, "--target", "tensorrt", "--trt", "8.5")
    assert code == 3
    assert "maxpool_quantized" in out
    assert "fix: quantize to int8" in out
    assert "source: onnx/onnx-tensorrt" in out
    assert err.endswith("hint: --fix repairs some of this\n")
    code, out, _ = edgeship("audit", path, "--trt", "8.5", "--fix")
    assert code == 0
    assert "fixed    uint8" in out
    assert edgeship("audit", tmp_path / "net-fixed.onnx", "--trt", "8.5")[0] == 0


def test_json_for_machines(edgeship, tmp_path):
    path = save(residual_net(Placement(add_inputs="none")), tmp_path / "net.onnx")
    code, out, _ = edgeship("audit", path, "--json")
    assert code == 0
    assert {item["rule"] for item in json.loads(out)["findings"]} == {"residual-none"}


def test_what_openvino_runs(edgeship, tmp_path):
    code, out, err = edgeship(
        "audit", save(residual_net(FLOAT), tmp_path / "net.onnx"), "--target", "openvino"
    )
    assert code == 3
    assert "0 of 7 weighted layers run in INT8" in out
    assert "conv1" in out and "no Q/DQ in net.onnx: nothing would run in INT8" in err


@pytest.mark.parametrize("target", targets.names())
def test_a_float_graph_is_not_in_order_for_any_target(edgeship, tmp_path, target):
    path = save(residual_net(FLOAT), tmp_path / "net.onnx")
    for more in ((), ("--json",)):
        code, out, err = edgeship("audit", path, "--target", target, *more)
        assert code == 3 and "no Q/DQ in net.onnx: nothing would run in INT8" in err
        assert "nothing to change" not in out
        assert f"edgeship quantize {path} IMAGES --target {target}" in err
    json.loads(out)


@pytest.mark.parametrize("name", ["model.xml", "x.zip", "net.pth"])
def test_what_is_no_graph_is_called_that(edgeship, tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    code, _, err = edgeship("audit", tmp_path / name)
    assert code == 1 and f"{name} is neither an ONNX file" in err and "GPU" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--target", "openvin"], 2, "openvino"),
        (["--trt", "7.1"], 2, "no rules for TensorRT 7.1"),
        (["--trt", "new"], 2, "not a TensorRT version"),
    ],
)
def test_wrong_options(arguments, code, says, edgeship, tmp_path):
    got, _, err = edgeship("audit", save(residual_net(FLOAT), tmp_path / "net.onnx"), *arguments)
    assert got == code
    assert says in err
    assert " hint: " in err


def record(folder, precision):
    tensor = {"Format/Datatype": precision}
    layer = {"Name": "Conv_1", "LayerType": "CaskConvolution"}
    layer |= {"Inputs": [tensor | {"Name": "x"}], "Outputs": [tensor | {"Name": "y"}]}
    folder.mkdir()
    (folder / "graph.json").write_text(json.dumps({"Layers": [layer], "Bindings": ["x", "y"]}))
    times = [{"count": 1}, {"name": "Conv_1", "averageMs": 0.5 if precision == "Int8" else 1.0}]
    (folder / "profile.json").write_text(json.dumps(times))
    return folder


def test_engine_records(edgeship, tmp_path):
    int8, half = record(tmp_path / "int8", "Int8"), record(tmp_path / "fp16", "Half")
    code, out, _ = edgeship("audit", int8)
    assert code == 0
    assert "Conv_1  Convolution    int8      0.500 ms 100.0 %" in out
    code, out, _ = edgeship("audit", int8, half)
    assert code == 0
    assert "int8 is 50 % faster than fp16" in out
    (int8 / "graph.json").write_text("{")
    code, _, err = edgeship("audit", int8)
    assert code == 1
    assert "not valid JSON" in err


def test_an_engine_without_a_gpu(edgeship, tmp_path):
    (tmp_path / "model.plan").write_bytes(b"plan")
    code, _, err = edgeship("audit", tmp_path / "model.plan")
    assert code == 1
    assert "no NVIDIA GPU" in err


def test_export_jetson(edgeship, tmp_path):
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    np.save(tmp_path / "images.npy", np.zeros((2, 3, 32, 32), np.float32))
    arguments = ("export-jetson", model, "--out", tmp_path / "out", "--images", tmp_path / "images.npy")
    code, out, _ = edgeship(*arguments)
    assert code == 0
    assert "edgeship_runner.pyz" in out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["tensorrt"] == "10.16.2"
    assert json.loads((tmp_path / "out" / "golden" / "golden.json").read_text())["shape"] == [2, 3, 32, 32]
    code, _, err = edgeship(*arguments)
    assert code == 1
    assert "not an empty folder" in err


def test_export_jetson_refuses_images_that_are_none(edgeship, tmp_path):
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    for name, content in (("a.npy", b"noise"), ("b.npy", b"")):
        (tmp_path / name).write_bytes(content)
        code, _, err = edgeship(
            "export-jetson", model, "--out", tmp_path / "out", "--images", tmp_path / name
        )
        assert code == 1
        assert ".npy" in err
    np.save(tmp_path / "c.npy", np.zeros((3, 32, 32), np.float32))
    assert "(N, C, H, W)" in edgeship("export-jetson", model, "--out", "x", "--images", tmp_path / "c.npy")[2]


@pytest.fixture
def finished(tmp_path):
    """A run as the pipeline leaves it, as far as a hand-over reads it."""
    stages = {name: tmp_path / "store" / name for name in ("export", "calibrate", "quantize")}
    for folder in stages.values():
        folder.mkdir(parents=True)
    save(residual_net(FLOAT), stages["export"] / "float.onnx")
    save(residual_net(TENSORRT), stages["quantize"] / "tensorrt.onnx")
    Statistics(12, {}, images(12)).save(stages["calibrate"] / "float")
    listed = tuple(StageResult(name, folder, "", 1.0, False) for name, folder in stages.items())
    run = tmp_path / "run"
    run.mkdir()
    RunIndex(1, {}, None, listed).write(run)
    return run


def test_export_jetson_of_a_run_with_its_dla(edgeship, finished, tmp_path):
    arguments = ("export-jetson", finished, "--jetpack", "5.1.2", "--module", "AGX Orin", "--dla", "1")
    code, out, err = edgeship(*arguments, "--out", tmp_path / "orin", "--json")
    assert (code, err) == (0, "")
    manifest = json.loads((tmp_path / "orin/manifest.json").read_text())
    assert set(manifest["builds"]) == {"int8", "fp16", "dla"}  # the run's own float graph
    assert "--useDLACore=1" in manifest["builds"]["dla"]["trtexec"]
    assert manifest["builds"]["dla"]["half_layers"] == []  # calibration images of the run measured the rest
    assert json.loads((tmp_path / "orin/golden/golden.json").read_text())["shape"] == [12, 3, 32, 32]
    assert json.loads(out)["warnings"] == []
    assert "# dla\n/usr/src/tensorrt/bin/trtexec" in (tmp_path / "orin/README.md").read_text()


def test_export_jetson_of_a_run_for_a_module_without_int8_has_fp16(edgeship, finished, tmp_path):
    arguments = ("export-jetson", finished, "--module", "Jetson Nano", "--out", tmp_path / "nano")
    assert edgeship(*arguments)[0] == 0
    manifest = json.loads((tmp_path / "nano/manifest.json").read_text())
    assert set(manifest["builds"]) == {"fp16"} and manifest["tensorrt"] == "8.2.1"
    assert "--fp16" in manifest["builds"]["fp16"]["trtexec"]


def test_export_jetson_of_a_run_with_fp8_for_thor(edgeship, finished, tmp_path):
    path = next(tmp_path.rglob("float.onnx"))
    float8.write(
        path,
        calibrate.collect(path, [images(4)]),
        targets.get("tensorrt").scheme(),
        path.parents[1] / "quantize/tensorrt-fp8.onnx",
    )
    for module, builds in (("Thor", {"int8", "fp16", "fp8"}), ("AGX Orin", {"int8", "fp16"})):
        assert edgeship("export-jetson", finished, "--module", module, "--out", tmp_path / module)[0] == 0
        manifest = json.loads((tmp_path / module / "manifest.json").read_text())
        assert set(manifest["builds"]) == builds
    built = json.loads((tmp_path / "Thor/manifest.json").read_text())["builds"]["fp8"]
    assert (
        built["strongly_typed"]
        and built["network_flags"] == ["STRONGLY_TYPED"]
        and built["builder_flags"] == []
    )


def test_export_jetson_says_which_layers_have_no_scale(edgeship, tmp_path):
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    arguments = ("--jetpack", "5.1.2", "--module", "AGX Orin", "--dla", "0", "--out", tmp_path / "out")
    code, _, err = edgeship("export-jetson", model, *arguments)
    assert code == 0
    assert "4 layers have no scale and run in FP16 on the DLA, first layer1.conv2: give calibration" in err


@pytest.mark.parametrize("missing", ["quantize", "run.json", "tensorrt.onnx"])
def test_export_jetson_of_an_unfinished_run(edgeship, finished, tmp_path, missing):
    if missing == "quantize":
        record = json.loads((finished / "run.json").read_text())
        (finished / "run.json").write_text(json.dumps({**record, "stages": record["stages"][:2]}))
    else:
        next(path for path in tmp_path.rglob(missing)).unlink()
    code, _, err = edgeship("export-jetson", finished, "--out", tmp_path / "out")
    assert code == 1
    assert err.startswith("error: ") and " hint: " in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()
