"""OpenVINO and ONNX Runtime for real: the same file builds, proves, times and explains on this machine."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship.targets import runner
from edgeship.targets.runner.backends import onnxruntime as onnxruntime_backend

BACKENDS = ("openvino", "onnxruntime")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A small quantized classifier with a dynamic batch."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32)
    tensors = {
        "W": weight,
        "b": rng.normal(0, 0.1, 8).astype(np.float32),
        "F": rng.normal(0, 1, (10, 8)).astype(np.float32),
        "fb": np.zeros(10, np.float32),
        "sx": np.float32(0.03),
        "zx": np.int8(0),
        "sw": (np.abs(weight).max((1, 2, 3)) / 63).astype(np.float32),  # no pair sum saturates
        "zw": np.zeros(8, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["x"]),
        helper.make_node("QuantizeLinear", ["W", "sw", "zw"], ["wq"], axis=0),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "F", "fb"], ["logits"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "small", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return (rng.normal(0, 2, (6, 3, 1, 1)) + rng.normal(0, 1, (6, 3, 16, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def logits(graph, images):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.fixture
def build(run, graph, tmp_path):
    def call(backend, *arguments):
        engine = tmp_path / f"{backend}.engine"
        answer = run(
            "build",
            "--graph",
            graph,
            "--out",
            engine,
            "--backend",
            backend,
            "--precision",
            "int8",
            *arguments,
        )
        assert answer.exit_code == 0, answer.result
        return engine, answer.result

    return call


@pytest.mark.parametrize("backend", BACKENDS)
def test_build_prove_and_infer(backend, build, run, images, logits, tmp_path):
    engine, result = build(backend)
    assert (result["backend"], result["reused"]) == (backend, False)
    assert result["size_bytes"] == engine.stat().st_size
    assert "fake" not in result
    runner.write_golden(tmp_path / "golden", images, logits)
    tested = run("selftest", "--engine", engine, "--golden", tmp_path / "golden")
    assert (tested.exit_code, tested.result["verdict"]) == (0, "pass")
    assert tested.result["cosine_min"] > 0.9999
    assert tested.result["top1_agreement"] == 1.0
    assert tested.result["application"] == {"images": 0, "why": "the bundle has no image files"}
    (tmp_path / "x.f32").write_bytes(images.tobytes())
    run("infer", "--engine", engine, "--input", tmp_path / "x.f32", "--out", tmp_path / "y.f32")
    got = np.fromfile(tmp_path / "y.f32", "<f4").reshape(6, 10)
    np.testing.assert_allclose(got, logits, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_another_model_fail_the_self_test(backend, build, run, images, logits, tmp_path):
    engine, _ = build(backend)
    runner.write_golden(tmp_path / "golden", images, logits[::-1])
    tested = run("selftest", "--engine", engine, "--golden", tmp_path / "golden")
    assert (tested.exit_code, tested.result["verdict"]) == (3, "fail")
    expected = [
        np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(logits, logits[::-1], strict=True)
    ]
    assert tested.result["cosine_min"] == pytest.approx(min(expected), abs=1e-4)


def test_both_engines_are_timed_in_turns(build, run):
    engines = [build(backend)[0] for backend in BACKENDS]
    answer = run(
        "time",
        "--engine",
        engines[0],
        "--engine",
        engines[1],
        "--threads",
        1,
        "--warmup-ms",
        5,
        "--duration-s",
        0.05,
        "--iterations",
        12,
        "--rounds",
        2,
        "--samples",
    )
    order = [line["engine"] for line in answer.lines if line["event"] == "progress"]
    assert order == [*map(str, engines), *map(str, reversed(engines))]  # A B, B A
    for timing in answer.result["timings"]:
        wall = timing["wall_ms"]
        assert timing["runs"] == len(timing["samples_ms"]) >= 12
        assert 0 < wall["min"] <= wall["median"] <= wall["p90"] <= wall["p95"] <= wall["p99"] <= wall["max"]
        assert sum(timing["samples_ms"]) / timing["runs"] == pytest.approx(wall["mean"])
        assert timing["throughput_ips"] <= 1000 / wall["mean"]
        assert timing["gpu_ms"] is None
        assert timing["threads"] == 1


def test_the_threads_of_a_timing_are_those_it_ran_with(build, run):
    """An engine is built with all threads; what counts is what it is loaded with, and what there are."""
    cores = len(os.sched_getaffinity(0))
    for backend, wanted in (("openvino", {1: 1, 64: cores}), ("onnxruntime", {1: 1, None: None})):
        engine, _ = build(backend)
        for threads, real in wanted.items():
            asked = () if threads is None else ("--threads", threads)
            answer = run("time", "--engine", engine, "--warmup-ms", 1, "--duration-s", 0.01, *asked)
            assert [timing["threads"] for timing in answer.result["timings"]] == [real]


@pytest.mark.parametrize("backend", BACKENDS)
def test_inspect_names_layers_and_their_times(backend, build, run):
    engine, _ = build(backend)
    found = run("inspect", "--engine", engine, "--profile").result
    conv = [layer for layer in found["layers"] if "conv" in (layer["type"] or "").lower()]
    assert len(conv) == 1
    assert found["times_ms"][conv[0]["name"]] > 0


def test_openvino_inspect_shows_the_precision_that_really_runs(build, run):
    engine, _ = build("openvino")
    found = run("inspect", "--engine", engine).result
    conv = next(layer for layer in found["layers"] if layer["type"] == "Convolution")
    assert conv["precision"] in ("u8", "i8")


def test_the_same_key_is_reused_and_another_option_builds_anew(build, tmp_path):
    cache = tmp_path / "cache"
    first = build("openvino", "--cache", cache)[1]
    again = build("openvino", "--cache", cache)[1]
    assert (again["reused"], again["key"], again["engine_sha256"]) == (
        True,
        first["key"],
        first["engine_sha256"],
    )
    static = build("openvino", "--cache", cache, "--profile", "4:4:4")[1]
    assert (static["reused"], static["key"] != first["key"]) == (False, True)
    forced = build("openvino", "--cache", cache, "--force")[1]
    assert (forced["reused"], forced["key"]) == (False, first["key"])


def test_a_damaged_cache_entry_is_built_anew(build, tmp_path):
    cache = tmp_path / "cache"
    engine, _ = build("onnxruntime", "--cache", cache)
    next(cache.glob("*.onnx")).write_bytes(b"damaged")
    engine.unlink()
    engine, again = build("onnxruntime", "--cache", cache)
    assert again["reused"] is False
    assert engine.read_bytes() != b"damaged"


def test_a_static_batch_is_compiled_in_and_kept_to(build, run, images, logits, tmp_path):
    engine, _ = build("openvino", "--profile", "4:4:4")
    runner.write_golden(tmp_path / "golden", images, logits)  # 6 images: one and a half batches
    tested = run("selftest", "--engine", engine, "--golden", tmp_path / "golden")
    assert (tested.result["verdict"], tested.result["batch"], tested.result["images"]) == ("pass", 4, 6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "garbage", "cut off"])
def test_a_graph_that_is_none(backend, content, run, graph, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(graph.read_bytes()[:200] if content is None else content)
    answer = run("build", "--graph", path, "--out", tmp_path / "e", "--backend", backend)
    assert answer.exit_code == 1
    assert answer.result["error"]["code"] == "graph-damaged"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("e", ".edgeship-tmp"))] == []


def test_missing_files_are_named(run, tmp_path):
    answer = run("build", "--graph", tmp_path / "none.onnx", "--out", tmp_path / "e", "--backend", "openvino")
    assert answer.result["error"]["code"] == "file-missing"
    assert "none.onnx" in answer.result["error"]["message"]
    answer = run("infer", "--engine", tmp_path / "none", "--input", "x", "--out", "y")
    assert answer.result["error"]["code"] == "sidecar-missing"


def test_a_lock_held_by_another_build_is_waited_for_then_reported(run, graph, tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; f = open(sys.argv[1], 'a'); "
            "fcntl.flock(f, fcntl.LOCK_EX); "
            "print('held', flush=True); time.sleep(600)",
            tmp_path / ".edgeship-lock",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        arguments = ["build", "--graph", graph, "--out", tmp_path / "e", "--backend", "onnxruntime"]
        answer = run(*arguments, "--lock-timeout-s", 0.3)
        assert answer.exit_code == 75
        assert answer.result["error"]["code"] == "busy"
    finally:
        holder.kill()  # as if it died in its build: the kernel frees the lock
        holder.wait()
        holder.stdout.close()
    (tmp_path / ".edgeship-tmp-1-e").write_bytes(b"what the dead build left")
    assert run(*arguments, "--lock-timeout-s", 5).exit_code == 0
    assert list(tmp_path.glob(".edgeship-tmp-*")) == []


SLOW_SDK = """
import ctypes
import sys; sys.path.remove({folder!r}); del sys.modules["onnxruntime"]
import onnxruntime as real
class InferenceSession(real.InferenceSession):
    def __init__(self, *a, **k):
        ctypes.CDLL(None).sleep(600)  # in C, where no signal handler of Python's runs
