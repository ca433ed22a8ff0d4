"""OpenVINO and ONNX Runtime: they run, agree with each other, and their audits tell the truth."""

import json

import numpy as np
import pytest
from qdq_graphs import FLOAT, OPENVINO, TENSORRT, Placement, images, residual_net, save

from edgeship import targets
from edgeship.targets import onnxruntime, openvino
from edgeship.toolkit.core.artifact import canonical_json
from edgeship.toolkit.core.errors import RecipeError, TargetError

RUNTIMES = ("openvino", "onnxruntime")


def audit_of(compiled, kind):
    return {layer.name: layer for layer in compiled.audit if layer.kind == kind}


def test_every_target_is_found_and_none_is_called_runner():
    assert targets.names() == ("onnxruntime", "openvino", "tensorrt")
    for name in ("runner", "runtime"):  # the code that runs on devices is not a target here
        with pytest.raises(RecipeError, match=f"no target named '{name}'") as caught:
            targets.get(name)
        assert "runner" not in caught.value.hint


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 4, "batch"], ids=["static 1", "static 4", "dynamic"])
def test_any_number_of_images_runs_on_any_batch(name, batch, tmp_path):
    target = targets.get(name)
    compiled = target.compile(save(residual_net(FLOAT, batch=batch), tmp_path / "net.onnx"), tmp_path, "fp32")
    five = images(5)
    with target.open(tmp_path / compiled.file, threads=1) as session:
        together = session.infer(five)
        one_by_one = np.concatenate([session.infer(five[i : i + 1]) for i in range(5)])
    assert together.shape == (5, 10)
    np.testing.assert_allclose(together, one_by_one, atol=1e-4)


def test_float_graphs_agree_across_runtimes(tmp_path):
    model = save(residual_net(FLOAT), tmp_path / "net.onnx")
    logits = []
    for name in RUNTIMES:
        target = targets.get(name)
        compiled = target.compile(model, tmp_path / name, "fp32")
        with target.open(tmp_path / name / compiled.file, threads=1) as session:
            logits.append(session.infer(images(3)))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4 * np.abs(logits[0]).max())


