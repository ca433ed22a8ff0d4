"""A run on colourful images, with engines of a random network."""

import numpy as np
import pytest
import torch
from prove.applications import encoded, picture

from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, run

CLASSES = ("kiwi", "lime", "plum")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Return the folder of a run: ResNet-20 of width 4, 32 px with a margin of 4."""
    folder = tmp_path_factory.mktemp("prove")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 16)):
        for name in CLASSES:
            place = folder / part / name
            place.mkdir(parents=True)
            for index in range(count):
                (place / f"{index:03}.jpg").write_bytes(encoded(picture(rng, 61, 47), format="JPEG"))
    torch.manual_seed(0)
    network = resnet.ResNet(resnet.architecture("resnet20", width=4, classes=len(CLASSES))).eval()
    with torch.no_grad():  # no class prevails
        network.fc.bias -= network(torch.randn(64, 3, 32, 32)).mean(0)
    weights.save(network, folder)
    recipe = Recipe.build(
        {
            "load": {
                "weights": str(folder / "model.safetensors"),
                "preprocess": {
                    "resize": 36, "crop": 32, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                },
            },
            "select": {"source": str(folder / "train"), "images": 12},
            "quantize": {"effort": "fast"},
            "compile": {"targets": ["onnxruntime"]},
            "evaluate": {"source": str(folder / "test")},
            "bench": {"runs": 3, "throughput_s": 0.01, "warmup_s": 0.0},
        }
    )  # fmt: skip
    run(recipe, store=Store(folder / "store"), out=folder / "out")
    return folder / "out"


@pytest.fixture(scope="session")
def golden(published, tmp_path_factory):
    """Return the folder of golden images."""
    import edgeship

    folder = tmp_path_factory.mktemp("golden") / "images"
    edgeship.golden_images(published, folder, count=20)
    return folder


@pytest.fixture(scope="session")
def graph(published):
    return published / "engines" / "onnxruntime" / "onnxruntime-int8" / "model.onnx"