real.InferenceSession = InferenceSession
sys.modules["onnxruntime"] = real
"""


def _slow(folder):
    """An ONNX Runtime whose builds take ten minutes."""
    folder.mkdir()
    (folder / "onnxruntime.py").write_text(SLOW_SDK.format(folder=str(folder)))
    return str(folder)


def test_a_build_that_takes_too_long_ends_at_its_limit(run, graph, tmp_path):
    arguments = [
        "build",
        "--graph",
        graph,
        "--out",
        tmp_path / "e",
        "--backend",
        "onnxruntime",
        "--timeout-s",
        0.3,
    ]
    started = time.monotonic()
    answer = run(*arguments, PYTHONPATH=_slow(tmp_path / "slow"))
    assert time.monotonic() - started < 300
    assert answer.exit_code == 1
    assert answer.result["error"]["code"] == "build-timeout"
    assert not (tmp_path / "e").exists()


def test_a_terminated_build_says_so_and_leaves_nothing(runner_file, graph, tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            runner_file,
            "build",
            "--graph",
            graph,
            "--out",
            tmp_path / "e",
            "--backend",
            "onnxruntime",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": _slow(tmp_path / "slow")},
    )
    with process:
        assert json.loads(process.stdout.readline())["stage"] == "build"
        process.send_signal(signal.SIGTERM)
        *_, last = process.stdout  # on a slow machine after the build's next sign of life
        result = json.loads(last)
    assert process.returncode == 1
    assert result["error"]["code"] == "stopped"
    assert {path.name for path in tmp_path.iterdir()} == {"slow", ".edgeship-lock"}


TRANSLATED = """
import os, signal, sys
from edgeship.targets.runner import cli

