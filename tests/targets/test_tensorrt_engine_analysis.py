"""Engine records explained: small ones by hand, published ones where they are, and damaged ones refused."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeship.targets.tensorrt import engine_analysis, engine_diff, engine_info
from edgeship.toolkit.core.errors import DataError

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
FP16 = "Thirty-two wide channel vectorized row major FP16 format"
FP32 = "Row major linear FP32"
RECORDS = Path(os.environ.get("EDGESHIP_ENGINE_RECORDS", "../shared/fixtures/tensorrt-engines"))


def layer(name, inputs, outputs, kind="CaskConvolution", **more):
    def tensor(entry):
        label, layout = entry
        return {"Name": label, "Location": "Device", "Dimensions": [1, 32, 8, 8], "Format/Datatype": layout}

    return {"Name": name, "LayerType": kind, **more} | {
        "Inputs": [tensor(entry) for entry in inputs],
        "Outputs": [tensor(entry) for entry in outputs],
    }


def reformat(name, source, target, origin="QDQ"):
    return layer(name, [source], [target], "Reformat", Origin=origin)


def engine(layers, bindings=("x", "y"), key="Bindings"):
    return {"Layers": layers, key: list(bindings)}


def good():
    """Input Q, stem, one block whose shortcut is INT8, INT8 pool, fully connected."""
    return engine(
        [
            reformat("Quantize_x", ("x", FP32), ("x8", INT8)),
            layer("conv1.weight + conv1.weight_quantized + Conv_1", [("x8", INT8)], [("a8", INT8)]),
            layer("w1 + QuantizeLinear_2 + Conv_3", [("a8", INT8)], [("b8", INT8)]),
            layer(
                "w2 + QuantizeLinear_4 + Conv_5 + Add_6 + Relu_7",
                [("b8", INT8), ("a8", INT8)],
                [("c8", INT8)],
            ),
            layer("GlobalAveragePool_8", [("c8", INT8)], [("d8", INT8)], "CudaPooling"),
            layer("fc.weight + QuantizeLinear_9 + Gemm_10", [("d8", INT8)], [("y", FP32)]),
        ]
    )


def bad():
    """The same without Q/DQ on the shortcut and the pool."""
    return engine(
        [
            reformat("Quantize_x", ("x", FP32), ("x8", INT8)),
            layer("conv1.weight + conv1.weight_quantized + Conv_1", [("x8", INT8)], [("a", FP16)]),
            reformat("QuantizeLinear_a", ("a", FP16), ("a8", INT8)),
            layer("w1 + QuantizeLinear_2 + Conv_3", [("a8", INT8)], [("b8", INT8)]),
            layer(
                "w2 + QuantizeLinear_4 + Conv_5 + Add_6 + Relu_7", [("b8", INT8), ("a", FP16)], [("c", FP16)]
            ),
            layer("GlobalAveragePool_8", [("c", FP16)], [("d", FP16)], "CudaPooling"),
            reformat("QuantizeLinear_d", ("d", FP16), ("d8", INT8)),
            layer("fc.weight + QuantizeLinear_9 + Gemm_10", [("d8", INT8)], [("y", FP32)]),
        ]
    )


def profile(content, milliseconds):
    names = [item["Name"] for item in content["Layers"]]
    entries = [
        {"name": name, "timeMs": 10 * ms, "averageMs": ms, "medianMs": ms, "percentage": 1.0}
        for name, ms in zip(names, milliseconds, strict=True)
    ]
    return [{"count": 10}, *entries]


def save(folder, content, times=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "graph.json").write_text(json.dumps(content))
    if times is not None:
        (folder / "profile.json").write_text(json.dumps(profile(content, times)))
    return folder


def test_a_good_engine_by_hand(tmp_path):
    found = engine_analysis.explain(save(tmp_path, good(), [0.1, 0.3, 0.2, 0.2, 0.1, 0.1]))
    assert found.problems == ()
    assert found.time_ms == pytest.approx(1.0)
    assert found.time_by_role == pytest.approx(
        {"Reformat": 0.1, "Convolution": 0.7, "Pooling": 0.1, "FullyConnected": 0.1}
    )
    assert [(item.name, item.kind, item.precision) for item in found.layers] == [
        ("Conv_1", "Convolution", "int8"),
        ("Conv_3", "Convolution", "int8"),
        ("Conv_5", "Convolution", "int8"),
        ("GlobalAveragePool_8", "Pooling", "int8"),
        ("Gemm_10", "FullyConnected", "int8"),
    ]
    assert found.verdict == "nothing to change: 1 reformat, 10 % of the time"
    assert not found.reformats[0].avoidable
    assert "input" in found.reformats[0].cause


def test_a_bad_engine_by_hand(tmp_path):
    times = [0.1, 0.3, 0.1, 0.2, 0.3, 0.1, 0.1, 0.1]
    found = engine_analysis.explain(save(tmp_path, bad(), times))
    assert [(item.rule, item.layers) for item in found.problems] == [
        ("residual-float", ("Conv_5",)),
        ("pool-float", ("GlobalAveragePool_8",)),
    ]
    assert found.verdict == (
        "Q/DQ missing on 1 residual input; Q/DQ missing before the global average pool: "
        "3 reformats, 23 % of the time"
    )
    causes = {item.layer: (item.change, item.cause, item.avoidable) for item in found.reformats}
    assert causes["QuantizeLinear_a"] == (
        "fp16 -> int8",
        "Conv_1 writes fp16 for the shortcut of Conv_5, which has no Q/DQ",
        True,
    )
    assert causes["QuantizeLinear_d"][1] == "GlobalAveragePool_8 (Pooling) writes fp16"
    warned = {item.name for item in found.layers if item.warning}
    assert warned == {"Conv_5", "GlobalAveragePool_8"}


def test_layers_are_called_like_the_onnx_nodes(tmp_path):
    content = good()
    content["Layers"][3]["Name"] = "layer1.0.conv2.weight + layer1.0.conv2.weight_quantized + c2 + plus + act"
    content["Layers"][1] |= {
        "Metadata": "[ONNX Layer: first.weight_quantized]\x1e[ONNX Layer: first]",
        "Name": "k_7",
    }
    nodes = {
        "c2": "Conv",
        "plus": "Add",
        "act": "Relu",
        "first": "Conv",
        "first.weight_quantized": "QuantizeLinear",
    }
    found = engine_analysis.explained(engine_info.parse(content, "test"), nodes)
    assert [item.name for item in found.layers][:3] == ["first", "Conv_3", "c2"]


def test_an_add_of_its_own_is_found():
    content = good()
    content["Layers"][3] = layer("Conv_5", [("b8", INT8)], [("e", FP16)])
    content["Layers"].insert(
        4, layer("PWN(Add_6, PWN(Relu_7))", [("e", FP16), ("a8", INT8)], [("c8", INT8)], "PointWiseV2")
    )
    found = engine_analysis.explained(engine_info.parse(content, "test"), {})
    rules = {item.rule: item.layers for item in found.problems}
    assert rules["add-unfused"] == ("Add_6",)
    assert rules["int8-in-float-out"] == ("Conv_5",)


def test_a_convolution_left_in_float_is_found():
    content = good()
    content["Layers"][2]["Inputs"][0]["Format/Datatype"] = "Half"
    found = engine_analysis.explained(engine_info.parse(content, "test"), {})
    assert ("convolution-float", ("Conv_3",)) in [(item.rule, item.layers) for item in found.problems]


def test_kernels_without_tensor_cores_are_found():
    content = good()
    content["Layers"][1]["TacticName"] = "ampere_fp32_icudnn_int8x4_128x64_relu_medium_nn_v1"
    content["Layers"][2]["TacticName"] = "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32"
    found = engine_analysis.explained(engine_info.parse(content, "test"), {})
    assert [(item.rule, item.layers) for item in found.problems] == [("no-tensor-cores", ("Conv_1",))]


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 where channel % 8 == 0", "fp16"),
        (INT8, "int8"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("Int8", "int8"),
        ("BFloat16", "bf16"),
        ("FP8 format", "fp8"),
        ("Int8, (NHWC) Channel major format", "int8"),
        ("Int32", "unknown"),
        ("", "unknown"),
    ],
)
def test_precisions_in_both_spellings(layout, precision):
    assert engine_info.precision_of(layout) == precision


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("a.weight + QuantizeLinear_2 + Conv_3", ("a.weight", "QuantizeLinear_2", "Conv_3")),
        ("Reformatting CopyNode for Input Tensor 0 to Conv_3 + Relu_4", ("Conv_3", "Relu_4")),
        ("PWN(Relu_1)", ("Relu_1",)),
        ("PWN(PWN(Sigmoid_1), Mul_2)", ("Sigmoid_1", "Mul_2")),
        ("Conv_1 || Conv_2", ("Conv_1", "Conv_2")),
        ("{ForeignNode[fc.bias...logits]}", ("fc.bias", "logits")),
        ("", ()),
    ],
)
def test_node_names(name, nodes):
    assert engine_info.node_names(name) == nodes


def test_names_alone_say_so(tmp_path):
    names = [item["Name"] for item in good()["Layers"]]
    found = engine_analysis.explained(engine_info.parse({"Layers": names, "Bindings": []}, "test"), {})
    assert "profilingVerbosity=detailed" in found.verdict
    assert {item.precision for item in found.layers} == {"unknown"}


def test_the_device_runners_record_and_the_names_of_version_11():
    content = good()
    listed = {
        "layers": content["Layers"],
        "bindings": content["Bindings"],
        "times_ms": {"GlobalAveragePool_8": 0.5},
    }
    found = engine_analysis.explained(engine_info.parse(listed, "test"), {})
    assert found.time_ms == pytest.approx(0.5)
    renamed = engine(content["Layers"], [{"Name": "x"}, {"Name": "y"}], "I/O Tensors")
    assert engine_info.parse(renamed, "test").bindings == ("x", "y")


def test_old_profiles_without_means_divide_by_the_count():
    assert engine_info.times_of([{"count": 4}, {"name": "a", "timeMs": 2.0}], "p") == {"a": 0.5}


def test_the_slower_engine_is_explained(tmp_path):
    slow = save(tmp_path / "slow", bad(), [0.1, 0.3, 0.1, 0.2, 0.3, 0.1, 0.1, 0.1])
    fast = save(tmp_path / "fast", good(), [0.1, 0.3, 0.2, 0.2, 0.1, 0.1])
    found = engine_diff.compare(slow, fast)
    assert found.times_ms == (pytest.approx(1.3), pytest.approx(1.0))
    assert next(iter(found.by_role)) == "Reformat"
    assert found.by_role["Reformat"] == (pytest.approx(0.3), pytest.approx(0.1))
    assert found.verdict == (
        "slow is 30 % slower than fast (1.300 against 1.000 ms): reformats +0.200 ms, convolutions +0.100 ms "
        "(slow: Q/DQ missing on 1 residual input)"
    )
    assert found.layers[0].layer == "Conv_5"
    assert found.layers[0].delta_ms == pytest.approx(0.1)
    assert engine_diff.compare(fast, slow).verdict.startswith("fast is 23 % faster than slow")


def test_engines_with_other_names_are_not_compared_layer_by_layer(tmp_path):
    other = json.loads(json.dumps(good()).replace("Conv_", "Conv_1"))
    one = save(tmp_path / "one", good(), [0.1] * 6)
    two = save(tmp_path / "two", other, [0.1] * 6)
    assert engine_diff.compare(one, two).layers == ()


def test_without_times_only_counts_are_compared(tmp_path):
    found = engine_diff.compare(save(tmp_path / "a", bad()), save(tmp_path / "b", good()))
    assert found.times_ms == (None, None)
    assert found.verdict == "no times to compare; 3 reformats in a, 1 in b"


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"Layers": []},
        {"Layers": "none"},
        {"Layers": [1, 2]},
        {"Layers": [{"Name": "a"}]},
        {"Layers": [{"Name": "a", "LayerType": "b", "Inputs": "x"}]},
        {"Layers": [{"Name": "a", "LayerType": "b", "Inputs": [{}], "Outputs": []}]},
        {"Layers": [{"Name": "a", "LayerType": "b", "Inputs": ["x"], "Outputs": []}]},
        {"Layers": ["a", {"Name": "b"}]},
        {"Layers": ["a"], "Bindings": 3},
        {"Layers": ["a"], "times_ms": {"a": "fast"}},
    ],
)
def test_what_is_no_record(content):
    with pytest.raises(DataError, match="not an engine record") as caught:
        engine_info.parse(content, "graph.json")
    assert "trtexec" in caught.value.hint


@pytest.mark.parametrize("time", [float("nan"), float("inf"), -1.0, "0.5", None, True])
def test_a_time_that_is_no_time_is_refused(time):
    with pytest.raises(DataError, match="no usable time"):
        engine_info.times_of([{"count": 1}, {"name": "a", "averageMs": time}], "profile.json")


def test_a_profile_of_another_engine_is_refused(tmp_path):
    save(tmp_path, good())
    (tmp_path / "profile.json").write_text(json.dumps([{"name": "elsewhere", "averageMs": 1.0}]))
    with pytest.raises(DataError, match="another engine"):
        engine_analysis.explain(tmp_path)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(DataError):
        engine_analysis.explain(tmp_path / "absent.json")
    (tmp_path / "graph.json").write_bytes(bytes(range(256)))
    with pytest.raises(DataError):
        engine_analysis.explain(tmp_path)


@given(cut=st.integers(0, 3000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_records_are_refused(cut, tmp_path):
    text = json.dumps(bad())
    (tmp_path / "graph.json").write_text(text[: min(cut, len(text) - 1)])
    with pytest.raises(DataError):
        engine_analysis.explain(tmp_path / "graph.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["Name", "Layers", "Inputs", "Outputs", "count", "name", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(content=json_values)
def test_garbage_is_refused_or_understood(content):
    for read in (engine_info.parse, engine_info.times_of):
        try:
            read(content, "test")
        except DataError as error:
            assert error.hint


@given(
    place=st.integers(0, 7),
    key=st.sampled_from(["Name", "LayerType", "Inputs", "Outputs", "Origin", "Metadata", "TacticName"]),
    value=json_values,
)
def test_a_damaged_layer_is_refused_or_understood(place, key, value):
    content = bad()
    content["Layers"][place][key] = value
    try:
        found = engine_analysis.explained(engine_info.parse(content, "test"), {})
    except DataError as error:
        assert error.hint
    else:
        assert found.time_ms is None  # no time is ever made up
        assert all(item.time_ms is None for item in found.layers)


@pytest.mark.parametrize("end", ["Inputs", "Outputs"])
def test_a_copy_without_an_end_has_no_known_cause(end):
    content = bad()
    copies = [layer for layer in content["Layers"] if layer["LayerType"] == "Reformat"]
    for layer in copies:
        layer[end] = []
        layer["TacticName"] = "sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32"
    found = engine_analysis.explained(engine_info.parse(content, "test"), {})
    assert copies and len(found.reformats) == len(copies)
    assert all(item.cause.startswith("unknown") and not item.avoidable for item in found.reformats)


@pytest.mark.skipif(not RECORDS.is_dir(), reason="the published engine records are not here")
def test_published_records_of_resnet18():
    names = ("fp16", "qat", "qat-residual", "qat-residual-qgap")
    found = {name: engine_analysis.explain(RECORDS / name) for name in names}
    assert [len(found[name].reformats) for name in names] == [2, 12, 3, 1]
    times = [found[name].time_ms for name in names[1:]]
    assert times == sorted(times, reverse=True)
    assert found["qat"].time_ms > found["fp16"].time_ms
    assert found["qat"].verdict.startswith("Q/DQ missing on 8 residual inputs")
    assert found["qat"].verdict.endswith("12 reformats, 25 % of the time")
    assert found["qat-residual"].verdict.startswith("Q/DQ missing before the global average pool")
    assert found["qat-residual-qgap"].problems == ()
    assert {item.precision for item in found["qat-residual-qgap"].layers} == {"int8"}
    slower = engine_diff.compare(RECORDS / "qat", RECORDS / "fp16")
    assert slower.verdict.startswith("qat is 8 % slower than fp16")
    assert next(iter(slower.by_role)) == "Reformat"
