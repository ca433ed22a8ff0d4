"""The build path of the TensorRT backend for real, against NVIDIA's own parser and builder, without a GPU.

TensorRT-RTX builds ahead of time for desktop GPUs: this shows that calls and types are right, not that a
Jetson was tried.
"""

from importlib.util import find_spec

import pytest
from qdq_graphs import OPENVINO, TENSORRT, Placement, residual_net, save

pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the extra tensorrt-rtx")


@pytest.fixture
def build(run, tmp_path):
    def call(placement, *arguments):
        graph = save(residual_net(placement), tmp_path / "g.onnx")
        return run(
            "build",
            "--graph",
            graph,
            "--out",
            tmp_path / "e.plan",
            "--backend",
            "tensorrt",
            "--sdk",
            "tensorrt_rtx",
            "--precision",
            "int8",
            *arguments,
        )

    return call


def test_a_residual_net_builds_and_is_reused(build, tmp_path):
    first = build(TENSORRT, "--workspace-mib", 64, "--optimization-level", 1)
    assert first.exit_code == 0, first.result
    assert (tmp_path / "e.plan").stat().st_size == first.result["size_bytes"] > 10_000
    assert first.result["identity"]["sdk_module"] == "tensorrt_rtx"
    assert "fake" not in first.result
    assert build(TENSORRT, "--workspace-mib", 64, "--optimization-level", 1).result["reused"] is True


@pytest.mark.parametrize(
    ("placement", "code"),
    [
        (Placement(zero_point=3), "graph-asymmetric"),
        (Placement(axis=None), "graph-axis"),
        (OPENVINO, "graph-unsigned"),
    ],
)
def test_what_nvidias_parser_refuses_is_translated(build, placement, code):
    answer = build(placement)
    assert answer.exit_code == 1
    assert answer.result["error"]["code"] == code, answer.result


def test_running_without_a_gpu_is_explained(build, run, tmp_path):
    build(TENSORRT)
    (tmp_path / "x").write_bytes(b"")
    arguments = ["infer", "--engine", tmp_path / "e.plan", "--input", tmp_path / "x", "--out", tmp_path / "y"]
    answer = run(*arguments)
    if answer.result["error"]["code"] == "shape-mismatch":
        pytest.skip("there is a GPU here: the engine loaded")
    assert answer.result["error"]["code"] in ("cuda-driver", "cudart-missing")
