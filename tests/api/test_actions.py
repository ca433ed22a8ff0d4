"""`edgeship.prune`, `compile`, `evaluate`, `benchmark`, `run`, `deploy` and `Classifier`."""

import numpy as np
import pytest
import torch

import edgeship
from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.loader import batches
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.models.resnet import macs

SIDE = 16
PREPROCESS = edgeship.Preprocess(SIDE, SIDE, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return resnet.ResNet(resnet.architecture("resnet20", width=8)).eval()


@pytest.fixture(scope="module")
def quantized(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    weights.save(net, folder, PREPROCESS)
    result = edgeship.quantize(folder, "digits:train", calibration_images=16, effort="fast")
    return result.save(folder / "int8.onnx")


@pytest.fixture(scope="module")
def digits():
    (batch,) = batches(open_dataset("digits:test"), range(0, 350, 5), PREPROCESS, batch=70)
    return batch


def test_an_evaluation_is_that_of_the_network(net, digits):
    pairs = list(zip(digits.images, digits.labels, strict=True))
    result = edgeship.evaluate(net, pairs)
    with torch.inference_mode():
        right = net(torch.from_numpy(digits.images)).argmax(1).numpy() == digits.labels
    assert result.top1 == pytest.approx(right.mean()) and result.images == 70
    assert result.top1_ci95[0] <= result.top1 <= result.top1_ci95[1]
    assert edgeship.evaluate(net, digits.images).top1 is None


def test_a_source_by_path_and_arrays_give_the_same_logits(quantized, digits):
    whole = edgeship.evaluate(quantized, "digits:test", "openvino")
    assert whole.images == 355 and whole.measured_on == "this machine"
    part = edgeship.evaluate(quantized, digits.pixels, "openvino")
    order = [np.flatnonzero((whole.logits == row).all(1))[0] for row in part.logits]
    assert sorted(order) == list(range(0, 350, 5))


def test_an_engine_is_compiled_and_classifies(quantized, digits, tmp_path):
    built = edgeship.compile(quantized, "openvino", tmp_path / "engine")
    assert built.runs_here and built.int8_layers == (20, 20) and built.size_bytes > 1000
    stated = edgeship.evaluate(quantized, digits.pixels[:4], "openvino")
    names = [f"digit {index}" for index in range(10)]
    with edgeship.Classifier(built.file, preprocess=PREPROCESS, labels=names) as classifier:
        best = classifier(digits.pixels[0]).top(3)
        results = classifier(list(digits.pixels[:4]))
    assert len(best) == 3 and best[0].label == f"digit {best[0].index}"
    assert best[0].probability >= best[1].probability >= best[2].probability
    assert [each.index for each in results] == stated.logits.argmax(1).tolist()
    with edgeship.Classifier(quantized) as classifier:  # preprocessing is in the file
        assert classifier(digits.pixels[0]).probabilities.sum() == pytest.approx(1)
    with (
        edgeship.Classifier(built.file) as classifier,
        pytest.raises(edgeship.ToolkitError, match=r"model\.json"),
    ):
        classifier(digits.pixels[0])
    with pytest.raises(edgeship.ToolkitError, match="no engine at"):
        edgeship.Classifier(tmp_path)
    for values in ({"crop": SIDE}, {"crop": SIDE, "mean": [0.5] * 3}, {"crop": SIDE, "means": 0, "std": 1}):
        with pytest.raises(edgeship.ToolkitError, match=r"preprocess is .*(mean|std)"):
            edgeship.Classifier(built.file, preprocess=values)  # ImageNet's are never assumed


def test_models_are_timed_against_each_other(net, quantized):
    timed = edgeship.benchmark({"float": net, "int8": quantized}, size=SIDE, duration_s=0.1)
    assert set(timed) == {"float", "int8"} and all(len(row.samples_ms) >= 10 for row in timed.values())
    assert timed["int8"].p50_ms <= timed["int8"].p90_ms <= timed["int8"].p99_ms
    with pytest.raises(edgeship.ToolkitError, match="does not run on this machine"):
        edgeship.benchmark(net, "tensorrt", size=SIDE)
    with pytest.raises(edgeship.ToolkitError, match="different shapes"):
        edgeship.benchmark({"float": net, "int8": quantized}, size=SIDE * 2)


@pytest.mark.parametrize("kind", ["module", "path"])
def test_a_module_or_a_checkpoint_is_pruned(kind, net, digits, tmp_path):
    model = net if kind == "module" else weights.save(net, tmp_path / "dense", PREPROCESS)
    options = {"keep_ratio": 0.5, "channel_multiple": 1, "method": "magnitude", "images_count": 40}
    small = edgeship.prune(model, digits.images if kind == "module" else "digits:train", **options)
    assert macs(small.model.architecture, SIDE) == small.plan.macs_after < small.plan.macs_before
    again = weights.load(small.save(tmp_path / "small").parent)
    assert again.model.architecture.widths == small.model.architecture.widths
    assert (again.preprocess is None) == (kind == "module")
    with pytest.raises(edgeship.ToolkitError, match="ONNX file cannot be pruned"):
        edgeship.prune("net.onnx", digits.images, **options)


@pytest.mark.parametrize("option", [{"latency_ratio": 0.5}, {"keep_ratio": 0.5, "budget_s": 60}])
def test_options_of_runs_are_refused_where_a_network_is_only_pruned(option, net, digits):
    with pytest.raises(edgeship.ToolkitError, match="of runs"):
        edgeship.prune(net, digits.images, **option)


def test_a_recipe_is_run_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESHIP_STORE", str(tmp_path / "store"))
    overrides = {"load.train.epochs": 1, "load.model": "resnet20", "export.size": 8}
    finished = edgeship.run("quickstart", overrides=overrides, until="export")
    assert (finished.folder("export") / "float.onnx").is_file()


def test_a_deployment_needs_known_devices(tmp_path):
    (tmp_path / "devices.toml").write_text("")
    with pytest.raises(edgeship.ToolkitError):
        edgeship.deploy(tmp_path, ["nowhere"], inventory=tmp_path / "devices.toml")


def test_a_checkpoint_is_run_on_a_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESHIP_STORE", str(tmp_path / "store"))
    file = weights.save(
        resnet.build(resnet.architecture("resnet20", classes=10, width=4), seed=0), tmp_path / "net"
    )
    finished = edgeship.run(file, data="digits", overrides={"export.size": 8}, until="select")
    assert finished.recipe.evaluate.source == "digits:evaluation"
    again = edgeship.run(finished.recipe, overrides={"select.images": 7}, until="select")
    assert again.recipe.select.images == 7
    with pytest.raises(edgeship.ToolkitError, match="there are no images"):
        edgeship.run(file)
    with pytest.raises(edgeship.ToolkitError, match="recipe is a NoneType"):
        edgeship.run(None)
    with pytest.raises(edgeship.ToolkitError, match="no engine at nowhere"):
        edgeship.Classifier("nowhere")