def start(thread):
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    except KeyboardInterrupt as error:
        raise RuntimeError("release unlocked lock") from error

cli.threading.Thread.start = start
sys.exit(cli.main(["build", "--graph", sys.argv[2], "--out", sys.argv[3], "--backend", "onnxruntime"]))
"""


@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM"])
def test_a_signal_whose_interrupt_becomes_another_error_is_reported_as_a_stop(graph, tmp_path, stop):
    """A signal while `Thread.start` waits for its thread raises RuntimeError, not KeyboardInterrupt."""
    command = [sys.executable, "-c", TRANSLATED, stop, graph, tmp_path / "e"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["error"]["code"] == "stopped"
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {".edgeship-lock"}


TWICE = """
import os, signal, sys
from edgeship.targets.runner import cli, output

line = output.Output.line
def stopped(self, record):
    if record["event"] == "result":
        os.kill(os.getpid(), signal.SIGTERM)
    line(self, record)

output.Output.line = stopped
sys.exit(cli.main(["infer", "--engine", "none", "--input", "x", "--out", "y"]))
"""


def test_a_signal_after_the_end_of_a_command_does_not_cost_its_result():
    done = subprocess.run(
        [sys.executable, "-c", TWICE], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout.splitlines()[-1])["error"]["code"] == "sidecar-missing"


def test_a_build_whose_client_is_gone_is_finished_for_the_next(runner_file, graph, tmp_path):
    command = [sys.executable, runner_file, "build", "--graph", graph, "--out", tmp_path / "e"]
    process = subprocess.Popen([*command, "--backend", "onnxruntime"], stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(300) == 0
    assert (tmp_path / "e.json").exists()


INTERRUPTED = """
import gc, os, signal, sys, time
from edgeship.targets.runner.backends import openvino
first, second = openvino.load(), openvino.load()
first.halves(), second.halves()
del first
gc.collect()
del second
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(42)
"""


def test_ctrl_c_after_openvino_was_opened_twice_is_an_interrupt():
    """A Core's plug-in frees the signal stack that the next one restores: a signal would crash."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], check=False, timeout=120)
    assert done.returncode == 42


def test_a_missing_sdk_names_its_cure(runner_file):
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            runner_file,
            "build",
            "--graph",
            __file__,
            "--out",
            "e",
            "--backend",
            "openvino",
        ],
        capture_output=True,
        text=True,
    )
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert (error["code"], error["cure"]) == ("openvino-missing", "pip install openvino")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (r'[{"name": "a\\x1b_kernel_time"}]', [r"a\x1b_kernel_time"]),  # escaped, as by ONNX Runtime 1.24
        (r'[{"name": "a\x1b_kernel_time"}]', [r"a\x1b_kernel_time"]),  # as by 1.23
        ('[{"name": "a\tb"}]', ["a\tb"]),
        ('[{"name": "a"b"}]', []),
        ("", []),
    ],
)
def test_a_profile_with_odd_names_is_read_or_unknown(text, names):
    assert [event["name"] for event in onnxruntime_backend._events(text)] == names
