"""Every kind of network in the family: clean to the linter, accepted by NVIDIA's builder."""

from dataclasses import replace

import pytest
from qdq_graphs import quantize_by

from edgeship.targets import openvino, tensorrt
from edgeship.targets.tensorrt import fp16_graph, lint, rtx_check, versions
from edgeship.toolkit.models import resnet
from edgeship.toolkit.models.export import export

FAMILY = ("resnet18", "resnet34", "resnet50", "preact_resnet50", "plain_resnet34", "resnet20")


def graphs(name, folder, *, batch=1, keep=1.0):
    """Float and INT8 graphs of a network, dense or with a part of the channels inside its blocks."""
    arch = resnet.architecture(name, classes=10)
    if keep < 1:
        inner = tuple(
            tuple(tuple(max(16, int(w * keep) // 16 * 16) for w in block) for block in stage)
            for stage in arch.widths.inner
        )
        arch = resnet.resize(arch, replace(arch.widths, inner=inner))
    size = 32 if arch.stem == "cifar" else 64
    export(resnet.build(arch, seed=0), folder / "float.onnx", size=size, batch=batch)
    return folder / "float.onnx", quantize_by(
        tensorrt.TARGET.scheme(), folder / "float.onnx", folder / "int8.onnx"
    )


def accepted_in_int8(path, capabilities):
    verdict = rtx_check.check(path, capabilities)
    assert verdict.accepted, verdict.errors
    assert {item.precision for item in verdict.layers} == {"int8"}
    return verdict


def test_a_small_member_is_accepted_and_every_convolution_reads_int8(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    _, int8 = graphs("resnet20", tmp_path)
    for version in versions.IN_THE_FIELD:
        rules = {finding.rule for finding in lint.lint(int8, version)}
        assert rules <= ({"opset-too-new"} if version == "8.2" else set())
    verdict = accepted_in_int8(int8, ("SM86",))
    assert sum(item.kind == "Convolution" for item in verdict.layers) == 19


def test_openvino_runs_its_own_placement_in_int8(tmp_path):
    float_path, _ = graphs("resnet20", tmp_path)
    path = quantize_by(openvino.TARGET.scheme(), float_path, tmp_path / "openvino.onnx")
    compiled = openvino.TARGET.compile(path, tmp_path / "engine", "int8")
    assert compiled.warnings == ()
    judged = [item for item in compiled.audit if item.kind in ("Convolution", "Add")]
    assert len(judged) == 19 + 9
    assert {item.precision for item in judged} == {"int8"}


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1.0, 0.5], ids=["dense", "pruned"])
@pytest.mark.parametrize("batch", [1, None], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", FAMILY)
def test_the_family_is_accepted_for_every_capability(name, batch, keep, tmp_path):
    """SM75 takes the FP16-typed graph alone: TensorRT-RTX has no FP32 matrix product for Turing."""
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    float_path, int8 = graphs(name, tmp_path, batch=batch, keep=keep)
    assert lint.lint(int8, "8.5") == []
    modern = ("SM80", "SM86", "SM89", "SM120", "SM121")
    accepted_in_int8(int8, modern)
    fp16_graph.to_half(int8, tmp_path / "int8-half.onnx")
    accepted_in_int8(tmp_path / "int8-half.onnx", modern)
    fp16_graph.to_half(float_path, tmp_path / "half.onnx")
    for path in (tmp_path / "half.onnx", tmp_path / "int8-half.onnx"):
        verdict = rtx_check.check(path, ("SM75",))
        assert verdict.accepted, verdict.errors
    verdict = rtx_check.check(tmp_path / "half.onnx", modern)
    assert verdict.accepted, verdict.errors
