"""Repair of known-bad graphs: what is repairable is clean after, and computes the same."""

import numpy as np
import onnx
import pytest
from bad_graphs import (
    initializer,
    int32_bias,
    integer_weights,
    no_axis,
    no_zero_points,
    node,
    one_zero_point_for_all,
    opset_new,
    two_scales,
    wrong_axis,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from qdq_graphs import FLOAT, OPENVINO, TENSORRT, images, residual_net, save

from edgeship.targets import onnxruntime
from edgeship.targets.tensorrt import repair
from edgeship.targets.tensorrt.lint import lint
from edgeship.toolkit.core.errors import ModelError


def quantize_by_onnxruntime(tmp_path, **options):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._left = [{"images": images()}]

        def get_next(self):
            return self._left.pop() if self._left else None

    model = save(residual_net(FLOAT), tmp_path / "float.onnx")
    quantize_static(model, tmp_path / "ort.onnx", Reader(), **options)
    return tmp_path / "ort.onnx"


def test_onnxruntimes_default_is_caught_and_repaired(tmp_path):
    path = quantize_by_onnxruntime(tmp_path)
    rules = {item.rule for item in lint(path, "8.5")}
    assert {"int32-bias", "asymmetric", "residual-both"} <= rules
    done = repair.fix(path, "8.5", tmp_path / "fixed.onnx")
    assert [item for item in done.left if item.severity == "error"] == []
    assert {"int32-bias", "asymmetric"} <= {item.rule for item in done.fixed}
    with (
        onnxruntime.simulate(tmp_path / "float.onnx", threads=1) as float_net,
        onnxruntime.simulate(tmp_path / "fixed.onnx", threads=1) as fixed,
    ):
        wanted, got = float_net.infer(images()), fixed.infer(images())
    assert np.abs(wanted - got).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("change", "version"),
    [
        (int32_bias, "8.5"),
        (wrong_axis, "10.3"),
        (no_axis, "8.6"),
        (no_zero_points, "8.2"),
        (one_zero_point_for_all, "10.13"),
        (opset_new, "10.3"),
        (None, "8.2"),
        (integer_weights, "8.5"),
        (two_scales, "10.3"),
    ],
)
def test_what_is_repairable_is_clean_after(change, version, tmp_path):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx", change)
    before = lint(path, version)
    assert before and all(item.repairable for item in before)
    done = repair.fix(path, version, tmp_path / "fixed.onnx")
    assert done.left == ()
    assert {item.rule for item in done.fixed} == {item.rule for item in before}
    assert lint(tmp_path / "fixed.onnx", version) == []
    clean = save(residual_net(TENSORRT), tmp_path / "clean.onnx")
    with onnxruntime.simulate(clean, threads=1) as one, onnxruntime.simulate(tmp_path / "fixed.onnx") as two:
        np.testing.assert_allclose(one.infer(images()), two.infer(images()), atol=0.1)


def test_openvinos_unsigned_graph_becomes_signed_and_keeps_its_ranges(tmp_path):
    path = save(residual_net(OPENVINO), tmp_path / "net.onnx")
    assert all(item.repairable for item in lint(path, "10.3"))
    done = repair.fix(path, "10.3", path)  # in place
    assert done.left == ()
    model = onnx.load(path)
    scales = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert scales["maxpool_scale_int8"] == pytest.approx(0.025 * 255 / 127)  # uint8 0..255 -> int8 0..127
    kinds = {str(numpy_helper.to_array(item).dtype) for item in model.graph.initializer}
    assert "uint8" not in kinds
    add = node(model, "layer1.add")
    assert sorted(add.input) == ["layer1.conv2", "maxpool_dequantized"]


