"""The TensorRT path against FAKES of five recorded interfaces; nothing here is a device measurement."""

import array
import hashlib
import json
import struct
import sys

import numpy as np
import onnxruntime
import pytest
import qdq_graphs

from edgeship.targets import runner

VERSIONS = ("8.5", "8.6", "10.3", "10.13", "11")
SHAPE, CLASSES = (2, 3, 4, 4), 5


def graph(path, **more):
    """A made-up graph that the fake runs: logit k is the sum of every fifth pixel from k."""
    path.write_text(json.dumps({"shape": SHAPE, "classes": CLASSES, "quantized": True, **more}))
    return path


def floats(values):
    return struct.pack(f"<{len(values)}f", *values)


def expected_logits(pixels, images):
    size = len(pixels) // images
    rows = [pixels[i * size : (i + 1) * size] for i in range(images)]
    return [float(sum(row[k::CLASSES])) for row in rows for k in range(CLASSES)]


def golden(folder, images=3, wrong=0.0):
    pixels = [float((7 * i) % 11 - 4) for i in range(images * 48)]
    logits = expected_logits(pixels, images)
    logits[0] += wrong
    folder.mkdir()
    contents = {"inputs.f32": floats(pixels), "logits.f32": floats(logits)}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    record = {
        "shape": [images, *SHAPE[1:]],
        "classes": CLASSES,
        "inputs": "inputs.f32",
        "logits": "logits.f32",
    }
    (folder / "golden.json").write_text(json.dumps({**record, "sha256": digests}))
    return folder


@pytest.fixture
def built(run_fake, tmp_path):
    """An engine of a version."""

    def build(version, *arguments, **more):
        engine = tmp_path / "model.plan"
        answer = run_fake(
            version,
            "build",
            "--graph",
            graph(tmp_path / "g.json", **more),
            "--out",
            engine,
            "--backend",
            "tensorrt",
            "--precision",
            "int8",
            *arguments,
        )
        assert answer.exit_code == 0, answer.result
        return engine, answer

    return build


@pytest.mark.parametrize("version", VERSIONS)
def test_build_prove_and_time_on_every_interface(version, built, run_fake, tmp_path):
    engine, answer = built(version)
    assert answer.result["fake"] is True
    flags = {call[1] for call in answer.calls if call[0] == "set_flag"}
    assert flags == (set() if version == "11" else {"INT8", "FP16"})  # 11 has no precision flags
    creation = next(call[1] for call in answer.calls if call[0] == "create_network")
    assert creation == (1 if version.startswith("8") else 0)  # EXPLICIT_BATCH: needed in 8, gone in 11
    order = [call[0] for call in answer.calls]
    assert order.index("create_network") < order.index("parse") < order.index("build_serialized_network")

    tested = run_fake(version, "selftest", "--engine", engine, "--golden", golden(tmp_path / "golden"))
    assert tested.exit_code == 0
    assert (tested.result["verdict"], tested.result["images"], tested.result["fake"]) == ("pass", 3, True)
    assert tested.result["largest_difference"] == 0.0
    assert tested.result["cosine_min"] == pytest.approx(1.0)

    timed = run_fake(version, "time", "--engine", engine, "--warmup-ms", 0, "--duration-s", 0.01)
    timing = timed.result["timings"][0]
    assert timed.result["fake"] is True
    assert timing["gpu_ms"]["median"] == pytest.approx(0.5)  # the fake's clock
    assert timing["h2d_ms"]["median"] == pytest.approx(2 * 48 * 4 * 1e-6)
    assert timing["d2h_ms"]["median"] == pytest.approx(2 * 5 * 4 * 1e-6)
    assert timing["latency_ms"]["p99"] == pytest.approx(0.5 + (2 * 48 + 2 * 5) * 4e-6)
    assert timing["wall_ms"]["median"] > 0
    assert timing["batch"] == 2
    assert timing["runs"] >= 10


