"""Checks that need an NVIDIA GPU with TensorRT: `make test-gpu`. Elsewhere each skips with its reason.

Engines are built, run, compared with the simulation, audited and timed in every precision that the GPU has.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from qdq_graphs import FLOAT, TENSORRT, images, residual_net, save

from edgeship import targets
from edgeship.calibration.preprocess import normalize
from edgeship.quantization import calibrate, float8
from edgeship.targets import onnxruntime, runner
from edgeship.targets._timing import interleave
from edgeship.targets.runner import backends, sysfs
from edgeship.targets.tensorrt import local_gpu
from edgeship.toolkit.cli.app import main
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph.pixels import add_pixel_input

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not local_gpu.available(), reason="no NVIDIA GPU with TensorRT on this machine"),
]
TARGET = "tensorrt"
PRECISIONS = ("fp32", "fp16", "int8", "fp8")
AUDITED = {"fp32": {"fp32", "tf32"}, "fp16": {"fp16"}, "int8": {"int8"}, "fp8": {"fp8"}}
COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99, "fp8": 0.99}  # of the logits of one image


@pytest.fixture(scope="session")
def graphs(tmp_path_factory):
    """One network: float, with INT8 and with FP8 Q/DQ."""
    folder = tmp_path_factory.mktemp("graphs")
    plain = save(residual_net(FLOAT, batch=8), folder / "float.onnx")
    quantized = save(residual_net(TENSORRT, batch=8), folder / "int8.onnx")
    statistics = calibrate.collect(plain, [images(16)])
    float8.write(plain, statistics, targets.get("tensorrt").scheme(), folder / "fp8.onnx")
    return {"fp32": plain, "fp16": plain, "int8": quantized, "fp8": folder / "fp8.onnx"}


@pytest.fixture(scope="session")
def engines(graphs, tmp_path_factory):
    """Precision -> (compiled, folder), built once."""
    built = {}

    def engine(precision):
        if precision not in backends.load("tensorrt").precisions(sysfs.Tree()):
            pytest.skip(f"the GPU has no {precision.upper()}")
        if precision not in built:
            folder = tmp_path_factory.mktemp(precision)
            built[precision] = targets.get(TARGET).compile(graphs[precision], folder, precision), folder
        return built[precision]

    return engine


def logits_of(engine, batch):
    compiled, folder = engine
    with targets.get(TARGET).open(folder / compiled.file) as session:
        return session.infer(batch)


def cosines(one, two):
    return (one * two).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_computes_what_the_simulation_does(precision, engines, graphs):
    compiled, folder = engine = engines(precision)
    assert compiled.runs_here
    simulated = folder / compiled.simulated if compiled.simulated else graphs[precision]
    with onnxruntime.simulate(simulated) as session:
        wanted = session.infer(images(64))
    got = logits_of(engine, images(64))
    assert cosines(wanted, got).min() > COSINE[precision]
    assert (wanted.argmax(1) == got.argmax(1)).mean() > 0.95


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_convolution_runs_in_the_precision(precision, engines):
    convolutions = [layer for layer in engines(precision)[0].audit if layer.kind == "Convolution"]
    assert convolutions and {layer.precision for layer in convolutions} <= AUDITED[precision]
    assert all(layer.time_ms is None or layer.time_ms > 0 for layer in convolutions)


def test_engines_are_timed_in_turns(engines):
    sessions = {}
    for precision in ("fp32", "fp16"):
        compiled, folder = engines(precision)
        sessions[precision] = (targets.get(TARGET).open(folder / compiled.file), folder / compiled.file)
    batch = images(8)
    with sessions["fp32"][0] as one, sessions["fp16"][0] as two:
        samples = interleave(
            {"fp32": lambda: one.infer(batch), "fp16": lambda: two.infer(batch)}, warmup_s=0.1, duration_s=0.5
        )
    assert min(map(len, samples.values())) > 10 and min(map(min, samples.values())) > 0
    ips = targets.get(TARGET).throughput_ips(sessions["fp16"][1], batch, duration_s=0.5)
    assert ips > 0.2 * 8000 / np.median(samples["fp16"])


def test_pixels_are_normalized_in_the_engine(graphs, tmp_path):
    preprocess = Preprocess(resize=32, crop=32)
    add_pixel_input(graphs["int8"], preprocess, tmp_path / "pixels.onnx")
    compiled = targets.get(TARGET).compile(tmp_path / "pixels.onnx", tmp_path / "engine", "int8")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    with onnxruntime.simulate(graphs["int8"]) as session:
        wanted = session.infer(normalize(pixels, preprocess))
    assert cosines(wanted, logits_of((compiled, tmp_path / "engine"), pixels)).min() > COSINE["int8"]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_device_runner_builds_tests_and_times(precision, graphs, tmp_path):
    (tmp_path / runner.FILE_NAME).write_bytes(runner.source())
    with onnxruntime.simulate(graphs[precision]) as session:
        runner.write_golden(tmp_path / "golden", images(8), session.infer(images(8)))
    graph, engine = str(graphs[precision]), str(tmp_path / "model.plan")
    for arguments in (
        ["build", "--graph", graph, "--out", engine, "--backend", TARGET, "--precision", precision],
        ["selftest", "--engine", engine, "--golden", str(tmp_path / "golden")],
        ["time", "--engine", engine, "--duration-s", "0.5"],
    ):
        done = subprocess.run(
            [sys.executable, tmp_path / runner.FILE_NAME, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["ok"], (result, done.stderr[-2000:])


def test_a_run_measures_every_variant(tmp_path):
    arguments = [
        "--set",
        "load.train.epochs=1",
        "--set",
        "bench.duration_s=0.3",
        "--out",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit) as left:
        main(["run", "quickstart", "--target", TARGET, *arguments])
    assert left.value.code in (None, 0, 3)  # one epoch may miss the limit
    report = json.loads((tmp_path / "run/report.json").read_text())
    rows = {row["name"]: row for row in report["variants"] if row["target"] == TARGET}
    assert set(rows) >= {f"{TARGET}-{precision}" for precision in ("fp32", "int8")}
    for row in rows.values():
        assert (row["kind"], row["runs_here"]) == ("measured", True), row["error"]
        assert row["latency_ms"]["p50"] > 0 and row["int8_layers"] is not None
