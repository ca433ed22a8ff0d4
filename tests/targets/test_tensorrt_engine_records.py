"""Engine records as TensorRT's tools write them: unknown precision, encodings, logs, profiles, damage."""

import codecs
import json
import re

import pytest
from engine_records import (
    BLANK,
    F16,
    FP32,
    I8F32,
    I8I8,
    TIMES,
    dynamic,
    layer,
    log,
    names_only,
    table,
    two_profiles,
)

from edgeship.targets.tensorrt import (
    engine_analysis,
    engine_diff,
    engine_info,
    engine_precision,
)
from edgeship.toolkit.cli.app import main
from edgeship.toolkit.core.errors import DataError


def explained(content):
    return engine_analysis.explained(engine_info.parse(content, "test"), {})


def test_dynamic_shapes_read_kernels_and_weights():
    result = explained(dynamic())
    assert result.precisions == {"int8": 3, "fp16": 1}
    assert [(item.name, item.precision) for item in result.layers] == [
        ("Conv_9", "int8"),
        ("Conv_22", "int8"),
        ("Conv_34", "int8"),
        ("Conv_40", "fp16"),
    ]
    assert [item.change for item in result.reformats] == ["unknown -> int8", "int8 -> unknown"]
    assert not any(item.avoidable for item in result.reformats)
    assert "nothing to change" not in result.verdict and "2 of unknown formats" in result.verdict
    assert {item.rule for item in result.problems} == {"int8-in-float-out", "convolution-float"}


def test_weights_alone_state_the_precision():
    content = dynamic()
    for item in content["Layers"]:
        item.pop("TacticName", None)
    assert explained(content).precisions == {"int8": 3, "fp16": 1}


def test_kernel_and_weights_that_disagree_leave_it_unknown():
    content = dynamic()
    content["Layers"][1]["Weights"]["Type"] = "Float"
    result = explained(content)
    assert result.precisions == {"unknown": 1, "int8": 2, "fp16": 1}
    assert "precision of 1 of 4 weighted layers unknown" in result.verdict
    assert "--profilingVerbosity=detailed" in result.verdict and "--minShapes" in result.verdict


@pytest.mark.parametrize(
    "evidence", [{"Precision": "INT8"}, {"Metadata": "[ONNX Layer: Conv_9] precision: int8"}]
)
def test_a_precision_stated_in_words(evidence):
    content = {"Layers": [layer("w1 + Conv_9", ["x"], ["y"], **evidence)]}
    assert explained(content).precisions == {"int8": 1}


@pytest.mark.parametrize("erased", [(), ("TacticName",), ("Weights",), ("TacticName", "Weights")])
def test_a_record_that_states_less_never_states_something_else(erased):
    full, content = explained(dynamic()), dynamic()
    for item in content["Layers"]:
        for key in erased:
            item.pop(key, None)
    result = explained(content)
    for before, after in zip(full.layers, result.layers, strict=True):
        assert after.precision in (before.precision, "unknown")
    assert sum(result.precisions.values()) == 4
    if len(erased) == 2:
        assert result.precisions == {"unknown": 4} and result.problems == ()
        assert result.verdict.startswith("unknown: precision of 4 of 4")


def test_names_only_are_unknown_and_not_float():
    result = explained(names_only())
    assert result.precisions == {"unknown": 4}
    assert not result.detailed and "--profilingVerbosity=detailed" in result.verdict
    assert "unknown number of reformats" in engine_diff.compared(result, result, ("a", "b")).verdict


@pytest.mark.parametrize(
    ("name", "kind", "weighted"),
    [
        ("{ForeignNode[encoder.fea_bn1.weight.../softmax/Softmax]}", "Myelin", True),
        ("{ForeignNode[conv1...fc]}", "DLA", True),
        ("{ForeignNode[/softmax/Softmax]}", "Myelin", False),
    ],
)
def test_one_fused_region_is_unknown_whatever_it_reads(name, kind, weighted):
    content = {"Layers": [layer(name, ["x"], ["y"], kind, layout="Row major linear FP16 format")]}
    result = explained(content)
    assert [(item.name, item.kind, item.precision, item.weighted) for item in result.layers] == [
        (name, "Fused", "unknown", weighted)
    ]
    assert result.precisions == ({"unknown": 1} if weighted else {})


@pytest.mark.parametrize(
    ("entry", "precision"),
    [
        ({"Format": "Row major linear", "DataType": "Int8"}, "int8"),
        ({"Format": "kCHW32", "Datatype": "kINT8"}, "int8"),
        ({"Format": "Row major linear FP32", "DataType": "Half"}, "fp16"),
        ({"Format": "Row major linear", "Data Type": "kFLOAT"}, "fp32"),
        ({"format": "linear", "dataType": "FP8"}, "fp8"),
        ({"Format": "Row major linear"}, "unknown"),
        ({"DataType": "Int32"}, "unknown"),
        ({"Format/Datatype": BLANK, "DataType": "BFloat16"}, "bf16"),
        ({}, "unknown"),
    ],
)
def test_formats_and_types_under_keys_of_their_own(entry, precision):
    item = {
        "Name": "Conv_1",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", **entry}],
        "Outputs": [],
    }
    assert explained({"Layers": [item]}).precisions == {precision: 1}


