"""Small graphs of many forms: what a runtime computes is what the graph says, in exact arithmetic."""

from functools import cache

import graph_forms
import numpy as np
import onnx
import onnxruntime
import pytest

from edgeship import targets
from edgeship.calibration.preprocess import normalize
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.toolkit.core.statistics import sqnr_db
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph import io
from edgeship.toolkit.pipeline import quantizing

PREPROCESS = Preprocess(resize=graph_forms.SIDE, crop=graph_forms.SIDE)
FORMS = tuple(graph_forms.FORMS)
RUNTIMES = ("openvino", "onnxruntime")
QUICK = (  # each was wrong once
    ("head-max-relu", "openvino"),
    ("head-reduce-max-none", "openvino"),
    ("head-reduce-min-none", "openvino"),
    ("tokens-relu", "openvino"),
    ("inception-average-none", "openvino"),
    ("pool-add-average-counted-none", "openvino"),
    ("pool-average-counted-none", "openvino"),
    ("pool-concat-nearest-none", "openvino"),
    ("concat-relu-none", "openvino"),
    ("split-swap-none", "openvino"),
    ("block-focus", "openvino"),
    ("gate-spatial", "openvino"),
    ("extreme-zero-filters-huge-bias", "onnxruntime"),
    ("extreme-tiny-filters-huge-bias", "onnxruntime"),
    ("extreme-dead-then-bias", "onnxruntime"),
    ("heads-vgg", "openvino"),
    ("block-efficient", "tensorrt"),
)


@cache
def pixels():
    """Coarse squares and noise, (N, H, W, 3); the first 40 calibrate."""
    random = np.random.default_rng(1)
    squares = random.integers(0, 256, (56, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    return (squares + random.integers(-40, 41, squares.shape)).clip(0, 255).astype(np.uint8)


def test_there_are_many_forms():
    assert len(FORMS) >= 290


@pytest.mark.parametrize(("name", "target"), QUICK)
def test_forms_that_were_wrong_once(name, target, tmp_path):
    computes_what_it_says(name, target, tmp_path)


@pytest.mark.parametrize(
    ("name", "target"), [("concat-none-none", "openvino"), ("residual-relu-relu-conv", "onnxruntime")]
)
def test_the_same_of_pixels(name, target, tmp_path):
    computes_what_it_says(name, target, tmp_path, takes_pixels=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", [*RUNTIMES, "tensorrt"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form(name, target, tmp_path):
    computes_what_it_says(name, target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_pixels(name, target, tmp_path):
    computes_what_it_says(name, target, tmp_path, takes_pixels=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", [*RUNTIMES, "tensorrt"])
@pytest.mark.parametrize("name", FORMS[::9])
def test_forms_with_learned_scales(name, target, tmp_path):
    computes_what_it_says(name, target, tmp_path, effort="max")


def computes_what_it_says(name, target, folder, *, effort="balanced", takes_pixels=False):
    """Compare on images that the check did not see; nothing had to be repaired."""
    onnx.save(graph_forms.build(name), folder / "float.onnx")
    graph = io.read_classifier(folder / "float.onnx")
    images, out = normalize(pixels(), PREPROCESS), folder / "int8.onnx"
    statistics = collect(graph, [images[:40]])
    with quantizing.runtime(target, PREPROCESS if takes_pixels else None) as runtime:
        scheme = targets.get(target).scheme()
        summary = quantize(graph, statistics, scheme, QuantizeOptions(effort=effort), out, runtime=runtime)
        exact = exact_logits(out, images[40:])
        real = runtime.real(out, images[40:]) if runtime else simulated(out, images[40:])
    assert runtime is None or summary["runtime_check"]["status"] == "equal", summary["runtime_check"]
    network = exact_logits(folder / "float.onnx", images[40:])
    lost_db = sqnr_db(network, exact) - sqnr_db(network, real)
    assert lost_db <= 3 or sqnr_db(exact, real) >= 50, (lost_db, sqnr_db(exact, real))


def simulated(graph, images):
    """Logits that stand for a target that does not run here."""
    with targets.onnxruntime.simulate(graph, threads=1) as session:
        return session.infer(images)


def exact_logits(graph, images):
    """Every operation as it is written, by ONNX Runtime without any optimization."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]
