"""Files of exporters, converters and optimizers are converted to the ordinary form of the network."""

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from float_graphs import images
from foreign_forms import FORMS, SIDE

from edgeship import targets
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.targets.onnxruntime import simulate
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.cost import cost
from edgeship.toolkit.graph.ending import truncate_to_logits

BETWEEN = [f"opset {number}" for number in (19, 20, 22, 23, 24)]  # left to the slow test
TARGETS = ("openvino", "onnxruntime", "tensorrt")


def run(path, pixels):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels})[0]


def sqnr(exact, coarse):
    noise = ((exact - coarse).astype(np.float64) ** 2).sum()
    return 10 * np.log10((exact.astype(np.float64) ** 2).sum() / noise)


def quantized(path, target, effort, out):
    """SQNR of the logits, what was written, and the warnings."""
    graph = io.read_classifier(path)
    calibration, test = images(16, SIDE), images(16, SIDE, seed=7)
    scheme = targets.get(target).scheme()
    summary = quantize(graph, collect(graph, [calibration]), scheme, QuantizeOptions(effort=effort), out)
    written = io.read(out).model
    truncate_to_logits(written)
    results = []
    for name, model in (("exact", graph.model), ("written", written)):
        io.save(model, out.with_name(f"{name}.onnx"))
        with simulate(out.with_name(f"{name}.onnx")) as session:
            results.append(session.infer(test))
    return sqnr(*results), summary


@cache
def ordinary(make, target, effort, folder):
    onnx.save(make(), folder / "ordinary.onnx")
    value, summary = quantized(folder / "ordinary.onnx", target, effort, folder / "ordinary-q.onnx")
    return value, len(summary["weights"]), cost(folder / "ordinary.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ordinary")


def check(form, target, effort, folder, tmp_path):
    make, other = FORMS[form]
    onnx.save(make(), tmp_path / "m.onnx")
    onnx.save(other(), tmp_path / "other.onnx")
    pixels = images(4, SIDE)
    graph = io.read_classifier(tmp_path / "m.onnx")
    io.save(graph.model, tmp_path / "read.onnx")
    onnx.checker.check_model(tmp_path / "read.onnx", full_check=True)
    expected = run(tmp_path / "other.onnx", pixels)
    np.testing.assert_allclose(
        run(tmp_path / "read.onnx", pixels), expected, atol=1e-5 * np.abs(expected).max()
    )

    value, summary = quantized(tmp_path / "m.onnx", target, effort, tmp_path / "q.onnx")
    usual, weights, costs = ordinary(other, target, effort, folder)
    assert value == pytest.approx(usual, abs=0.2)
    assert len(summary["weights"]) == weights
    assert cost(tmp_path / "m.onnx") == cost(tmp_path / "read.onnx") == costs
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)
    assert not [text for text in summary["warnings"] if "fast" in text]
    outputs = [onnx.load(tmp_path / name).graph.output for name in ("m.onnx", "q.onnx")]
    assert [value.name for value in outputs[0]] == [value.name for value in outputs[1]]
    if graph.ending is not None:  # it ends as the file does
        first, second = (len(value.type.tensor_type.shape.dim) for (value,) in outputs)
        assert first == second
        exact, coarse = run(tmp_path / "m.onnx", pixels), run(tmp_path / "q.onnx", pixels)
        assert np.abs(exact - coarse).max() <= 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("form", [form for form in FORMS if form not in BETWEEN])
def test_a_foreign_form_is_quantized_as_the_ordinary_one(form, folder, tmp_path):
    target = TARGETS[list(FORMS).index(form) % len(TARGETS)]
    check(form, target, "fast", folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", FORMS)
def test_a_foreign_form_is_fitted_as_the_ordinary_one(form, target, folder, tmp_path):
    check(form, target, "balanced", folder, tmp_path)
    if target != "tensorrt":  # what runs here loads, and computes it
        built = targets.get(target).compile(tmp_path / "q.onnx", tmp_path / "engine", "int8")
        pixels = images(8, SIDE, seed=7)
        with targets.get(target).open(tmp_path / "engine" / built.file) as engine:
            real = engine.infer(pixels)
        with simulate(tmp_path / "q.onnx") as exact:
            assert sqnr(exact.infer(pixels), real) > 35
