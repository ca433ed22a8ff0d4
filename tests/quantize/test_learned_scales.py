"""Effort max: better than what it starts from, the same every time, and a way back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from float_graphs import images, residual

from edgeship import targets
from edgeship.quantization import QuantizeOptions, learned_scales, overflow, ptq
from edgeship.quantization.calibrate import collect
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.graph import edit, io

SCHEME = replace(targets.get("openvino").scheme(), pair_sums=False)  # on every processor


def smooth(count, seed=0):
    """Images whose neighbouring pixels are alike, as those of the world are."""
    noise = images(count, 16, seed=seed)
    for axis in (2, 3):
        noise = sum(np.roll(noise, shift, axis) for shift in range(4)) / 2
    return noise.astype(np.float32)


@pytest.fixture(scope="module")
def float_graph(tmp_path_factory):
    path = residual().save(tmp_path_factory.mktemp("net") / "float.onnx")
    return io.read_classifier(path).model, collect(path, [smooth(256)])


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(learned_scales, "STEPS", 40)  # enough to move, an eighth of the time


def prepared(float_graph, effort, scheme=SCHEME):
    return ptq.prepare(*float_graph, scheme, QuantizeOptions(effort=effort))


def error(result, pixels):
    """Mean root of the divergence of what is written, weights as they were rounded."""
    exact = TorchExecutor(result.exact)
    constants = learned_scales.on_grid(TorchExecutor(result.model), result.weights)
    rounded = learned_scales._FakeQuantNetwork(exact, result.activations, constants, result.biases)
    return learned_scales._root_kl(exact, pixels, rounded)


def test_learning_lowers_the_error_on_images_outside_training_and_validation(float_graph):
    """With weights of five bits, whose rounding is most of the noise; `balanced` fits them too, in part."""
    other, coarse = smooth(256, seed=5), replace(SCHEME, weight=replace(SCHEME.weight, bits=5))
    nearest, best = (error(prepared(float_graph, effort, coarse), other) for effort in ("fast", "max"))
    assert best < 0.7 * nearest
    balanced = error(prepared(float_graph, "balanced", coarse), other)
    assert best < balanced < 0.8 * nearest


@pytest.mark.parametrize("effort", ["balanced", "max"])
def test_without_bias_correction_weights_are_fitted_and_biases_stay(float_graph, effort):
    """With weights of five bits, whose rounding is most of the noise."""
    coarse = replace(SCHEME, weight=replace(SCHEME.weight, bits=5))
    options = QuantizeOptions(effort=effort, bias_correction=False)
    result = ptq.prepare(*float_graph, coarse, options)
    assert result.biases == {} and result.learned == (effort == "max")
    pairs = [
        (edit.constant(result.model.graph.initializers[n]), edit.constant(v))
        for n, v in result.exact.graph.initializers.items()
    ]
    assert any(not np.array_equal(fitted, exact) for fitted, exact in pairs)
    other = smooth(256, seed=5)
    assert error(result, other) < 0.8 * error(prepared(float_graph, "fast", coarse), other)


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_adds_read_what_was_made_and_every_layer_reads_integers(float_graph, target):
    graph = prepared(float_graph, "max", targets.get(target).scheme()).graph().graph
    kinds = [node.op_type for node in graph]
    assert "Identity" not in kinds
    assert kinds.count("Add") == [node.op_type for node in float_graph[0].graph].count("Add") > 0
    for node in graph:
        makers = [value.producer() for value in node.inputs if value is not None and value.producer()]
        if node.op_type == "Add":
            assert {maker.op_type for maker in makers} <= {"Conv", "Relu", "MaxPool"}
        if node.op_type in ("Conv", "Gemm"):
            maker = (
                makers[0]
                if makers[0].op_type not in ("MaxPool", "Flatten")
                else makers[0].inputs[0].producer()
            )
            assert maker.op_type == "DequantizeLinear"


def test_the_weights_lie_on_their_grid_and_are_not_all_the_nearest(float_graph):
    best = prepared(float_graph, "max", replace(SCHEME, weight=replace(SCHEME.weight, bits=5)))
    moved = 0
    for name, qparams in best.weights.items():
        values = edit.constant(best.model.graph.initializers[name])
        exact = edit.constant(best.exact.graph.initializers[name])
        shape = [-1 if axis == (qparams.spec.axis or 0) else 1 for axis in range(values.ndim)]
        scale = np.reshape(qparams.scale, shape)
        steps = values / scale
        np.testing.assert_allclose(steps, steps.round(), atol=1e-3)
        assert np.abs(steps).max() <= 15.001
        moved += int((np.abs(steps - (exact / scale).round()) > 0.5).sum())
    assert moved > 10


def test_the_same_seed_gives_the_same_result(float_graph, tmp_path):
    one, two = prepared(float_graph, "max"), prepared(float_graph, "max")
    assert one.activations == two.activations
    for name, result in {"one": one, "two": two}.items():
        io.save(result.graph(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_learned_scales_are_dropped_if_validation_images_prefer_the_baseline(float_graph, monkeypatch):
    plain = prepared(float_graph, "balanced")
    monkeypatch.setattr(learned_scales, "root_kl", lambda *_: 0.0)  # a baseline without error
    result = prepared(float_graph, "max")
    assert result.activations == plain.activations
    for name in result.weights:
        initializers = [each.model.graph.initializers[name] for each in (result, plain)]
        np.testing.assert_array_equal(*map(edit.constant, initializers))
    assert "learned rounding was dropped" in result.warnings[0]


def test_no_pair_sum_saturates_after_learning(float_graph):
    best = prepared(float_graph, "max", replace(SCHEME, pair_sums=True))
    assert overflow.saturating(best.model, best.weights, "channels") == {}


def test_training_and_validation_images_are_disjoint_except_for_a_single_image():
    probe = np.arange(11.0, dtype=np.float32).reshape(11, 1, 1, 1)
    train, validation = learned_scales.split(probe)
    assert validation.ravel().tolist() == [4, 9, 10]
    assert sorted([*train.ravel(), *validation.ravel()]) == list(range(11))
    assert [len(part) for part in learned_scales.split(probe[:1])] == [1, 1]