def test_without_transfers_only_the_computation_is_timed(built, run_fake):
    engine, _ = built("10.3")
    timed = run_fake(
        "10.3", "time", "--engine", engine, "--no-transfers", "--warmup-ms", 0, "--duration-s", 0.01
    )
    timing = timed.result["timings"][0]
    assert timing["gpu_ms"]["median"] == pytest.approx(0.5)
    assert (timing["h2d_ms"], timing["d2h_ms"], timing["latency_ms"]) == (None, None, None)
    assert timing["included"] == "inference, no copies"


@pytest.mark.parametrize("version", ["8.5", "11"])
def test_a_cuda_graph_is_captured_once_and_launched(version, built, run_fake):
    engine, _ = built(version)
    timed = run_fake(
        version, "time", "--engine", engine, "--cuda-graph", "--warmup-ms", 0, "--duration-s", 0.01
    )
    names = [call[0] for call in timed.calls]
    assert names.count("execute_async_v3") == 2  # the first run and the capture
    assert (
        names.count("cudaGraphLaunch") == timed.result["timings"][0]["runs"] + 3 * 10
    )  # warm-up of three rounds
    assert timed.result["timings"][0]["gpu_ms"]["median"] == pytest.approx(0.5)


def test_a_wrong_engine_is_refused_by_the_self_test(built, run_fake, tmp_path):
    engine, _ = built("10.3")
    tested = run_fake(
        "10.3", "selftest", "--engine", engine, "--golden", golden(tmp_path / "golden", wrong=500.0)
    )
    assert tested.exit_code == 3
    assert (tested.result["ok"], tested.result["verdict"]) == (False, "fail")
    assert tested.result["largest_difference"] == pytest.approx(500.0)
    assert any("cosine" in reason for reason in tested.result["reasons"])


def test_a_latency_budget_is_judged(built, run_fake, tmp_path):
    engine, _ = built("10.3")
    folder = golden(tmp_path / "golden")
    tested = run_fake("10.3", "selftest", "--engine", engine, "--golden", folder, "--latency-max-ms", 1e-6)
    assert tested.exit_code == 3
    assert "latency" in tested.result["reasons"][0]


def test_a_dynamic_batch_needs_its_range_and_keeps_to_it(built, run_fake, tmp_path):
    engine, _ = built("8.6", "--profile", "1:2:4", shape=[-1, 3, 4, 4])
    timed = run_fake("8.6", "time", "--engine", engine, "--batch", 3, "--warmup-ms", 0, "--duration-s", 0.01)
    assert timed.result["timings"][0]["batch"] == 3
    more = run_fake("8.6", "time", "--engine", engine, "--batch", 64, "--warmup-ms", 0, "--duration-s", 0.01)
    assert more.result["timings"][0]["batch"] == 4  # the most the profile allows
    tested = run_fake(
        "8.6", "selftest", "--engine", engine, "--golden", golden(tmp_path / "golden", images=6)
    )
    assert (tested.result["verdict"], tested.result["batch"]) == ("pass", 4)


def test_strong_typing_is_asked_for_by_flag_where_it_is_a_choice(built):
    _, answer = built("10.13", "--strongly-typed")
    assert next(call[1] for call in answer.calls if call[0] == "create_network") == 2
    assert [call for call in answer.calls if call[0] == "set_flag"] == []


@pytest.mark.parametrize(
    ("version", "arguments", "warned"), [("10.3", (), 0), ("10.13", ("--strongly-typed",), 1), ("11", (), 1)]
)
def test_what_strong_typing_leaves_in_fp32_is_told(version, arguments, warned, built):
    _, answer = built(version, *arguments)
    warnings = [text for text in answer.result["warnings"] if "only if the graph itself is FP16" in text]
    assert len(warnings) == warned


def test_strong_typing_is_refused_where_it_does_not_exist(run_fake, tmp_path):
    arguments = ["build", "--graph", graph(tmp_path / "g"), "--out", tmp_path / "e", "--backend", "tensorrt"]
    answer = run_fake("8.6", *arguments, "--strongly-typed")
    assert answer.result["error"]["code"] == "strongly-typed-missing"


