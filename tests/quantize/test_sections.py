"""Operators without a gradient: ONNX Runtime computes them, and the rest of the network loses nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from float_graphs import Graph, images
from onnx import TensorProto, helper, numpy_helper

from edgeship import targets
from edgeship.quantization import QuantizeOptions, agreement, learned_scales, ptq
from edgeship.quantization.calibrate import collect
from edgeship.quantization.onnx_node import OnnxNode
from edgeship.quantization.torch_executor import Execution, TorchExecutor
from edgeship.quantization.torch_ops import OPERATIONS
from edgeship.toolkit.core.statistics import sqnr_db
from edgeship.toolkit.graph import io

SCHEME = targets.get("onnxruntime").scheme()


def loop(g, x, factors=(0.5, 2.0)):
    """A Loop that multiplies by one factor after another: no library differentiates it as a node."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["factors", "round"], ["factor"]),
            helper.make_node("Mul", ["state", "factor"], ["next"]),
            helper.make_node("Identity", ["going"], ["goes_on"]),
        ],
        "body",
        [
            info("round", TensorProto.INT64, []),
            info("going", TensorProto.BOOL, []),
            info("state", TensorProto.FLOAT, None),
        ],
        [info("goes_on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(factors, np.float32), "factors")],
    )
    trips, going = g.constant("trips", len(factors), np.int64), g.constant("start", True, np.bool_)
    return g.node("Loop", [trips, going, x], g.shapes[x], body=body)


def network(spot=None):
    """Residual, of channels with different ranges, with a Loop that changes nothing at a spot."""
    g = Graph(size=16)
    gains = np.random.default_rng(0)

    def conv(x, outputs, kernel=3, stride=1):
        shape = (outputs, g.shapes[x][0], kernel, kernel)
        weight = g.random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        loud = weight * 10 ** gains.uniform(-0.4, 0.4, (outputs, 1, 1, 1))
        return g.conv(x, outputs, kernel, stride=stride, weight=loud)

    def at(place, x):
        return loop(g, x) if place == spot else x

    x = at("after the stem", g.unary("Relu", conv("images", 16)))
    x = g.unary("Relu", g.add(conv(g.unary("Relu", conv(x, 16)), 16), x))
    x = g.unary("Relu", g.add(conv(at("in a block", g.unary("Relu", conv(x, 16))), 16), x))
    main = conv(g.unary("Relu", conv(x, 32, stride=2)), 32)
    x = g.unary("Relu", g.add(main, conv(x, 32, 1, stride=2)))
    return g.head(at("before the head", x), 10)


def smooth(count, seed=0):
    """Images whose neighbouring pixels are alike."""
    noise = images(count, 16, seed=seed)
    for axis in (2, 3):
        noise = sum(np.roll(noise, shift, axis) for shift in range(4)) / 2
    return noise.astype(np.float32)


def prepared(g, folder, effort, scheme=SCHEME):
    path = g.save(folder / "float.onnx")
    classifier = io.read_classifier(path)
    return ptq.prepare(
        classifier.model, collect(path, [smooth(64)], exact=True), scheme, QuantizeOptions(effort=effort)
    )


def run(path, pixels):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels})[0]


def sqnr(g, folder, effort):
    result = prepared(g, folder, effort)
    io.save(result.graph(), folder / "int8.onnx")
    pixels = smooth(128, seed=7)
    return sqnr_db(run(folder / "float.onnx", pixels), run(folder / "int8.onnx", pixels)), result.warnings


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return {
        effort: sqnr(network(), tmp_path_factory.mktemp(effort), effort)[0] for effort in ("fast", "balanced")
    }


@pytest.mark.parametrize(
    ("spot", "node", "loss"),
    [("after the stem", "loop2", 1.0), ("in a block", "loop9", 1.0), ("before the head", "loop18", 1.6)],
)
def test_an_operator_without_gradient_costs_little(spot, node, loss, without, tmp_path):
    assert without["balanced"] > without["fast"] + 3
    reached, warnings = sqnr(network(spot), tmp_path, "balanced")
    assert reached > without["balanced"] - loss
    assert len(warnings) == 1 and f"Loop (node '{node}')" in warnings[0] and "effort" not in warnings[0]


