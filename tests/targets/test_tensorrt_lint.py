"""Known-bad graphs, each caught by the right rule at the right node."""

import onnx
import pytest
from bad_graphs import (
    asymmetric_weights,
    before_relu,
    float_pool,
    float_weights,
    floats_dequantized,
    half_before_flatten,
    half_bias,
    half_scale,
    initializer,
    int32_bias,
    integer_conv,
    integer_weights,
    integers_read_directly,
    no_axis,
    no_zero_points,
    node,
    one_zero_point_for_all,
    opset_new,
    opset_old,
    other_projection_side,
    per_channel_activation,
    scale_nan,
    scale_negative,
    scale_zero,
    too_few_scales,
    two_dimensional_scales,
    two_scales,
    wrong_axis,
    wrong_side,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from qdq_graphs import FLOAT, OPENVINO, TENSORRT, Placement, findings_of, residual_net, save

from edgeship.targets.tensorrt import repair, versions
from edgeship.targets.tensorrt.lint import lint
from edgeship.toolkit.core.errors import ModelError

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
    ("mixed-types", "logits", half_before_flatten, "11.4", "error"),
    ("scale-shape", "conv1.weight_quantized", two_dimensional_scales, "11.4", "error"),
    ("dequantize-without-quantize", "maxpool_dequantized", floats_dequantized, "11.4", "error"),
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
    ("residual-trunk", "layer1.add", wrong_side, "10.3", "warning"),
]


@pytest.mark.parametrize("version", versions.IN_THE_FIELD)
def test_the_tensorrt_placement_is_clean_everywhere(version):
    model = residual_net(TENSORRT, opset=13)
    assert findings_of(model, version) == []
    assert findings_of(residual_net(FLOAT, opset=13), version) == []


def test_of_two_convolutions_either_may_have_the_pair():
    model = residual_net(TENSORRT)
    other_projection_side(model)
    assert not [found for found in findings_of(model, "10.3") if found.rule.startswith("residual")]


@pytest.mark.parametrize(
    ("rule", "at", "change", "version", "severity"), BAD, ids=[f"{row[0]} {row[3]}" for row in BAD]
)
def test_each_bad_graph_is_caught_by_its_rule(rule, at, change, version, severity):
    model = residual_net(TENSORRT)
    if change == "read":
        integers_read_directly(model)
    elif change is not None:
        change(model)
    found = findings_of(model, version)
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
    found = findings_of(residual_net(placement), "10.3")
    assert {item.rule for item in found} == rules
    if "residual-none" in rules:
        assert [item.node for item in found] == ["layer1.add", "layer2.add"]
        assert [item.repairable for item in found] == [True, False]  # layer1's x has a Q/DQ already


def test_pruned_channels_that_fit_no_int8_kernel_are_named(monkeypatch):
    monkeypatch.setattr("qdq_graphs.CHANNELS", 20)
    found = findings_of(residual_net(TENSORRT), "10.3")
    assert {item.rule for item in found} == {"channel-alignment"}
    assert {item.node for item in found} >= {"conv1", "layer2.conv1"}
    assert "20" in found[0].message


def unsorted(model):
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def repeated(model):
    model.graph.node.append(node(model, "conv1"))


def without_input(model):
    del node(model, "conv1").input[1:]


def of_nothing(model):
    node(model, "conv1").input[0] = "nothing"


@pytest.mark.parametrize("change", [unsorted, repeated, without_input, of_nothing])
def test_invalid_graphs_are_refused_with_a_reason(change, tmp_path):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx", change)
    for call in (lambda: lint(path, "8.5"), lambda: repair.fix(path, "8.5", tmp_path / "fixed.onnx")):
        with pytest.raises(ModelError, match=r"not a (valid|readable) ONNX"):
            call()
    if change is not repeated:  # which onnx-ir cannot hold
        findings_of(onnx.load(path), "8.5")


def test_nodes_without_a_name_are_named_by_their_output(tmp_path):
    def unname(model):
        scale_zero(model)
        for item in model.graph.node:
            item.ClearField("name")

    found = lint(save(residual_net(TENSORRT), tmp_path / "net.onnx", unname), "8.5")
    assert {item.node for item in found} == {"maxpool_quantized", "maxpool_dequantized"}


def test_constant_nodes_are_constants(tmp_path):
    def to_node(model):
        item = initializer(model, "maxpool_scale")
        model.graph.node.insert(0, helper.make_node("Constant", [], [item.name], value=item))
        model.graph.initializer.remove(item)

    path = save(residual_net(TENSORRT), tmp_path / "net.onnx", to_node)
    assert lint(path, "8.5") == []


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
    (found,) = [item for item in findings_of(model, "10.3") if item.rule.startswith("quantize-w")]
    assert "max (MaxPool)" in found.message


def test_errors_come_before_warnings():
    model = residual_net(Placement(add_inputs="none"))
    scale_zero(model)
    severities = [item.severity for item in findings_of(model, "10.3")]
    assert severities == sorted(severities) and set(severities) == {"error", "warning"}
