"""FP16 types are simulated as what they are: every FP16 tensor rounded, sums exact, on any ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from qdq_graphs import FLOAT, TENSORRT, images, residual_net, save

from edgeship import targets
from edgeship.targets import onnxruntime
from edgeship.targets._half_types import as_rounding
from edgeship.targets.tensorrt import TYPED, fp16_graph, local_gpu
from edgeship.toolkit.core.errors import ModelError


def half_graph(nodes, constants, path):
    """Save a graph (N, C) -> (N, C) of FP16 nodes between Casts."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT16),
        *nodes,
        helper.make_node("Cast", ["y"], ["logits"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("images", "logits")]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "half", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def test_an_intermediate_result_is_rounded(tmp_path):
    """ONNX Runtime computes Mul and Div in FP32 and removes its own Casts between them: 1.001 stays 1.001."""
    nodes = [helper.make_node("Add", ["x", "big"], ["sum"]), helper.make_node("Sub", ["sum", "big"], ["y"])]
    path = half_graph(nodes, {"big": np.float16(2048)}, tmp_path / "sum.onnx")
    x = np.float32([[0.9, 1.1, 2.9, 3.1]])
    with onnxruntime.simulate(path) as session:
        assert session.infer(x).tolist() == [[0.0, 2.0, 2.0, 4.0]]  # steps of 2 above 2048, ties to even


def test_values_beyond_fp16_overflow(tmp_path):
    path = half_graph(
        [helper.make_node("Mul", ["x", "k"], ["y"])], {"k": np.float16(60000)}, tmp_path / "x.onnx"
    )
    with onnxruntime.simulate(path) as session:
        assert session.infer(np.float32([[1, -1, 2, -2]])).tolist() == [[60000, -60000, np.inf, -np.inf]]


def test_fp16_quantization_rounds_to_the_nearest(tmp_path):
    """Regression: ONNX Runtime 1.23 truncates the quotient of an FP16 QuantizeLinear."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    path = half_graph(nodes, {"scale": np.float16(0.5), "zero": np.int8(0)}, tmp_path / "qdq.onnx")
    with onnxruntime.simulate(path) as session:
        assert session.infer(np.float32([[0.3, 0.7, -0.7, 100]])).tolist() == [[0.5, 0.5, -0.5, 63.5]]


@pytest.mark.parametrize("placement", [TENSORRT, FLOAT], ids=["Q/DQ", "float"])
def test_a_network_is_the_reference_evaluators(placement, tmp_path):
    path = save(residual_net(placement, batch="batch"), tmp_path / "net.onnx")
    fp16_graph.to_half(path, tmp_path / "half.onnx")
    rounding = as_rounding(onnx.load(tmp_path / "half.onnx"))
    onnx.checker.check_model(rounding, full_check=True)
    wanted = ReferenceEvaluator(rounding).run(None, {rounding.graph.input[0].name: images(2)})[0]
    with onnxruntime.simulate(tmp_path / "half.onnx") as half, onnxruntime.simulate(path) as single:
        got, exact = half.infer(images(2)), single.infer(images(2))
    largest = np.abs(exact).max()
    assert np.abs(got - wanted).max() <= (2**-10 if placement is FLOAT else 2**-7) * largest
    assert 0 < np.abs(got - exact).max() < 2**-6 * largest


def test_other_graphs_are_left_alone():
    model = residual_net(TENSORRT)
    assert as_rounding(model) is model


@pytest.mark.parametrize("rounds", [True, False])
def test_a_runtime_that_cuts_fp16_values_off_is_named(rounds, tmp_path, monkeypatch):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    fp16_graph.to_half(path, tmp_path / "half.onnx")
    monkeypatch.setattr(onnxruntime, "_rounds_half", lambda: rounds)
    warnings = [
        [
            text
            for text in targets.get("onnxruntime").compile(each, tmp_path / "out", "int8").warnings
            if "cuts" in text
        ]
        for each in (tmp_path / "half.onnx", path)
    ]
    assert [len(found) for found in warnings] == [0 if rounds else 1, 0]


def test_whether_this_version_rounds_is_measured():
    old = tuple(map(int, targets.get("onnxruntime").versions()["onnxruntime"].split(".")[:2])) < (1, 24)
    assert onnxruntime._rounds_half() is not old


def test_the_fp16_variant_of_tensorrt_is_checked_and_simulated_in_its_types(tmp_path, monkeypatch):
    monkeypatch.setattr(local_gpu, "available", lambda: False)
    path = save(residual_net(FLOAT), tmp_path / "net.onnx")
    built = targets.get("tensorrt").compile(path, tmp_path / "out", "fp16")
    assert (built.simulated, built.instead, built.runs_here) == (TYPED, (TYPED,), False)
    stored = {item.data_type for item in onnx.load(tmp_path / "out" / TYPED).graph.initializer}
    assert TensorProto.FLOAT not in stored
    assert {layer.precision for layer in built.audit if layer.weighted} <= {"fp16"}


def test_a_network_that_fp16_cannot_hold_has_no_fp16_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(local_gpu, "available", lambda: False)

    def blow_up(model):
        bias = next(item for item in model.graph.initializer if item.name == "conv1.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(32, 1e5, np.float32), "conv1.bias"))

    path = save(residual_net(FLOAT), tmp_path / "net.onnx", blow_up)
    with pytest.raises(ModelError, match=r"conv1\.bias.*65504"):
        targets.get("tensorrt").compile(path, tmp_path / "out", "fp16")