@pytest.mark.parametrize(
    ("tactic", "types"),
    [
        (I8I8, ("int8", "int8")),
        (I8F32, ("int8", "fp32")),
        (F16, ("fp16", "fp16")),
        ("sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc", ("fp32", "fp32")),
        ("sm89_xmma_fprop_implicit_gemm_e4m3e4m3_e4m3f32_f32", ("fp8", "fp8")),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", ("bf16", "bf16")),
        ("ampere_fp32_icudnn_int8x4_128x64_relu_medium_nn_v1", ("int8", "unknown")),
        ("volta_int8_i8816cudnn_int8_128x128_ldg16_relu", ("int8", "unknown")),
        ("ampere_h16816cudnn_128x128_ldg8_relu", ("fp16", "unknown")),
        ("volta_scudnn_128x64_relu_small_nn_v1", ("fp32", "unknown")),
        ("ampere_first_layer_filter3x3_imma_fwd", ("unknown", "unknown")),
        ("", ("unknown", "unknown")),
    ],
)
def test_precision_in_kernel_names(tactic, types):
    assert engine_precision.of_kernel(tactic) == types


def test_signal_and_wait_layers_have_no_tensors():
    content = dynamic()
    content["Layers"][1:1] = [
        {"Name": "signal_1", "LayerType": "signal"},
        {"Name": "wait_1", "LayerType": "wait", "Inputs": None},
    ]
    assert explained(content).precisions == {"int8": 3, "fp16": 1}


def test_profiles_are_counted_each_on_its_own(tmp_path):
    result = explained(two_profiles())
    assert result.precisions == {"int8": 3, "fp16": 1}
    assert [each.precisions for each in result.other_profiles] == [{"int8": 4}]
    assert [item.name for item in result.other_profiles[0].layers] == [
        "Conv_9",
        "Conv_22",
        "Conv_34",
        "Conv_40",
    ]
    named = explained({"Layers": [item["Name"] for item in two_profiles()["Layers"]]})
    assert named.precisions == {"unknown": 4} == named.other_profiles[0].precisions


def test_times_of_one_profile_are_not_those_of_the_other():
    content = two_profiles() | {"times_ms": {"layer1.1.conv1 + Conv_40 [profile 1]": 0.5}}
    result = explained(content)
    assert (result.time_ms, result.other_profiles[0].time_ms) == (None, 0.5)


RAW = json.dumps(dynamic()).replace(
    '"TacticName"', '"Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: Conv_1]", "TacticName"'
)


@pytest.mark.parametrize(
    "data",
    [
        RAW.encode(),
        codecs.BOM_UTF8 + RAW.encode(),
        RAW.encode("utf-16"),
        codecs.BOM_UTF16_BE + RAW.encode("utf-16-be"),
        RAW.encode("utf-16-le"),
        RAW.encode("utf-16-be"),
        RAW.encode("utf-32"),
        RAW.replace("\x1e", "\t\x01").replace(", ", ",\r\n ").encode(),
    ],
    ids=[
        "raw control",
        "bom",
        "utf-16",
        "utf-16-be",
        "utf-16-le bare",
        "utf-16-be bare",
        "utf-32",
        "tab and CRLF",
    ],
)
def test_encodings_and_raw_control_characters(data, tmp_path):
    path = tmp_path / "graph.json"
    path.write_bytes(data)
    assert engine_analysis.explain(path).precisions == {"int8": 3, "fp16": 1}


