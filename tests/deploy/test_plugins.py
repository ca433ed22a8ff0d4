"""Plug-ins from a folder outside the package: one file adds an observer, one a target."""

import json
import sys

import pytest
import torch
from click.testing import CliRunner
from loopback import QUICK, quiet

from edgeship.quantization import observers
from edgeship.toolkit.cli.app import app
from edgeship.toolkit.core import plugins as core_plugins
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.deploy import release
from edgeship.toolkit.deploy.bundle_from_run import bundle_of
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


TARGET = '''
"""ONNX Runtime under another name, as a runtime that the product does not have."""
from __future__ import annotations

from edgeship.targets.runner import sysfs
from edgeship.targets.runner.backend import ArraySession, Built

TITLE = "Toy Runtime"


def scheme(cpu=None):
    from edgeship.toolkit.core.quant import QuantScheme, QuantSpec

    signed = QuantSpec("int8", symmetric=True)
    weight = QuantSpec("int8", symmetric=True, axis=0, bits=7)
    return QuantScheme("toy", weight, signed, None, add_inputs="all", max_pool="input", store_integers=True)


def load(sdk=None):
    return Toy()


class Toy:
    name, version, fake, suffix, typed_only = "toy", "1.2.3", False, ".toy", False

    def rank(self, tree):
        return 0

    def identity(self, tree):
        return sysfs.cpu_identity(tree)

    def precisions(self, tree):
        return ["fp32", "int8"]

    def build(self, graph, options, timing_cache, scratch):
        with open(graph, "rb") as stream:
            return Built(stream.read(), [])

    def open(self, engine, precision, threads, profile):
        return Session(engine)


class Session(ArraySession):
    takes_pixels, threads = False, 1

    def __init__(self, engine):
        import onnxruntime

        self._session = onnxruntime.InferenceSession(engine, providers=["CPUExecutionProvider"])
        (entry,) = self._session.get_inputs()
        self.name, self.batch, self.image_shape = entry.name, None, tuple(entry.shape[1:])
        self.batch_max, self.classes = None, self._session.get_outputs()[0].shape[-1]
        if isinstance(entry.shape[0], int):
            self.batch = self.batch_max = entry.shape[0]

    def run(self, images):
        return self._session.run(None, {self.name: images})[0]
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


def test_a_target_of_one_file_runs_reports_and_deploys(plugins, recipe, park, tmp_path):
    recipe["compile"] = {"targets": ["toy"]}
    with pytest.raises(RecipeError, match="toy"):
        Recipe.build(recipe)
    plugins("targets", "toy", TARGET)
    done = run(Recipe.build(recipe), store=Store(tmp_path / "store"), out=tmp_path / "out")
    rows = {row["name"]: row for row in done.report["variants"]}
    assert rows["toy-int8"]["top1"] is not None and rows["toy-int8"]["latency_ms"]["p50"] > 0
    assert rows["toy-int8"]["measured_on"].startswith("this machine")
    assert "Toy Runtime INT8" in (tmp_path / "out/report.html").read_text()

    doctor = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(doctor.stdout)["targets"]["toy"] == {"versions": {"toy": "1.2.3"}}

    server = park.server("device")
    entry = park.entry(server, target="toy", python=sys.executable)
    outcome = release.deploy(entry, bundle_of(tmp_path / "out"), QUICK, quiet)
    assert outcome.state == "live" and outcome.record["build"]["version"] == "1.2.3"
    assert outcome.record["accuracy"]["agreement"] == 1.0 and outcome.record["latency_ms"]["p50"] > 0
    assert (server.root / "current/engine/model").is_file()
    assert release.facts(entry)["backends"]["toy"]["available"]


def test_an_entry_point_of_an_installed_distribution_is_a_plug_in(tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text(OBSERVER.format(factor=1.0))
    described = tmp_path / "theirs-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[edgeship.observers]\ntheir_peak = their_module\nuninstalled = no_such_module\n"
    )
    core_plugins._entry_points.cache_clear()
    assert "their_peak" not in observers.names()
    monkeypatch.syspath_prepend(tmp_path)
    core_plugins._entry_points.cache_clear()
    assert "their_peak" in observers.names() and "uninstalled" not in observers.names()
    assert callable(observers.get("their_peak"))
    core_plugins._entry_points.cache_clear()