@pytest.mark.parametrize("placement", [FLOAT, OPENVINO])
def test_the_same_graph_gives_the_same_openvino_files(placement, tmp_path):
    """Whatever the process has converted before: a resumed run publishes the same bytes."""
    model = save(residual_net(placement), tmp_path / "net.onnx")
    for out in ("first", "second"):
        targets.get("openvino").compile(model, tmp_path / out, "int8" if placement is OPENVINO else "fp32")
    for name in ("model.xml", "model.bin"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_openvino_runs_an_openvino_graph_in_int8_and_close_to_the_simulation(tmp_path):
    model = save(residual_net(OPENVINO), tmp_path / "net.onnx")
    compiled = openvino.TARGET.compile(model, tmp_path / "engine", "int8")
    convolutions, adds = audit_of(compiled, "Convolution"), audit_of(compiled, "Add")
    assert set(convolutions) == {
        *("conv1", "layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2", "layer2.downsample")
    }
    assert {layer.precision for layer in (*convolutions.values(), *adds.values())} == {"int8"}
    assert set(adds) == {"layer1.add", "layer2.add"}
    assert all(layer.time_ms is not None for layer in convolutions.values())
    with (
        openvino.TARGET.open(tmp_path / "engine" / compiled.file, threads=1) as engine,
        onnxruntime.simulate(model, threads=1) as simulation,
    ):
        np.testing.assert_allclose(engine.infer(images()), simulation.infer(images()), atol=0.1)


def test_the_audit_finds_a_float_convolution_and_names_its_onnx_node(tmp_path):
    def unquantize(model):
        for node in model.graph.node:
            if node.name == "layer1.conv2":
                node.input[0] = "layer1.relu1"

    model = save(residual_net(OPENVINO), tmp_path / "net.onnx", unquantize)
    compiled = openvino.TARGET.compile(model, tmp_path, "int8")
    found = audit_of(compiled, "Convolution")["layer1.conv2"]
    assert found.precision == "fp32"
    assert "Q/DQ" in found.warning
    assert any(warning.startswith("layer1.conv2: runs in fp32") for warning in compiled.warnings)


def test_an_add_with_one_float_input_does_not_count_as_int8(tmp_path):
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")  # only its shortcut is quantized
    found = audit_of(openvino.TARGET.compile(model, tmp_path, "int8"), "Add")["layer1.add"]
    assert found.precision == "fp32"


def test_the_audit_finds_an_add_that_is_not_quantized(tmp_path):
    model = save(residual_net(Placement("uint8", add_inputs="none")), tmp_path / "net.onnx")
    compiled = openvino.TARGET.compile(model, tmp_path, "int8")
    for add in audit_of(compiled, "Add").values():
        assert add.precision == "fp32"
        assert "not fused" in add.warning
    assert "writes fp32" in audit_of(compiled, "Convolution")["layer1.conv2"].warning


def test_a_float_variant_has_no_warnings(tmp_path):
    model = save(residual_net(FLOAT), tmp_path / "net.onnx")
    for name in RUNTIMES:
        compiled = targets.get(name).compile(model, tmp_path / name, "fp32")
        assert compiled.warnings == ()
        assert {layer.precision for layer in compiled.audit} == {"fp32"}


def test_onnxruntime_reports_its_integer_kernels(tmp_path):
    model = save(residual_net(OPENVINO), tmp_path / "net.onnx")
    compiled = onnxruntime.TARGET.compile(model, tmp_path / "u8", "int8")
    assert {layer.precision for layer in audit_of(compiled, "Convolution").values()} == {"int8"}
    assert set(audit_of(compiled, "Add")) == {"layer1.add", "layer2.add"}
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    compiled = onnxruntime.TARGET.compile(model, tmp_path / "s8", "int8")  # a ReLU stays between conv and Q
    assert audit_of(compiled, "Convolution")["layer1.conv1"].precision == "fp32"
    assert not list(tmp_path.rglob(".optimized*"))


def test_a_simulation_neither_fuses_nor_saturates(tmp_path):
    """One 1x1 convolution of 255 * 127 * 2 channels: in 16 bits it would saturate."""
    from onnx import TensorProto, helper

    def pair(writer, name, scale, dtype):
        return writer.qdq(name, np.float32(scale), dtype, 0)

    from qdq_graphs import Writer

    w = Writer(TENSORRT)
    x = pair(w, "images", 1.0, "uint8")
    w.constant("weight", np.full((1, 2, 1, 1), 127.0, np.float32))
    w.node("Conv", [x, pair(w, "weight", 1.0, "int8")], "y")
    shapes = (("images", [1, 2, 1, 1]), ("y", [1, 1, 1, 1]))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    graph = helper.make_graph(w.nodes, "one", infos[:1], infos[1:], w.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with onnxruntime.simulate(save(model, tmp_path / "one.onnx"), threads=1) as session:
        got = session.infer(np.full((1, 2, 1, 1), 255.0, np.float32))
    assert got.item() == 2 * 255 * 127


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("content", [None, b"", b"not an onnx file" * 50], ids=["absent", "empty", "garbage"])
def test_a_broken_file_is_an_error_with_a_hint(name, content, tmp_path):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TargetError, match="cannot") as caught:
        targets.get(name).compile(path, tmp_path / "out", "fp32")
    assert caught.value.hint


@pytest.mark.parametrize("name", RUNTIMES)
def test_throughput_counts_images_not_calls(name, tmp_path):
    target = targets.get(name)
    compiled = target.compile(save(residual_net(FLOAT, batch=4), tmp_path / "net.onnx"), tmp_path, "fp32")
    engine = tmp_path / compiled.file
    assert target.throughput_ips(engine, images(4), threads=1, duration_s=0.05) > 40


def test_a_compilation_becomes_json(tmp_path):
    compiled = openvino.TARGET.compile(save(residual_net(FLOAT), tmp_path / "net.onnx"), tmp_path, "fp32")
    assert json.loads(canonical_json(compiled))["runs_here"] is True


@pytest.mark.parametrize("name", RUNTIMES)
def test_images_it_cannot_take_are_a_target_error(name, tmp_path):
    target = targets.get(name)
    compiled = target.compile(save(residual_net(FLOAT), tmp_path / "net.onnx"), tmp_path, "fp32")
    with (
        target.open(tmp_path / compiled.file, threads=1) as session,
        pytest.raises(TargetError, match=r"cannot run images of shape \(1, 1, 32, 32\)") as caught,
    ):
        session.infer(images(1)[:, :1])
    assert "edgeship inspect" in caught.value.hint


@pytest.mark.skipif("bf16" not in targets.get("openvino").precisions(), reason="the CPU has no bfloat16")
def test_openvino_computes_in_bfloat16_where_the_file_says_so(tmp_path):
    model, target = save(residual_net(FLOAT), tmp_path / "net.onnx"), targets.get("openvino")
    built = {each: target.compile(model, tmp_path / each, each) for each in ("fp32", "bf16")}
    executed = {
        name: {layer.precision for layer in compiled.audit if layer.weighted}
        for name, compiled in built.items()
    }
    assert executed == {"fp32": {"fp32"}, "bf16": {"bf16"}}
    logits = {}
    for name, compiled in built.items():
        with target.open(tmp_path / name / compiled.file, threads=1) as session:
            logits[name] = session.infer(images(4))
    error = np.abs(logits["fp32"] - logits["bf16"]).max() / np.abs(logits["fp32"]).max()
    assert 2**-12 < error < 2**-5  # 8 bits of mantissa: not FP32, and close


def test_a_cpu_without_sixteen_bit_floats_offers_none(monkeypatch):
    monkeypatch.setattr("edgeship.targets.openvino.Backend.halves", lambda backend: [])
    assert targets.get("openvino").precisions() == ("fp32", "int8")