def test_the_optimization_level_is_set_only_where_there_is_one(built):
    for version, levels in (("8.5", []), ("8.6", [2])):
        _, answer = built(version, "--optimization-level", 2, "--force")
        assert [call[1] for call in answer.calls if call[0] == "builder_optimization_level"] == levels


def test_workspace_is_given_in_bytes(built):
    _, answer = built("8.5", "--workspace-mib", 512)
    assert ["set_memory_pool_limit", 512 << 20] in answer.calls


@pytest.mark.parametrize(("sm", "module"), [("5.3", "Nano and TX1"), ("6.2", "TX2")])
def test_int8_is_refused_on_gpus_without_it_and_fp16_named(sm, module, run_fake, tmp_path):
    arguments = ["build", "--graph", graph(tmp_path / "g"), "--out", tmp_path / "e", "--backend", "tensorrt"]
    answer = run_fake("8.5", *arguments, "--precision", "int8", EDGESHIP_FAKE_SM=sm)
    assert answer.exit_code == 1
    assert answer.result["error"]["code"] == "precision-refused"
    assert module in answer.result["error"]["cause"]
    assert "fp16" in answer.result["error"]["cure"]
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("fault", "message", "code"),
    [
        (
            "parse",
            "This version of TensorRT requires 3 inputs for the DequantizeLinear operator.",
            "graph-missing-zero-point",
        ),
        ("parse", "shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported", "graph-asymmetric"),
        ("build", "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)", "out-of-memory"),
        ("build", "Error Code 4: Internal Error (wording never seen before)", "unknown"),
    ],
)
def test_what_the_sdk_refuses_is_translated(fault, message, code, run_fake, tmp_path):
    path = graph(tmp_path / "g", fault=fault, message=message)
    answer = run_fake("10.3", "build", "--graph", path, "--out", tmp_path / "e", "--backend", "tensorrt")
    assert answer.exit_code == 1
    assert answer.result["error"]["code"] == code
    assert message in json.dumps(answer.result["error"]) + answer.stderr
    assert list(tmp_path.glob("e*")) == []


def test_a_quantized_graph_without_the_int8_flag_is_explained(run_fake, tmp_path):
    arguments = ["build", "--graph", graph(tmp_path / "g"), "--out", tmp_path / "e", "--backend", "tensorrt"]
    answer = run_fake("10.3", *arguments, "--precision", "fp16")
    assert answer.result["error"]["code"] == "int8-flag-missing"


@pytest.mark.parametrize(
    ("version", "sm", "allowed"),
    [("10.13", "11.0", True), ("11", "8.9", True), ("10.13", "8.7", False), ("8.6", "8.9", False)],
)
def test_fp8_is_built_strongly_typed_where_gpu_and_version_have_it(version, sm, allowed, run_fake, tmp_path):
    arguments = ["build", "--graph", graph(tmp_path / "g"), "--out", tmp_path / "e", "--backend", "tensorrt"]
    answer = run_fake(version, *arguments, "--precision", "fp8", EDGESHIP_FAKE_SM=sm)
    if allowed:  # the fake refuses a quantized graph of a weakly typed network without the INT8 flag
        assert answer.exit_code == 0, answer.result
    else:
        assert answer.result["error"]["code"] == "precision-refused"


def test_uint8_zero_points_are_an_error_although_the_parser_only_warns(run_fake, tmp_path):
    path = graph(tmp_path / "g", warnings=["Zero point has type UINT8; treating it as INT8"])
    answer = run_fake("10.13", "build", "--graph", path, "--out", tmp_path / "e", "--backend", "tensorrt")
    assert answer.result["error"]["code"] == "graph-unsigned"


def test_an_engine_that_finds_no_memory_to_run(built, run_fake, tmp_path):
    engine, _ = built("10.3", fault="context", message="Error Code 2: OutOfMemory")
    answer = run_fake("10.3", "infer", "--engine", engine, "--input", "x", "--out", "y")
    assert answer.result["error"]["code"] == "out-of-memory"
    assert "swap" in answer.result["error"]["cure"]


