"""`edgeship.quantize`: kinds of models and images, figures, and errors."""

import json
import logging
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import edgeship
from edgeship.targets.onnxruntime import simulate
from edgeship.toolkit.core.statistics import agreement
from edgeship.toolkit.models import export, resnet, weights

SIDE = 16
STATED = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
FAST = {"effort": "fast"}


def module():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def floats(count=40, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    net = resnet.ResNet(resnet.architecture("resnet20", width=4)).eval()
    prepared = edgeship.Preprocess(SIDE, SIDE, **STATED)
    export.export(net, folder / "net.onnx", size=SIDE, preprocess=prepared)
    weights.save(net, folder / "checkpoint", prepared)
    return folder


def test_figures_are_those_of_the_graph_on_the_held_out_images(tmp_path):
    net, images = module(), floats()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = edgeship.quantize(net, list(images), "tensorrt", calibration_images=30, **FAST)
    assert (result.images, result.calibration_images, result.held_out) == (10, 30, True)
    assert (result.int8_layers, result.layers) == (3, 3) and result.options["effort"] == "fast"
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    probe = floats(50, seed=1)
    with torch.inference_mode():
        expected = net.eval()(torch.from_numpy(probe)).numpy()
    with simulate(result.save(tmp_path / "q.onnx")) as session:
        assert agreement(expected, session.infer(probe)) > 0.9
    text = result.summary()
    assert "of 10 held-out images" in text and "3 of 3 layers" in text and "simulation" in text


def forms(images):
    labels = torch.arange(len(images)) % 5
    tensors = torch.from_numpy(images)
    pairs = torch.utils.data.TensorDataset(tensors, labels)
    return {
        "array": images,
        "tensor": tensors,
        "list": list(images),
        "generator": (image for image in images),
        "pairs": [(image, 1) for image in images],
        "dataset": pairs,
        "loader": torch.utils.data.DataLoader(pairs, batch_size=7),
        "batch and labels": (tensors, labels),
        "float64": images.astype(np.float64),
    }


@pytest.mark.parametrize("form", forms(floats(2)))
def test_images_in_every_form(form):
    result = edgeship.quantize(module(), forms(floats(20))[form], "onnxruntime", **FAST)
    assert (result.calibration_images, result.images) == (16, 4)
    assert result.preprocess is None and "mean" not in result.summary()


def test_decoded_images_are_preprocessed_as_the_model_states(network, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 24, 3), np.uint8)
    for index, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{index:02}.png")
    files = sorted(tmp_path.glob("*.png"))
    results = [
        edgeship.quantize(network / "net.onnx", images, **FAST)
        for images in (pixels, [Image.fromarray(each) for each in pixels], files)
    ]
    assert len({result.model.SerializeToString() for result in results}) == 1
    assert results[0].preprocess.mean == STATED["mean"] and results[0].preprocess_source == "file"


def test_models_in_every_form_give_the_same_graph(network):
    graphs = {
        edgeship.quantize(model, "digits:train", calibration_images=16, **FAST).model.SerializeToString()
        for model in (
            network / "net.onnx",
            str(network / "net.onnx"),
            onnx.load(network / "net.onnx"),
            network / "checkpoint",
            network / "checkpoint" / "model.safetensors",
        )
    }
    assert len(graphs) == 1


def test_a_limit_is_met_by_layers_in_float(network, tmp_path, caplog):
    caplog.set_level(logging.INFO, "edgeship")
    result = edgeship.quantize(
        network / "net.onnx", "digits:train", "tensorrt", calibration_images=8, min_agreement=0.999, **FAST
    )
    assert result.agreement >= 0.999 and result.images == 1000
    assert result.int8_layers == result.layers - len(result.details["float_layers"])
    assert any(record.getMessage().startswith("calibrating") for record in caplog.records)
    assert result.save(tmp_path / "new" / "q.onnx").read_bytes() == result.model.SerializeToString()
    content = json.dumps(result.to_json())
    assert '"counts"' not in content and '"counts"' in json.dumps(result.to_json(histograms=True))
    assert json.loads(content)["agreement"] == result.agreement


def broken(images, index, value):
    images = images.copy()
    images[index, 0, 0, 0] = value
    return images


def used_up():
    generator = (image for image in floats(4))
    list(generator)
    return generator


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images"),
        (used_up, "there are no images"),
        (floats(1), "there are 1 image"),
        ([floats(1)[0], floats(1)[0, :, :8]], r"image \d has the shape \(3, \d+, 16\), the network takes"),
        (floats(4).astype(np.int64), "has the type int64"),
        (broken(floats(4), 2, np.nan), "NaN or infinite"),
        (broken(floats(4), 2, np.inf), "NaN or infinite"),
        (np.zeros((4, SIDE, SIDE, 3), np.uint8), "preprocessing of the network is unknown"),
        ([{"image": 1}], "is a dict"),
        ({"a": 1}, "images is a dict"),
        (None, "images is a NoneType"),
        ([(floats(2), [1])], "labels of shape"),
        ("no/such/folder", "no such file or folder"),
        (["no/such/file.png"], "cannot read no/such/file.png"),
    ],
)
def test_images_that_cannot_be_used(images, message):
    with pytest.raises(edgeship.ToolkitError, match=message) as caught:
        edgeship.quantize(module(), images() if callable(images) else images, size=SIDE, **FAST)
    assert caught.value.hint and "\n" not in str(caught.value)


class Pair(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)), images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model is a int"),
        ({"model": Pair()}, "returns a tuple"),
        ({"model": nn.Conv2d(1, 2, 3)}, "cannot be exported for an input of shape"),
        ({"model": "no.onnx"}, "no.onnx"),
        ({"target": "openvin"}, "openvin"),
        ({"efort": "fast"}, "efort"),
        ({"max_validation_drop_pp": 1.0}, "needs labels"),
        ({"calibration_images": 8}, "there are 8 image"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    settings = {"model": module(), "images": floats(8), **arguments}
    with pytest.raises(edgeship.ToolkitError, match=message) as caught:
        edgeship.quantize(**settings)
    assert caught.value.hint


def test_the_import_is_light():
    heavy = ("numpy", "torch", "onnx", "click")
    script = f"import sys, edgeship; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert set(edgeship.__all__) <= set(dir(edgeship)) and all(
        getattr(edgeship, name) for name in edgeship.__all__
    )
