"""Known-bad graphs, each caught by the right rule at the right node; and what can be repaired, is."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from qdq_graphs import FLOAT, OPENVINO, TENSORRT, Placement, images, residual_net, save

from edgeship.targets import onnxruntime
from edgeship.targets.tensorrt import repair, versions
from edgeship.targets.tensorrt.lint import findings, lint
from edgeship.toolkit.core.errors import ModelError


def node(model, name):
    return next(item for item in model.graph.node if item.name == name)


def initializer(model, name):
    return next(item for item in model.graph.initializer if item.name == name)


def set_value(model, name, value):
    initializer(model, name).CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def asymmetric_weights(model):
    set_value(model, "conv1.weight_zero_point", np.full(32, 1, np.int8))


def int32_bias(model):
    set_value(model, "conv1.bias", np.full(32, 40, np.int32))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.0025), "bias_scale"))
    pair = helper.make_node("DequantizeLinear", ["conv1.bias", "bias_scale"], ["bias_float"], name="bias_dq")
    model.graph.node.insert(0, pair)
    node(model, "conv1").input[2] = "bias_float"


def wrong_axis(model):
    for name in ("layer1.conv1.weight_quantized", "layer1.conv1.weight_dequantized"):
        node(model, name).attribute[0].i = 1


def no_axis(model):
    for name in ("fc.weight_quantized", "fc.weight_dequantized"):
        del node(model, name).attribute[:]


def too_few_scales(model):
    set_value(model, "layer2.conv1.weight_scale", np.full(32, 0.01, np.float32))
    set_value(model, "layer2.conv1.weight_zero_point", np.zeros(32, np.int8))


def per_channel_activation(model):
    set_value(model, "images_scale", np.full(3, 0.03, np.float32))
    set_value(model, "images_zero_point", np.zeros(3, np.int8))


def no_zero_points(model):
    for item in model.graph.node:
        if item.op_type in ("QuantizeLinear", "DequantizeLinear"):
            del item.input[2]


def one_zero_point_for_all(model):
    set_value(model, "conv1.weight_zero_point", np.int8(0))


def scale_zero(model):
    set_value(model, "maxpool_scale", np.float32(0))


def scale_negative(model):
    scale = numpy_helper.to_array(initializer(model, "conv1.weight_scale")).copy()
    scale[3] *= -1
    set_value(model, "conv1.weight_scale", scale)


def scale_nan(model):
    set_value(model, "maxpool_scale", np.float32(np.nan))


def half_scale(model):
    set_value(model, "pool_scale", np.float16(0.03))


def half_bias(model):
    set_value(model, "conv1.bias", np.full(32, 0.1, np.float16))


def opset_new(model):
    model.opset_import[0].version = 25


def opset_old(model):
    model.opset_import[0].version = 11


def integer_conv(model):
    for old, new in (("conv1", "ConvInteger"),):
        node(model, old).op_type = new
        del node(model, old).input[2]


def integer_weights(model):
    for tensor in ("conv1.weight_quantized",):
        weight = numpy_helper.to_array(initializer(model, "conv1.weight"))
        scale = numpy_helper.to_array(initializer(model, "conv1.weight_scale")).reshape(-1, 1, 1, 1)
        values = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
        model.graph.initializer.append(numpy_helper.from_array(values, "conv1.integers"))
        model.graph.node.remove(node(model, tensor))
        node(model, "conv1.weight_dequantized").input[0] = "conv1.integers"


def two_scales(model):
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.06), "other_scale"))
    made = [
        helper.make_node(
            "QuantizeLinear", ["maxpool", "other_scale", "maxpool_zero_point"], ["q2"], name="q2"
        ),
        helper.make_node(
            "DequantizeLinear", ["q2", "other_scale", "maxpool_zero_point"], ["dq2"], name="dq2"
        ),
    ]
    place = list(model.graph.node).index(node(model, "layer1.add"))
    for item in reversed(made):
        model.graph.node.insert(place, item)
    add = node(model, "layer1.add")
    add.input[list(add.input).index("maxpool_dequantized")] = "dq2"


def float_weights(model):
    node(model, "layer1.conv1").input[1] = "layer1.conv1.weight"


def float_pool(model):
    node(model, "pool").input[0] = "layer2.relu2"


def before_relu(model):
    """Q/DQ of layer1.relu1 move to the other side of the ReLU."""
    node(model, "layer1.relu1_quantized").input[0] = "layer1.conv1"
    node(model, "layer1.relu1").input[0] = "layer1.relu1_dequantized"
    node(model, "layer1.conv2").input[0] = "layer1.relu1"
    nodes = list(model.graph.node)
    relu = node(model, "layer1.relu1")
    nodes.remove(relu)
    nodes.insert(nodes.index(node(model, "layer1.relu1_dequantized")) + 1, relu)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def wrong_side(model):
    """Q/DQ between the last convolution and the Add, none on the shortcut."""
    for name, scale in (("layer2.conv2", "layer2.downsample_scale"),):
        zero = "layer2.downsample_zero_point"
        q, dq = node(model, "layer2.downsample_quantized"), node(model, "layer2.downsample_dequantized")
        q.input[:] = [name, scale, zero]
        nodes = [item for item in model.graph.node if item not in (q, dq)]
        place = nodes.index(node(model, name)) + 1
        nodes[place:place] = [q, dq]
        add = node(model, "layer2.add")
        add.input[:] = ["layer2.downsample_dequantized", "layer2.downsample"]
        del model.graph.node[:]
        nodes.remove(add)
        nodes.insert(nodes.index(next(n for n in nodes if n.name == "layer2.downsample")) + 1, add)
        order = {n.name: i for i, n in enumerate(nodes)}
        assert order["layer2.add"] > order["layer2.downsample_dequantized"]
        model.graph.node.extend(nodes)


BAD = [  # (rule, node, change, version, severity)
    ("asymmetric", "conv1.weight_quantized", asymmetric_weights, "10.3", "error"),
    ("int32-bias", "bias_dq", int32_bias, "8.5", "error"),
    ("weight-axis", "layer1.conv1.weight_quantized", wrong_axis, "10.3", "error"),
    ("weight-axis", "fc.weight_dequantized", no_axis, "8.6", "error"),
    ("weight-axis", "layer2.conv1.weight_quantized", too_few_scales, "11.4", "error"),
    ("per-channel-activation", "images_quantized", per_channel_activation, "8.5", "error"),
    ("missing-zero-point", "images_quantized", no_zero_points, "8.2", "error"),
    ("missing-zero-point", "images_quantized", no_zero_points, "10.3", "warning"),
    ("zero-point-size", "conv1.weight_quantized", one_zero_point_for_all, "10.13", "error"),
    ("scale-not-positive", "maxpool_quantized", scale_zero, "10.16", "error"),
    ("scale-not-positive", "conv1.weight_quantized", scale_negative, "8.5", "error"),
    ("scale-not-positive", "maxpool_dequantized", scale_nan, "8.5", "error"),
    ("scale-type", "pool_quantized", half_scale, "8.6", "error"),
    ("mixed-types", "conv1", half_bias, "11.4", "error"),
    ("opset-too-new", "(graph)", opset_new, "10.3", "error"),
    ("opset-too-new", "(graph)", None, "8.2", "error"),  # opset 17 as it is
    ("opset-too-old", "conv1.weight_quantized", opset_old, "8.5", "error"),
    ("integer-operator", "conv1", integer_conv, "10.3", "error"),
    ("quantize-without-dequantize", "images_quantized", "read", "10.3", "error"),
    ("integer-weights", "conv1.weight_dequantized", integer_weights, "8.5", "error"),
    ("different-scales", "maxpool_quantized", two_scales, "10.3", "warning"),
    ("half-quantized", "layer1.conv1", float_weights, "10.3", "warning"),
    ("pool-float", "pool", float_pool, "10.3", "warning"),
    ("quantized-before-relu", "layer1.relu1", before_relu, "10.3", "warning"),
    ("residual-trunk", "layer2.add", wrong_side, "10.3", "warning"),
]


def integers_read_directly(model):
    made = helper.make_node("MaxPool", ["images_quantized"], ["pooled"], name="max", kernel_shape=[1, 1])
    place = list(model.graph.node).index(node(model, "images_dequantized"))
    model.graph.node.insert(place, made)


@pytest.mark.parametrize("version", versions.IN_THE_FIELD)
def test_the_tensorrt_placement_is_clean_everywhere(version):
    model = residual_net(TENSORRT, opset=13)
    assert findings(model, versions.rules(version)) == []
    assert findings(residual_net(FLOAT, opset=13), versions.rules(version)) == []


@pytest.mark.parametrize(
    ("rule", "at", "change", "version", "severity"), BAD, ids=[f"{row[0]} {row[3]}" for row in BAD]
)
def test_each_bad_graph_is_caught_by_its_rule(rule, at, change, version, severity):
    model = residual_net(TENSORRT)
    if change == "read":
        integers_read_directly(model)
    elif change is not None:
        change(model)
    found = findings(model, versions.rules(version))
    matching = [item for item in found if item.rule == rule and item.node == at]
    assert matching, [(item.rule, item.node) for item in found]
    assert matching[0].severity == severity
    assert matching[0].fix
    assert matching[0].source
    others = {item.rule for item in found} - {rule}
    allowed = {
        "weight-axis": {"zero-point-size"},
        "scale-type": {"mixed-types"},
        "integer-operator": {"half-quantized"},
        "quantized-before-relu": {"half-quantized"},
    }
    tail = {"opset-too-new"} if version == "8.2" else set()
    if rule == "quantize-without-dequantize":
        tail = {"uint8"}
    assert others <= allowed.get(rule, set()) | tail, others


@pytest.mark.parametrize(
    ("placement", "rules"),
    [
        pytest.param(Placement(add_inputs="none"), {"residual-none"}, id="no shortcut quantized"),
        pytest.param(Placement(add_inputs="both"), {"residual-both"}, id="both inputs quantized"),
        pytest.param(OPENVINO, {"residual-both", "uint8"}, id="OpenVINO's scheme"),
        pytest.param(Placement(zero_point=-128), {"asymmetric"}, id="asymmetric activations"),
    ],
)
def test_whole_placements(placement, rules):
    found = findings(residual_net(placement), versions.rules("10.3"))
    assert {item.rule for item in found} == rules
    if "residual-none" in rules:
        assert [item.node for item in found] == ["layer1.add", "layer2.add"]
        assert [item.repairable for item in found] == [True, False]  # layer1's x has a Q/DQ already


def test_pruned_channels_that_fit_no_int8_kernel_are_named(monkeypatch):
    monkeypatch.setattr("qdq_graphs.CHANNELS", 20)
    found = findings(residual_net(TENSORRT), versions.rules("10.3"))
    assert {item.rule for item in found} == {"channel-alignment"}
    assert {item.node for item in found} >= {"conv1", "layer2.conv1"}
    assert "20" in found[0].message


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


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 40], ids=["absent", "empty", "garbage"])
def test_what_is_no_onnx_file(content, tmp_path):
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        lint(path, "8.5")
    assert caught.value.hint


@given(cut=st.integers(0, 20_000), noise=st.binary(max_size=8))
def test_truncated_and_damaged_files_never_pass_as_something_else(tmp_path_factory, cut, noise):
    data = residual_net(TENSORRT).SerializeToString()
    path = tmp_path_factory.mktemp("fuzz") / "net.onnx"
    path.write_bytes(data[:cut] + noise)
    try:
        lint(path, "8.5")
    except ModelError as error:
        assert error.hint


REFUSED_TODAY = (
    *(asymmetric_weights, int32_bias, no_axis, too_few_scales, one_zero_point_for_all),
    *(scale_zero, scale_negative, half_bias, integer_conv),
)


@pytest.mark.parametrize("change", REFUSED_TODAY, ids=lambda change: change.__name__)
def test_the_current_parser_refuses_what_is_no_matter_of_an_old_version(change, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    from edgeship.targets.tensorrt import rtx_check

    path = save(residual_net(TENSORRT), tmp_path / "net.onnx", change)
    assert not rtx_check.check(path).accepted
    repairable = {item.repairable for item in lint(path, "11.4") if item.severity == "error"}
    if repairable == {True}:
        repair.fix(path, "11.4", path)
        assert rtx_check.check(path).accepted


def test_who_reads_integers_directly_is_named():
    model = residual_net(TENSORRT)
    integers_read_directly(model)
    (found,) = [
        item for item in findings(model, versions.rules("10.3")) if item.rule.startswith("quantize-w")
    ]
    assert "max (MaxPool)" in found.message


def test_errors_come_before_warnings():
    model = residual_net(Placement(add_inputs="none"))
    scale_zero(model)
    severities = [item.severity for item in findings(model, versions.rules("10.3"))]
    assert severities == sorted(severities) and set(severities) == {"error", "warning"}
