"""Plug-ins from a folder outside the package: one file adds an observer."""

import json
import sys

import pytest
import torch

from edgeship.quantization import observers
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, run
from edgeship.toolkit.pipeline.code_closure import installed

OBSERVER = '''
"""Mean over images of the largest magnitude of each image."""
from edgeship.quantization.observers import clipped

def observe(tensor, spec):
    assert tensor.peaks.shape == (12, tensor.sample.shape[1])  # images, channels
    return clipped({factor} * float(tensor.peaks.max(1).mean()), tensor)
'''


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A function that writes a plug-in into a folder that EDGESHIP_PLUGINS names."""
    folder = tmp_path / "plugins"
    monkeypatch.setenv("EDGESHIP_PLUGINS", f"{tmp_path / 'absent'}:{folder}")

    def write(kind, name, text):
        file = folder / kind / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for module in [name for name in sys.modules if name.endswith(f".{file.stem}")]:
            del sys.modules[module]
        installed.cache_clear()  # a process reads its sources once
        return file

    return write


@pytest.fixture
def recipe(tmp_path):
    torch.manual_seed(0)
    weights.save(resnet.ResNet(resnet.architecture("resnet20", width=4)), tmp_path / "net")
    return {
        "load": {"weights": str(tmp_path / "net/model.safetensors")},
        "export": {"size": 16},
        "select": {"source": "digits:train", "images": 12},
        "quantize": {"effort": "fast"},
        "evaluate": {"source": "digits:test", "images": 40},
        "bench": {"runs": 10, "throughput_s": 0.01, "warmup_s": 0.0},
    }


def test_an_observer_of_one_file_sees_the_maxima_of_each_image(plugins, recipe, tmp_path):
    recipe["compile"] = {"targets": ["tensorrt"]}
    store = Store(tmp_path / "store")

    def ranges(name):
        plan = Recipe.build(recipe, [f"quantize.observer={name}"])
        folder = run(plan, store=store, until="quantize").folder("quantize")
        return json.loads((folder / "quantize.json").read_text())["tensorrt"]

    plugins("observers", "mean_peak", OBSERVER.format(factor=1.0))
    widest, mean = ranges("minmax"), ranges("mean_peak")
    assert mean["observer"] == "mean_peak"
    scales = {
        name: (row["scale"], widest["activations"][name]["scale"])
        for name, row in mean["activations"].items()
    }
    assert all(scale <= widest for scale, widest in scales.values())
    assert any(0 < scale < widest for scale, widest in scales.values())
    plugins("observers", "mean_peak", OBSERVER.format(factor=0.5))  # other code, other result
    half = ranges("mean_peak")
    name = max(scales, key=lambda name: scales[name][0])
    assert half["activations"][name]["scale"] == pytest.approx(scales[name][0] / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [("def observe(:", "SyntaxError"), ("import absent_module", "absent_module"), ("x = 1", "no 'observe'")],
)
def test_a_plug_in_that_cannot_be_loaded_is_named(plugins, text, message):
    file = plugins("observers", "broken", text)
    assert "broken" in observers.names()
    with pytest.raises(RecipeError, match=message) as caught:
        observers.get("broken")
    assert str(file) in str(caught.value) and caught.value.hint