def test_cuda_memory_that_runs_out_is_told_in_cudas_words(built, run_fake, tmp_path):
    engine, _ = built("10.3")
    answer = run_fake("10.3", "time", "--engine", engine, EDGESHIP_FAKE_MEMORY="100")
    assert answer.result["error"]["code"] == "out-of-memory"
    assert "cudaHostAlloc" in answer.result["error"]["message"]


def test_engines_of_another_version_or_gpu_are_not_loaded(built, run_fake, tmp_path):
    engine, _ = built("8.6")
    upgraded = run_fake("10.3", "infer", "--engine", engine, "--input", "x", "--out", "y")
    assert upgraded.result["error"]["code"] == "engine-other-version"
    assert upgraded.result["error"]["message"] == "built with 8.6.2, running 10.3.0.30"
    moved = run_fake("8.6", "infer", "--engine", engine, "--input", "x", "--out", "y", EDGESHIP_FAKE_SM="7.2")
    assert moved.result["error"]["code"] == "engine-other-gpu"


def test_a_plan_that_was_swapped_with_its_record_is_still_caught_by_tensorrt(built, run_fake, tmp_path):
    engine, _ = built("8.6")
    old = engine.read_bytes()
    engine, _ = built("10.3", "--force")
    record = json.loads(engine.with_suffix(".plan.json").read_text())
    engine.write_bytes(old)
    record["engine_sha256"] = hashlib.sha256(old).hexdigest()
    engine.with_suffix(".plan.json").write_text(json.dumps(record))
    answer = run_fake("10.3", "infer", "--engine", engine, "--input", "x", "--out", "y")
    assert answer.result["error"]["code"] == "engine-other-version"
    assert "expecting library version 8.6.2 got 10.3.0.30" in answer.result["error"]["message"]


def test_a_truncated_plan(built, run_fake):
    engine, _ = built("10.3")
    engine.write_bytes(engine.read_bytes()[:20])
    answer = run_fake("10.3", "infer", "--engine", engine, "--input", "x", "--out", "y")
    assert answer.result["error"]["code"] == "engine-damaged"


def test_tensorrt_8_2_is_refused_with_the_way_out(run_fake, tmp_path):
    arguments = ["build", "--graph", graph(tmp_path / "g"), "--out", tmp_path / "e", "--backend", "tensorrt"]
    answer = run_fake("8.2", *arguments)
    assert answer.result["error"]["code"] == "tensorrt-too-old"
    assert "8.2.1" in answer.result["error"]["message"]
    assert "onnxruntime" in answer.result["error"]["cure"]


def test_the_timing_cache_is_kept_and_a_foreign_one_refused(run_fake, tmp_path):
    path = graph(tmp_path / "g", quantized=False)
    arguments = ["build", "--graph", path, "--out", tmp_path / "e", "--backend", "tensorrt", "--force"]
    first = run_fake("10.3", *arguments, "--cache", tmp_path / "c")
    assert first.exit_code == 0
    cache = next((tmp_path / "c").glob("timing-*.cache"))
    assert cache.read_bytes() == b"FAKE-TIMING 10.3.0.30 8.7"
    cache.write_bytes(b"FAKE-TIMING 8.6.2 7.2")
    second = run_fake("10.3", *arguments, "--cache", tmp_path / "c")
    assert [call[1] for call in second.calls if call[0] == "set_timing_cache"] == [
        False,
        True,
    ]  # then a new one
    assert cache.read_bytes() == b"FAKE-TIMING 10.3.0.30 8.7"


@pytest.mark.parametrize("version", ["8.5", "11"])
def test_inspect_gives_the_layers_bindings_and_times(version, built, run_fake):
    engine, _ = built(version)
    found = run_fake(version, "inspect", "--engine", engine, "--profile").result
    assert found["layers"][0]["LayerType"] == "CaskConvolution"  # the build asked for details
    assert found["bindings"] == ["images", "logits"]  # renamed in 11
    assert found["times_ms"] == {"fake conv": pytest.approx(0.5)}
    assert found["fake"] is True