def test_a_relu_that_the_zero_point_stood_for_comes_back(tmp_path):
    def drop_relu(model):
        node(model, "layer1.relu1_quantized").input[0] = "layer1.conv1"
        model.graph.node.remove(node(model, "layer1.relu1"))

    path = save(
        residual_net(OPENVINO), tmp_path / "net.onnx", drop_relu
    )  # uint8 zero point 0 clips negatives
    repair.fix(path, "10.3", tmp_path / "fixed.onnx")
    with onnxruntime.simulate(path, threads=1) as one, onnxruntime.simulate(tmp_path / "fixed.onnx") as two:
        np.testing.assert_allclose(one.infer(images()), two.infer(images()), atol=0.4)


@pytest.mark.parametrize(
    ("scale", "zero", "unsigned", "wanted"),
    [(1.0, 0, True, 255 / 127), (1.0, 128, True, 1.0), (0.5, 0, False, 0.5), (1.0, 3, False, 131 / 128)],
)
def test_symmetric_scales_by_hand(scale, zero, unsigned, wanted):
    got = repair.symmetric_scale(np.float32([scale]), np.array([zero]), unsigned=unsigned)
    assert got == pytest.approx([wanted])


@given(scale=st.floats(1e-6, 1e3), zero=st.integers(0, 255))
def test_a_symmetric_scale_clips_nothing(scale, zero):
    wide = repair.symmetric_scale(np.float64([scale]), np.array([zero]), unsigned=True).item()
    assert -128 * wide <= (0 - zero) * scale * (1 - 1e-9)
    assert 127 * wide >= (255 - zero) * scale * (1 - 1e-9)


def test_an_operator_that_changed_is_not_relabelled(tmp_path):
    """ReduceMean took its axes from an attribute before opset 18: only the number must not change."""
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    x, y = (
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", [1, 2, 3, 3]), ("y", [1, 2]))
    )
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=0)
    graph = helper.make_graph([mean], "g", [x], [y], [axes])
    path = save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9),
        tmp_path / "m.onnx",
    )
    pixels = {"x": np.arange(18, dtype=np.float32).reshape(1, 2, 3, 3)}
    for version, opset in (("8.5", 17), ("8.2", 13), ("10.3", 20)):
        done = repair.fix(path, version, tmp_path / "fixed.onnx")
        fixed = onnx.load(tmp_path / "fixed.onnx")
        onnx.checker.check_model(fixed, full_check=True)
        assert fixed.opset_import[0].version == opset and not done.left
        wanted, got = (ReferenceEvaluator(each).run(None, pixels)[0] for each in (onnx.load(path), fixed))
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_an_operator_without_an_older_form_is_named(tmp_path):
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2, 3, 3]) for n in ("x", "y"))
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    nodes = [helper.make_node("ReduceMax", ["x"], ["y"], name="most", noop_with_empty_axes=1)]
    graph = helper.make_graph(nodes, "g", [x], [y], [axes])
    opsets = [helper.make_opsetid("", 20)]
    path = save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"opset 20 cannot be lowered to 17: ReduceMax \(node 'most'\)"):
        repair.fix(path, "8.5", tmp_path / "fixed.onnx")


def test_names_that_a_repair_would_take_are_left_alone(tmp_path):
    model = residual_net(OPENVINO)
    item = initializer(model, "fc.bias")
    for user in model.graph.node:
        user.input[:] = ["maxpool_scale_int8" if name == item.name else name for name in user.input]
    item.name = "maxpool_scale_int8"
    plain = repair.fix(save(residual_net(OPENVINO), tmp_path / "m.onnx"), "8.5", tmp_path / "plain.onnx")
    taken = repair.fix(save(model, tmp_path / "taken.onnx"), "8.5", tmp_path / "fixed.onnx")
    assert [each.rule for each in plain.left] == [each.rule for each in taken.left]
    with (
        onnxruntime.simulate(tmp_path / "plain.onnx") as one,
        onnxruntime.simulate(tmp_path / "fixed.onnx") as two,
    ):
        np.testing.assert_array_equal(one.infer(images(2)), two.infer(images(2)))
