"""Images that are not square through all stages: prune, quantize, compile, evaluate, time, ship."""

import json
import tarfile

import numpy as np
import onnx
import pytest
import torch

from edgeship.calibration import evalset_format
from edgeship.targets.runner import evalset as runner_images
from edgeship.toolkit.cli import app
from edgeship.toolkit.graph.cost import cost
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, run
from edgeship.toolkit.runs.network import ExportedGraphs

SIZE = (16, 24)


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        app.main([str(argument) for argument in arguments])
    return ended.value.code or 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A pruned run with pixel input on ONNX Runtime, and its folder."""
    folder = tmp_path_factory.mktemp("rectangles")
    torch.manual_seed(0)
    weights.save(resnet.ResNet(resnet.architecture("resnet20", width=8)), folder)
    recipe = {
        "load": {
            "weights": str(folder / "model.safetensors"),
            "preprocess": {"mean": [0.5] * 3, "std": [0.25] * 3},
        },
        "export": {"size": "16x24", "input": "uint8"},
        "prune": {"method": "magnitude", "macs_ratio": 0.7, "channel_multiple": 4, "images": 40},
        "select": {"source": "digits:train", "images": 12},
        "quantize": {"effort": "fast"},
        "compile": {"targets": ["onnxruntime"]},
        "evaluate": {"source": "digits:test", "images": 30},
        "bench": {"runs": 3, "throughput_s": 0.0, "warmup_s": 0.0},
    }
    out = folder / "out"
    return run(Recipe.build(recipe), store=Store(folder / "store"), out=out), out


def test_every_graph_has_the_size(finished):
    result, _ = finished
    graphs = ExportedGraphs.read(result.folder("export"))
    assert graphs.preprocess.resize == graphs.preprocess.crop == SIZE
    for name in ("float", "pruned"):
        file = result.folder("export") / f"{name}.onnx"
        dims = [d.dim_value for d in onnx.load(file).graph.input[0].type.tensor_type.shape.dim]
        assert dims == [1, 3, *SIZE]
        assert graphs.graphs[name].macs == cost(file).macs
    (compiled,) = result.folder("compile").glob("graphs/onnxruntime-int8-pruned.onnx")
    dims = [d.dim_value for d in onnx.load(compiled).graph.input[0].type.tensor_type.shape.dim]
    assert dims == [1, *SIZE, 3]


def test_pruning_counts_the_multiply_accumulates_of_the_rectangle(finished):
    result, _ = finished
    plan = json.loads((result.folder("prune") / "plan.json").read_text())
    dense = resnet.architecture("resnet20", width=8)
    assert plan["macs_before"] == resnet.macs(dense, SIZE)
    assert plan["macs_after"] == cost(result.folder("export") / "pruned.onnx").macs
    assert 0.5 < plan["macs_after"] / plan["macs_before"] <= 0.7


def test_every_variant_is_evaluated_and_timed(finished):
    result, out = finished
    report = json.loads((out / "report.json").read_text())
    assert report["model"]["input_px"] == list(SIZE)
    rows = {variant["name"]: variant for variant in report["variants"]}
    assert set(rows) == {f"onnxruntime-{p}{q}" for p in ("fp32", "int8") for q in ("", "-pruned")}
    assert all(row["latency_ms"]["p50"] > 0 for row in rows.values())
    logits = {name: np.load(result.folder("evaluate") / "logits" / f"{name}.npy") for name in rows}
    assert all(np.isfinite(values).all() and values.std(0).min() > 0 for values in logits.values())


def test_the_bundle_has_rectangles_that_the_runner_reads(finished, tmp_path):
    _, out = finished
    assert command("bundle", out, "--out", tmp_path / "b.tar", "--images", "10") == 0
    with tarfile.open(tmp_path / "b.tar") as archive:
        archive.extractall(tmp_path / "b", filter="data")
    (file,) = (tmp_path / "b").glob("**/*.set")
    kept = evalset_format.read(file)
    assert kept.images.shape[1:] == (*SIZE, 3)
    assert kept.preprocess.crop == SIZE
    assert runner_images.Packed(str(file)).image_shape == (3, *SIZE)
    (golden,) = (tmp_path / "b").glob("**/golden.json")
    assert json.loads(golden.read_text())["shape"][1:] == [*SIZE, 3]


def test_a_run_of_rectangles_can_be_timed_again(finished, capfd):
    _, out = finished
    assert command("bench", out, "--runs", "2", "--json") == 0
    assert json.loads(capfd.readouterr().out)["batch"] == 1