@pytest.mark.parametrize("last", [True, False], ids=["name last", "name first"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_log_of_trtexec_is_a_record_and_a_profile(last, newline, encoding, tmp_path):
    path = tmp_path / "build.log"
    path.write_bytes(log(dynamic(), last).replace("\n", newline).encode(encoding))
    result = engine_analysis.explain(path)
    assert result.precisions == {"int8": 3, "fp16": 1}
    assert result.time_ms == pytest.approx(sum(TIMES))
    assert [item.time_ms for item in result.layers] == pytest.approx([2.0, 3.0, 5.0, 6.0])
    assert engine_info.load(path).bindings == ("x", "y")
    (tmp_path / "graph.json").write_text(json.dumps(dynamic()))
    assert engine_analysis.explain(tmp_path / "graph.json", path).time_ms == pytest.approx(sum(TIMES))


def test_a_log_of_names_and_a_log_of_times(tmp_path):
    (tmp_path / "a.txt").write_text(log(names_only(), profile=False))
    (tmp_path / "b.txt").write_text("\n".join(table(names_only()["Layers"], last=True)))
    for name in ("a.txt", "b.txt"):
        assert engine_analysis.explain(tmp_path / name).precisions == {"unknown": 4}
    (tmp_path / "c.txt").write_text("[I] Precision: FP32\n" + json.dumps(dynamic()) + "\n[I] done\n")
    assert engine_analysis.explain(tmp_path / "c.txt").precisions == {"int8": 3, "fp16": 1}


def test_a_log_without_layers_names_the_option(tmp_path):
    (tmp_path / "a.log").write_text("[I] Precision: FP32\n[I] Throughput: 3 qps\n")
    with pytest.raises(DataError, match="no layer listing") as caught:
        engine_analysis.explain(tmp_path / "a.log")
    assert "--dumpLayerInfo" in caught.value.hint


def test_a_log_cut_off_is_refused_and_never_counted_short(tmp_path):
    text, path = log(dynamic()), tmp_path / "a.log"
    start, total = text.rindex("Layers:") + len("Layers:"), text.rindex("Total")
    for cut in range(start, len(text), 37):
        path.write_text(text[:cut])
        try:
            result = engine_analysis.explain(path)
        except DataError:
            assert cut < total + len("Total")
        else:
            assert sum(result.precisions.values()) == 4


def test_file_names_of_trt_engine_explorer(tmp_path):
    (tmp_path / "m.onnx.engine.graph.json").write_text(json.dumps(dynamic()))
    names = [item["Name"] for item in dynamic()["Layers"]]
    times = [
        {"count": 10},
        *({"name": name, "timeMs": 10 * ms} for name, ms in zip(names, TIMES, strict=True)),
    ]
    (tmp_path / "m.onnx.engine.profile.json").write_text(json.dumps(times))
    (tmp_path / "m.onnx.engine.profile.metadata.json").write_text("{}")
    for source in (tmp_path, tmp_path / "m.onnx.engine.graph.json"):
        assert engine_analysis.explain(source).time_ms == pytest.approx(sum(TIMES))
    (tmp_path / "n.graph.json").write_text("{}")
    with pytest.raises(DataError, match="2 records"):
        engine_analysis.explain(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no graph\.json"):
        engine_analysis.explain(tmp_path / "empty")


def test_layers_of_one_name_are_warned_each_on_its_own():
    content = dynamic()
    for item in content["Layers"]:
        item["Metadata"] = "[ONNX Layer: a]\x1e[ONNX Layer: b]"
    result = explained(content)
    assert [item.name for item in result.layers] == ["Conv_9", "Conv_22", "Conv_34", "Conv_40"]
    assert [bool(item.warning) for item in result.layers] == [False, False, True, True]


@pytest.mark.parametrize(
    "times", [[{"name": "a", "averageMs": 10**400}], [{"count": 10**400}, {"name": "a", "timeMs": 1}]]
)
def test_numbers_beyond_all_bounds_are_refused(times):
    with pytest.raises(DataError, match="no usable time"):
        engine_info.times_of(times, "profile.json")


def test_hostile_names_take_bounded_time():
    name = "PWN(" * 100_000 + "x" + ")" * 100_000
    assert engine_info.node_names(name) == ("x",)


def test_no_layer_recognized_is_no_pass(audit, tmp_path):
    for number, layers in enumerate((["k_1", "k_2"], [layer("k_1", ["x"], ["y"], "kgen", layout=FP32)])):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"Layers": layers}))
        code, out, err = audit(path)
        assert code == 3 and "nothing to change" not in out
        assert " hint: " in err


@pytest.fixture
def audit(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["audit", *map(str, arguments)])
        streams = capsys.readouterr()
        return caught.value.code or 0, streams.out, streams.err

    return run


def test_the_command_counts_unknown_layers_and_does_not_pass(audit, tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(names_only()))
    code, out, err = audit(path)
    assert code == 3
    assert "0 of 4 weighted layers run in INT8, 4 unknown" in out and "nothing to change" not in out
    assert "precision of 4 of 4 weighted layers unknown" in err and "--profilingVerbosity=detailed" in err
    code, out, _ = audit(path, "--json")
    assert code == 3 and json.loads(out)["precisions"] == {"unknown": 4}


def test_the_command_reads_logs_and_profiles(audit, tmp_path):
    (tmp_path / "build.log").write_text(log(dynamic()))
    code, out, err = audit(tmp_path / "build.log")
    assert code == 3 and re.search(r"3 of 4 weighted layers run in INT8, 1 in FP\d\d\n", out)
    assert "Conv_34" in err
    (tmp_path / "two.json").write_text(json.dumps(two_profiles()))
    _, out, _ = audit(tmp_path / "two.json")
    assert "optimization profile 1\n" in out
    assert "3 of 4 weighted" in out and "4 of 4 weighted" in out
