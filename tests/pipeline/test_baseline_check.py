"""Checks of the input: wrong preprocessing, class orders and statistics, through the stages of a run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from edgeship.calibration.class_order import match_classes
from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.preprocess import normalize
from edgeship.calibration.preprocess_forms import Form, Search
from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.errors import DataError, ModelError
from edgeship.toolkit.core.tensors import Preprocess, preprocess_metadata
from edgeship.toolkit.models import batchnorm, resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, baseline_check, load_and_export, run
from edgeship.toolkit.pipeline.baseline_check import EvaluatedNetwork, examine
from edgeship.toolkit.pipeline.preprocessing import source_of
from edgeship.toolkit.pipeline.recipe import LoadOptions, PreprocessOptions
from edgeship.toolkit.report import render
from edgeship.toolkit.runs.network import ModelInfo

SIDE = 8
NAMES = ("amber", "blue", "cyan", "green", "red", "violet")
COLOURS = np.array(
    [(230, 160, 30), (40, 60, 200), (60, 190, 190), (50, 140, 60), (190, 50, 50), (120, 60, 160)]
)
USUAL = Preprocess(resize=SIDE, crop=SIDE)  # ImageNet's mean and std
HALF = replace(USUAL, mean=(0.5,) * 3, std=(0.5,) * 3)
BYTES = replace(USUAL, mean=(0.0,) * 3, std=(1 / 255,) * 3)
STATED = {"mean": list(USUAL.mean), "std": list(USUAL.std)}


def colour_network(file, preprocess=USUAL, *, order=range(6), bgr=False, metadata=None, extra=0):
    """An ONNX network that was trained, with a preprocessing, to name the nearest of six colours."""
    centres = normalize(COLOURS[:, None, None].astype(np.uint8), preprocess)[:, :, 0, 0][list(order)]
    weight, bias = 2 * centres, -(centres**2).sum(1)
    weight = weight[:, ::-1] if bgr else weight
    weight, bias = np.pad(weight, ((extra, 0), (0, 0))), np.pad(bias, (extra, 0), constant_values=-1e3)
    node = onnx.helper.make_node
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["x", "kernel"], ["features"], name="conv", kernel_shape=[1, 1]),
            node("GlobalAveragePool", ["features"], ["pooled"], name="pool"),
            node("Flatten", ["pooled"], ["flat"], name="flat"),
            node("Gemm", ["flat", "weight", "bias"], ["logits"], name="fc", transB=1),
        ],
        "colours",
        [value("x", 1, ["N", 3, SIDE, SIDE])],
        [value("logits", 1, ["N", len(bias)])],
        [
            onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32)[:, :, None, None], "kernel"),
            onnx.numpy_helper.from_array(weight.astype(np.float32), "weight"),
            onnx.numpy_helper.from_array(bias.astype(np.float32), "bias"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, metadata or {})
    onnx.save(model, file)
    return file


def photos(folder, count=20, seed=0, names=NAMES):
    """A folder of images with the colour of their class, noisy enough for some errors."""
    rng = np.random.default_rng(seed)
    for name, colour in zip(names, COLOURS, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = rng.normal(scale=20, size=(SIDE, SIDE, 3)) + rng.normal(scale=35, size=3)
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    photos(folder / "train", 3, seed=1)
    return photos(folder / "test").parent


def run_of(tmp_path, images, file, until="report", **load):
    table = {
        "load": {"model": str(file), **load},
        "select": {"source": str(images / "train"), "images": 12},
        "quantize": {"effort": "fast"},
        "compile": {"targets": ["onnxruntime"]},
        "evaluate": {"source": str(images / "test")},
        "bench": {"runs": 3, "throughput_s": 0.0, "warmup_s": 0.0},
    }
    return run(Recipe.build(table), store=Store(tmp_path / "store"), until=until)


def checks_of(finished):
    return {check["code"]: check for check in read_json(finished.folder("evaluate") / "input_checks.json")}


def test_a_right_setup_that_is_stated_raises_no_alarm(tmp_path, images):
    finished = run_of(tmp_path, images, colour_network(tmp_path / "net.onnx"), preprocess=STATED)
    assert checks_of(finished) == {} and finished.report["input_checks"] == []
    assert finished.report["model"]["preprocess_source"] == "stated"
    assert finished.report["data"]["classes"] == list(NAMES)


def test_an_assumed_preprocessing_is_called_so_everywhere(tmp_path, images, capsys):
    finished = run_of(tmp_path, images, colour_network(tmp_path / "net.onnx"))
    assert list(checks_of(finished)) == ["preprocess-assumed"]
    (check,) = finished.report["input_checks"]
    assert check["effect"] == "no_pass" and "assumed: ImageNet" in check["message"]
    assert "load.preprocess.mean=0.485" in check["hint"]
    folder = finished.folder("report")
    for name in ("report.md", "report.html"):
        assert "assumed: ImageNet" in (folder / name).read_text(), name
    render.terminal(render.load(folder))
    assert "no pass" in (printed := capsys.readouterr().out) and "assumed: ImageNet" in printed
    for graph in (finished.folder("export") / "float.onnx", finished.folder("quantize") / "onnxruntime.onnx"):
        properties = {each.key: each.value for each in onnx.load(graph).metadata_props}
        assert properties["preprocess_source"] == "assumed"
        assert json.loads(properties["preprocess"])["crop"] == SIDE


def test_what_was_assumed_once_stays_assumed(tmp_path, images):
    """Our own export states mean and std, and that nothing stated them."""
    stored = preprocess_metadata(USUAL, "assumed")
    again = run_of(tmp_path, images, colour_network(tmp_path / "net.onnx", metadata=stored), until="load")
    assert read_json(again.folder("load") / "model.json")["preprocess_source"] == "assumed"
    stored = preprocess_metadata(HALF, "stated")
    other = run_of(tmp_path, images, colour_network(tmp_path / "other.onnx", metadata=stored), until="load")
    described = read_json(other.folder("load") / "model.json")
    assert described["preprocess_source"] == "file" and described["preprocess"]["mean"] == [0.5] * 3
    torch.manual_seed(0)
    model = resnet.ResNet(resnet.architecture("resnet20", width=4))
    weights.save(model, tmp_path / "net", USUAL, source="assumed")
    load_and_export.load_checkpoint(
        Recipe(load=LoadOptions(weights=str(tmp_path / "net"))), tmp_path, tmp_path
    )
    assert read_json(tmp_path / "model.json")["preprocess_source"] == "assumed"


@pytest.mark.parametrize(
    ("options", "own", "own_source", "expected"),
    [
        ({}, None, None, "assumed"),
        ({"mean": (0.5,) * 3}, None, None, "assumed"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, None, None, "stated"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, USUAL, "assumed", "stated"),
        ({}, USUAL, None, "file"),
        ({}, USUAL, "published", "published"),
        ({}, USUAL, "graph", "graph"),
        ({}, USUAL, "stated", "file"),
        ({}, USUAL, "assumed", "assumed"),
    ],
)
def test_origins(options, own, own_source, expected):
    assert source_of(PreprocessOptions(**options), own, own_source) == expected


@pytest.mark.parametrize(
    ("trained", "bgr", "name"),
    [(HALF, False, "-1..1"), (BYTES, False, "0..255"), (USUAL, True, "BGR")],
)
def test_a_better_preprocessing_is_named_with_its_accuracy(tmp_path, images, trained, bgr, name):
    file = colour_network(tmp_path / "net.onnx", trained, bgr=bgr)
    found = checks_of(run_of(tmp_path, images, file, preprocess=STATED, until="evaluate"))[
        "preprocess-better"
    ]
    right, wrong = (float(part) for part in re.findall(r"([\d.]+) %", found["message"]))
    assert name in found["message"] and found["hint"] and right > 80 and right > wrong + 2
    assert found["effect"] == ("no_verdict" if right - wrong > 10 else "no_pass")


@pytest.mark.parametrize(("largest", "named"), [(0.97, False), (0.5, True)])
def test_a_form_that_gives_the_largest_class_to_all_images_is_not_named(largest, named):
    labels = (np.arange(200) >= largest * 200).astype(np.int64)
    form = Form("mean and std of 0.5", HALF)
    search = Search(form, accuracy=0.97, accuracy_stated=0.6, images=200, tried=9, t=9.0)
    evaluated = EvaluatedNetwork(
        Path("x"), Path("x"), None, np.arange(200), np.zeros((200, 6), np.float32), labels, USUAL, "stated"
    )
    codes = [check.code for check in baseline_check._better_form(evaluated, search)]
    assert codes == (["preprocess-better"] if named else [])


def test_a_class_order_is_named(tmp_path, images):
    file = colour_network(tmp_path / "net.onnx", order=(3, 0, 5, 1, 2, 4))
    finished = run_of(tmp_path, images, file, preprocess=STATED)
    found = checks_of(finished)
    assert found["class-order"]["effect"] == found["baseline-at-chance"]["effect"] == "no_verdict"
    assert "amber is output 1" in found["class-order"]["message"]
    assert "class order" in found["baseline-at-chance"]["message"]
    assert set(found) == {"class-order", "baseline-at-chance"}  # and no preprocessing is accused
    page = (finished.folder("report") / "report.html").read_text()
    assert 'data-code="class-order"' in page and 'id="classes"' in page


def test_class_names_mend_the_order(tmp_path, images):
    order = (3, 0, 5, 1, 2, 4)
    file = colour_network(tmp_path / "net.onnx", order=order)
    (tmp_path / "names.txt").write_text("\n".join(NAMES[label].upper() for label in order))
    finished = run_of(tmp_path, images, file, preprocess=STATED, labels=str(tmp_path / "names.txt"))
    assert checks_of(finished) == {}
    assert finished.report["data"]["classes"] == [NAMES[label].upper() for label in order]
    accuracy = read_json(finished.folder("evaluate") / "accuracy.json")["variants"]["onnxruntime-fp32"]
    assert accuracy["top1"] > 0.8


def test_class_names_that_do_not_match_are_listed(tmp_path, images):
    file = colour_network(tmp_path / "net.onnx")
    names = tmp_path / "names.txt"
    names.write_text("\n".join((*NAMES[:4], "scarlet", "purple")))
    with pytest.raises(DataError, match=r"2 of 6 classes.*red, violet.*scarlet, purple"):
        run_of(tmp_path, images, file, labels=str(names), until="evaluate")
    names.write_text("\n".join(NAMES[:4]))
    with pytest.raises(DataError, match=r"4 class names, the network 6 outputs"):
        run_of(tmp_path, images, file, labels=str(names), until="load")


def test_class_names_for_fewer_folders_than_outputs(tmp_path, images):
    """A background class comes first: names say so, and without them the hint does."""
    file = colour_network(tmp_path / "net.onnx", extra=1)
    with pytest.raises(DataError, match="6 classes, the network 7 outputs") as caught:
        run_of(tmp_path, images, file, until="select")
    assert "background" in caught.value.hint and "load.labels" in caught.value.hint
    (tmp_path / "names.txt").write_text("\n".join(("background", *NAMES)))
    labels = str(tmp_path / "names.txt")
    finished = run_of(tmp_path, images, file, preprocess=STATED, labels=labels, until="evaluate")
    assert checks_of(finished) == {}


def test_aliases_and_numbers_match(images):
    dataset = open_dataset(images / "test", labelled=True)
    matched = match_classes(
        dataset, [(f"n{place}", name) for place, name in reversed(list(enumerate(NAMES)))]
    )
    assert matched.classes == NAMES[::-1]
    assert [NAMES[::-1][item.label] for item in matched.items] == [
        item.name.split("/")[0] for item in matched.items
    ]
    synsets = match_classes(dataset, [(name, f"readable {name}") for name in NAMES])
    assert synsets.labels.tolist() == dataset.labels.tolist() and synsets.classes[0] == "readable amber"
    numbered = replace(dataset, classes=tuple(map(str, range(6))))
    assert match_classes(numbered, [(name,) for name in NAMES]).labels.tolist() == dataset.labels.tolist()
    with pytest.raises(DataError, match=r"2 of 6 classes.*amber, blue"):
        match_classes(dataset, [(name,) for name in ("amber", "amber", *NAMES[2:])])


def test_labels_from_one_are_named(tmp_path, images):
    rows = [
        f"{path.relative_to(images)},{1 + NAMES.index(path.parent.name)}"
        for path in (images / "test").glob("*/*.png")
    ]
    (images / "one.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="7 classes, the network 6 outputs") as caught:
        table = {
            "load": {"model": str(colour_network(tmp_path / "net.onnx"))},
            "select": {"source": str(images / "train"), "images": 6},
            "evaluate": {"source": str(images / "one.csv")},
        }
        run(Recipe.build(table), store=Store(tmp_path / "store"), until="select")
    assert "start at 1" in caught.value.hint


def test_without_labels_a_hint_is_weak(tmp_path, images):
    """No labels and no BatchNorm: sure and varied predictions speak."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (images / "test").glob("*/*.png"):
        (flat / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "train").symlink_to(images / "train")
    flat.rename(tmp_path / "all" / "test")
    file = colour_network(tmp_path / "net.onnx", BYTES)
    found = checks_of(run_of(tmp_path, tmp_path / "all", file, until="evaluate"))
    assert set(found) == {"preprocess-assumed", "preprocess-confidence"}
    assert "weak hint" in found["preprocess-confidence"]["message"]
    assert "0..255" in found["preprocess-confidence"]["message"]


def test_pixels_need_a_known_preprocessing(tmp_path, images):
    file = colour_network(tmp_path / "net.onnx", metadata=preprocess_metadata(USUAL, "assumed"))
    table = {
        "load": {"model": str(file)},
        "export": {"input": "uint8"},
        "select": {"source": str(images / "train")},
        "evaluate": {"source": str(images / "test")},
    }
    with pytest.raises(ModelError, match="uint8"):
        run(Recipe.build(table), store=Store(tmp_path / "store"), until="export")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, images):
    """A small ResNet with statistics of the images, and the images sorted by the classes it gives them."""
    torch.manual_seed(1)
    dataset = open_dataset(images / "test", labelled=True)
    model = resnet.ResNet(resnet.architecture("resnet20", width=4, classes=6)).eval()
    inputs = normalize(np.stack([np.asarray(dataset.image(place)) for place in range(len(dataset))]), USUAL)
    model = batchnorm.reestimate_statistics(model, inputs)
    labels = batchnorm.logits(model, inputs).argmax(1)
    items = tuple(replace(item, label=int(label)) for item, label in zip(dataset.items, labels, strict=True))
    return model, replace(dataset, items=items), inputs


def evaluated(folder, model, dataset, inputs):
    weights.save(model, folder / "load", USUAL)
    info = ModelInfo("resnet20", "0" * 64, 1, 6, USUAL, "stated")
    load_and_export.export(Recipe().export, folder / "load", info, folder / "float.onnx")
    logits = batchnorm.logits(model, inputs)
    places = np.arange(len(dataset))
    return EvaluatedNetwork(
        folder / "float.onnx", folder / "load", dataset, places, logits, dataset.labels, USUAL, "stated"
    )


def test_batchnorm_statistics_that_are_none_of_training(tmp_path, fitted):
    model, dataset, inputs = fitted
    assert examine(evaluated(tmp_path / "right", model, dataset, inputs)) == []
    new = batchnorm.reestimate_statistics(model, inputs)
    for module in new.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    assert len(
        batchnorm.layers_with_initial_statistics(new)
    ) == 19 and not batchnorm.layers_with_initial_statistics(model)
    codes = [check.code for check in examine(evaluated(tmp_path / "new", new, dataset, inputs))]
    assert "batchnorm-untouched" in codes
    other = batchnorm.reestimate_statistics(model, inputs[dataset.labels == dataset.labels[0]][:2])
    found = {check.code: check for check in examine(evaluated(tmp_path / "other", other, dataset, inputs))}
    assert found["batchnorm-statistics"].effect == "no_verdict"
