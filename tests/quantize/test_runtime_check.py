"""The check of a runtime finds a fault, names where it begins, and leaves that in float."""

import numpy as np
import onnx
import pytest
from float_graphs import images, residual

from edgeship import targets
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.quantization.runtime_check import Runtime
from edgeship.targets.onnxruntime import simulate
from edgeship.toolkit.core.errors import TargetError

PIXELS = images(16, size=16)


def exact(graph, batch):
    with simulate(graph, threads=1) as session:
        return session.infer(batch)


def faulty(broken):
    """Return a runtime that adds noise to graphs for which `broken` is true."""

    def real(graph, batch):
        logits = exact(graph, batch)
        noise = np.random.default_rng(0).normal(0, logits.std(), logits.shape)
        return logits + noise.astype(np.float32) if broken(onnx.load(graph).graph) else logits

    return Runtime("openvino", real, exact)


def quantizes(graph, tensor):
    return any(node.op_type == "QuantizeLinear" and node.input[0] == tensor for node in graph.node)


def checked(runtime, tmp_path):
    path = residual().save(tmp_path / "float.onnx")
    out, scheme = tmp_path / "int8.onnx", targets.get("openvino").scheme()
    options = QuantizeOptions(effort="fast")
    summary = quantize(path, collect(path, [PIXELS]), scheme, options, out, runtime=runtime)
    return summary, onnx.load(out).graph


def test_without_a_fault_nothing_changes(tmp_path):
    summary, graph = checked(faulty(lambda graph: False), tmp_path)
    result = summary["runtime_check"]
    assert (result["status"], result["repaired"], result["begins_at"]) == ("equal", [], None)
    assert result["images"] == 16 and result["exact_db"] == result["real_db"] > 20
    assert not [line for line in summary["warnings"] if "openvino" in line]
    assert set(summary["activations"]) == {
        node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"
    }


@pytest.mark.parametrize("tensor", ["images", "conv5", "relu7"])
def test_the_tensor_where_a_fault_begins_is_left_in_float(tensor, tmp_path):
    summary, graph = checked(faulty(lambda graph: quantizes(graph, tensor)), tmp_path)
    result = summary["runtime_check"]
    assert result["status"] == "repaired"
    assert result["repaired"] == [{"tensor": tensor, "layer": tensor}]
    assert result["before_db"] < 5 < result["real_db"]
    assert not quantizes(graph, tensor) and tensor not in summary["activations"]
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == len(summary["activations"]) > 5
    (warning,) = [line for line in summary["warnings"] if "openvino" in line]
    assert tensor in warning and "left in float" in warning


def test_two_faults_are_both_found(tmp_path):
    summary, _ = checked(
        faulty(lambda graph: quantizes(graph, "relu4") or quantizes(graph, "relu9")), tmp_path
    )
    assert [each["tensor"] for each in summary["runtime_check"]["repaired"]] == ["relu4", "relu9"]


def test_what_nothing_mends_is_named_and_warned_of(tmp_path):
    summary, _ = checked(
        faulty(lambda graph: any(n.op_type == "DequantizeLinear" for n in graph.node)), tmp_path
    )
    assert summary["runtime_check"]["status"] == "differs"
    assert summary["runtime_check"]["real_db"] < 5 < summary["runtime_check"]["exact_db"]
    (warning,) = [line for line in summary["warnings"] if "openvino" in line]
    assert "does not help" in warning


def test_a_graph_that_the_runtime_refuses_is_reported(tmp_path):
    def refuse(graph, batch):
        raise TargetError("no kernel for Conv", hint="")

    summary, _ = checked(Runtime("openvino", refuse, exact), tmp_path)
    assert summary["runtime_check"]["status"] == "refused"
    assert "no kernel for Conv" in summary["runtime_check"]["reason"]


def test_logits_that_are_not_numbers_differ(tmp_path):
    runtime = Runtime("openvino", lambda graph, batch: exact(graph, batch) * np.float32(np.nan), exact)
    result = checked(runtime, tmp_path)[0]["runtime_check"]
    assert (result["status"], result["real_db"]) == ("differs", None)
