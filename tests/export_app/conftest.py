"""A run whose model and class names need escaping, for every kind of application."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeship.calibration.datasets import open_dataset
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, datasets, run

IMAGES = 40
NAMES = [
    'a "quoted" name',
    "it's; a, list",
    "back\\slash $HOME `x`",
    "Größe 中文 🙂",
    "<&>{}[]%s",
    "# 6",
    "7: x",
]


@dataclasses.dataclass(frozen=True)
class Published:
    """A run: its folder, the evaluated images as arrays (H, W, 3), and the logits of its variants."""

    folder: Path
    images: list
    logits: dict


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    weights.save(resnet.ResNet(resnet.architecture("resnet20", width=4)), folder)
    recipe = Recipe.build(
        {
            "load": {"weights": str(folder / "model.safetensors")},
            "export": {"size": 16},
            "select": {"source": "digits:train", "images": 12},
            "quantize": {"effort": "fast"},
            "compile": {"targets": ["openvino", "onnxruntime", "tensorrt"]},
            "evaluate": {"source": "digits:test", "images": IMAGES},
            "bench": {"runs": 3, "throughput_s": 0.01, "warmup_s": 0.0},
        }
    )
    finished = run(recipe, store=Store(folder / "store"), out=folder / "out")
    logits = {path.stem: np.load(path) for path in (finished.folder("evaluate") / "logits").iterdir()}
    described = folder / "out" / "engines" / "model.json"
    labels = [*NAMES, "8", "9", "10"]
    record = {**json.loads(described.read_text()), "labels": labels, "name": 'my "net"\nü/1'}
    described.write_text(json.dumps(record))
    (described.parent / "labels.txt").write_text("".join(f"{each}\n" for each in labels), encoding="utf-8")
    dataset = open_dataset("digits:test")
    images = [np.asarray(dataset.image(index)) for index in datasets.subset(dataset, IMAGES)]
    return Published(folder / "out", images, logits)