@pytest.mark.parametrize("kind", ["Tanh", "LRN"])
def test_estimated_gradients_serve_as_well_as_exact_ones(kind, monkeypatch, tmp_path):
    def built():
        g = Graph(size=16)
        x = g.unary("Relu", g.conv("images", 16))
        x = g.unary(kind, g.conv(x, 16), **({"size": 5, "alpha": 0.1} if kind == "LRN" else {}))
        return g.head(g.conv(g.unary("Relu", g.conv(x, 16)), 16), 10)

    exact, silent = sqnr(built(), tmp_path, "balanced")
    assert silent == []
    monkeypatch.delitem(OPERATIONS, kind)
    estimated, warnings = sqnr(built(), tmp_path, "balanced")
    assert abs(estimated - exact) < 1 and f"{kind} (node" in warnings[0]


def test_scales_before_such_an_operator_follow_what_it_reads(monkeypatch, tmp_path):
    monkeypatch.setattr(learned_scales, "STEPS", 8)
    coarse = replace(SCHEME, activation=replace(SCHEME.activation, bits=5), unsigned_activation=None)
    result = prepared(network("in a block"), tmp_path, "balanced", coarse)
    exact = TorchExecutor(result.exact, execution=result.execution)
    rounded = learned_scales._FakeQuantNetwork(
        exact, result.activations, learned_scales.on_grid(exact, result.weights), {}
    )
    learned_scales._learn_scales(torch.from_numpy(smooth(32)), rounded, 0)
    moved = {name: q.scale[0] / result.activations[name].scale[0] for name, q in rounded.qparams().items()}
    assert abs(moved["images"] - 1) > 1e-3


def test_estimated_gradients_keep_the_relative_size_of_those_of_the_output():
    g = Graph()
    model = io.ir.from_proto(g.head(loop(g, g.conv("images", 4), (3.0, 2.0))).model())
    node = next(node for node in model.graph if node.op_type == "Loop")
    runtime = OnnxNode(node, model)
    x = torch.from_numpy(images(2, 8, 4)).requires_grad_()
    values = {"trips": torch.tensor(2), "start": torch.tensor(True), "conv0": x}
    (y,) = runtime([values[name] for name in runtime.names])
    torch.testing.assert_close(y, 6 * x)
    weights = torch.from_numpy(images(2, 8, 4, seed=3))
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    x, y = x.detach(), y.detach()
    torch.testing.assert_close(gradient.norm() * x.norm(), weights.norm() * y.norm())
    (end,) = runtime([torch.tensor(2), torch.tensor(True), x.requires_grad_()], estimate=False)
    assert not end.requires_grad


def test_a_node_that_differs_is_run_by_onnx_runtime(monkeypatch, tmp_path):
    """As an operator whose table entry is wrong for its attributes would be."""
    g = Graph()
    g.head(g.unary("Tanh", g.unary("Softsign", g.conv("images", 4))))
    path = g.save(tmp_path / "m.onnx")
    monkeypatch.setitem(OPERATIONS, "Softsign", lambda call: call[0])
    network = agreement.matching_executor(io.read_classifier(path).model, images(2))
    assert network.execution == Execution(by_runtime=frozenset({"softsign1"}))
    got = network(torch.from_numpy(images(2))).detach().numpy()
    np.testing.assert_allclose(got, run(path, images(2)), atol=1e-5)


def test_a_graph_for_one_image_that_moves_the_batch_is_run_image_by_image(tmp_path):
    """Its Reshape makes of the channels of the one image what looks like a batch."""
    g = Graph(batch=1)
    x = g.node("Reshape", [g.conv("images", 4), g.constant("split", [2, 2, 8, 8], np.int64)], (2, 8, 8))
    x = g.node("Softmax", [x], (2, 8, 8), axis=0)
    x = g.node("Reshape", [x, g.constant("together", [1, 4, 8, 8], np.int64)], (4, 8, 8))
    path = g.head(x).save(tmp_path / "m.onnx")
    network = agreement.matching_executor(io.read_classifier(path).model, images(2))
    assert network.execution == Execution(one_image=True)
    with torch.no_grad():
        got = network(torch.from_numpy(images(3)))
    expected = np.concatenate([run(path, image[None]) for image in images(3)])
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