def test_infer_writes_the_logits_of_every_image(built, run_fake, tmp_path):
    engine, _ = built("10.3")
    pixels = [float(i % 13) for i in range(5 * 48)]  # 5 images through batches of 2
    (tmp_path / "x.f32").write_bytes(floats(pixels))
    answer = run_fake(
        "10.3", "infer", "--engine", engine, "--input", tmp_path / "x.f32", "--out", tmp_path / "y.f32"
    )
    assert answer.result["shape"] == [5, CLASSES]
    got = array.array("f", (tmp_path / "y.f32").read_bytes())
    assert list(got) == expected_logits(pixels, 5)
    (tmp_path / "x.f32").write_bytes(floats(pixels[:-1]))
    answer = run_fake(
        "10.3", "infer", "--engine", engine, "--input", tmp_path / "x.f32", "--out", tmp_path / "y.f32"
    )
    assert answer.result["error"]["code"] == "shape-mismatch"


def test_probe_prefers_tensorrt_and_names_the_fake(run_fake):
    found = run_fake("10.3", "probe").result
    assert found["fake"] is True
    assert found["best"] == "tensorrt"
    assert found["backends"]["tensorrt"]["version"] == "10.3.0.30"
    assert found["backends"]["tensorrt"]["identity"]["sm"] == "8.7"
    assert found["backends"]["openvino"]["available"] is False  # nothing is installed on this Python


def test_python_3_8_without_numpy_drives_it_all(run_fake, python38, tmp_path):
    engine, python = tmp_path / "e.plan", (python38, "-S")
    path = graph(tmp_path / "g")
    built = run_fake("8.5", "build", "--graph", path, "--out", engine, "--precision", "int8", python=python)
    assert built.result["backend"] == "tensorrt"
    tested = run_fake(
        "8.5", "selftest", "--engine", engine, "--golden", golden(tmp_path / "golden"), python=python
    )
    assert tested.result["verdict"] == "pass"
    timed = run_fake("8.5", "time", "--engine", engine, "--duration-s", 0.01, "--cuda-graph", python=python)
    assert timed.exit_code == 0


def test_the_fake_runs_onnx_graphs_too_and_still_calls_itself_fake(run_fake, tmp_path):
    path = qdq_graphs.save(qdq_graphs.residual_net(), tmp_path / "g.onnx")
    images = qdq_graphs.images(3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(None, {"images": images[i : i + 1]})[0] for i in range(3)])
    runner.write_golden(tmp_path / "golden", images, logits)
    engine, python = tmp_path / "e.plan", (sys.executable,)
    run_fake("10.3", "build", "--graph", path, "--out", engine, "--precision", "int8", python=python)
    tested = run_fake("10.3", "selftest", "--engine", engine, "--golden", tmp_path / "golden", python=python)
    assert (tested.result["verdict"], tested.result["fake"]) == ("pass", True)
    assert tested.result["cosine_min"] > 0.9999


@pytest.mark.parametrize(("least", "verdict"), [(0.66, "pass"), (0.67, "fail")])
def test_the_self_test_judges_the_first_class(built, run_fake, tmp_path, least, verdict):
    """One image of three has another first class; its logits may be as far as they like."""
    engine, _ = built("10.3")
    folder = golden(tmp_path / "golden", wrong=500.0)
    limits = ("--cosine-min", -1, "--top1-min", least)
    tested = run_fake("10.3", "selftest", "--engine", engine, "--golden", folder, *limits)
    assert tested.result["top1_agreement"] == pytest.approx(2 / 3)
    assert tested.result["verdict"] == verdict
    assert [reason.split(" 0")[0] for reason in tested.result["reasons"]] == ["top-1 agreement"][
        : verdict == "fail"
    ]
