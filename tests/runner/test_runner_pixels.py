"""Engines that take decoded pixels: built, proved, timed and fed from a packed set like any other."""

import hashlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from float_graphs import residual
from PIL import Image

from edgeship.calibration import evalset_format
from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.preprocess import normalize
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.targets import runner
from edgeship.targets.onnxruntime import TARGET, simulate
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph.pixels import add_pixel_input

PREPROCESS = Preprocess(resize=20, crop=16)
SHAPE, CLASSES = (2, 4, 4, 3), 5  # of the fake TensorRT's graph


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Seven images packed, a quantized graph that takes them ready, and the same that takes pixels."""
    folder = tmp_path_factory.mktemp("net")
    rng = np.random.default_rng(0)
    for number in range(7):
        place = folder / "photos" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), np.uint8)).save(place / f"{number}.png")
    dataset = open_dataset(folder / "photos")
    evalset_format.pack(dataset, range(7), PREPROCESS, folder / "images.set")
    pixels = np.asarray(evalset_format.read(folder / "images.set").images)
    path = residual(seed=1).save(folder / "float.onnx")
    statistics = collect(path, [normalize(pixels, PREPROCESS)])
    weight = replace(TARGET.scheme().weight, bits=7)  # no pair sum saturates, in whatever runtime
    scheme = replace(TARGET.scheme(), weight=weight)
    quantize(path, statistics, scheme, QuantizeOptions(effort="fast"), folder / "int8.onnx")
    add_pixel_input(folder / "int8.onnx", PREPROCESS, folder / "pixels.onnx")
    with simulate(folder / "int8.onnx", threads=1) as session:
        logits = session.infer(normalize(pixels, PREPROCESS))
    logits.tofile(folder / "logits.f32")
    runner.write_golden(folder / "golden", pixels, logits)
    runner.write_golden(folder / "ready", normalize(pixels, PREPROCESS), logits)
    return folder


@pytest.fixture
def built(run, net, tmp_path):
    def build(backend, graph="pixels.onnx"):
        engine = tmp_path / f"{backend}-{graph}.engine"
        arguments = ("--graph", net / graph, "--out", engine, "--backend", backend, "--precision", "int8")
        assert run("build", *arguments).exit_code == 0
        return engine

    return build


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_built_proved_and_timed_here(backend, built, run, net, tmp_path):
    engine = built(backend)
    tested = run("selftest", "--engine", engine, "--golden", net / "golden")
    assert (tested.exit_code, tested.result["verdict"], tested.result["images"]) == (0, "pass", 7)
    assert tested.result["cosine_min"] > 0.9999
    timed = run("time", "--engine", engine, "--warmup-ms", 0, "--duration-s", 0.01).result["timings"][0]
    assert timed["wall_ms"]["median"] > 0


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_packed_set_gives_the_logits_of_the_engine_that_takes_ready_images(
    backend, built, run, net, tmp_path
):
    logits = []
    for graph in ("int8.onnx", "pixels.onnx"):
        out = tmp_path / f"{graph}.f32"
        done = run(
            *("evaluate", "--engine", built(backend, graph), "--images", net / "images.set", "--batch", 3),
            *("--reference", net / "logits.f32", "--logits-out", out, "--threads", 1),
        )
        assert (done.exit_code, done.result["images"], done.result["agreement"]) == (0, 7, 1.0)
        logits.append(np.fromfile(out, "<f4"))
    np.testing.assert_array_equal(*logits)


def test_raw_pixels_are_inferred_and_half_an_image_is_refused(built, run, net, tmp_path):
    engine = built("onnxruntime")
    pixels = np.asarray(evalset_format.read(net / "images.set").images)
    pixels.tofile(tmp_path / "x.u8")
    run("infer", "--engine", engine, "--input", tmp_path / "x.u8", "--out", tmp_path / "y.f32")
    expected = np.fromfile(net / "logits.f32", "<f4")
    np.testing.assert_allclose(np.fromfile(tmp_path / "y.f32", "<f4"), expected, atol=0.05)
    (tmp_path / "x.u8").write_bytes(bytes(1000))
    refused = run("infer", "--engine", engine, "--input", tmp_path / "x.u8", "--out", tmp_path / "z.f32")
    assert refused.result["error"]["code"] == "shape-mismatch"
    assert "as uint8" in refused.result["error"]["cure"]


@pytest.mark.parametrize(
    ("graph", "golden", "says"),
    [
        ("pixels.onnx", "ready", "the engine takes (16, 16, 3)"),
        ("int8.onnx", "golden", "the engine takes (3, 16, 16)"),
    ],
)
def test_images_in_the_other_form_are_refused(graph, golden, says, built, run, net):
    refused = run("selftest", "--engine", built("onnxruntime", graph), "--golden", net / golden)
    assert (refused.exit_code, refused.result["error"]["code"]) == (1, "shape-mismatch")
    assert says in refused.result["error"]["message"]


def golden_pixels(folder, kind="u8"):
    """Three images for the made-up graph of the fake: logit k is the sum of every fifth value from k."""
    size = int(np.prod(SHAPE[1:]))
    values = [(37 * i) % 256 for i in range(3 * size)]
    rows = [values[i * size : (i + 1) * size] for i in range(3)]
    logits = struct.pack(f"<{3 * CLASSES}f", *(sum(row[k::CLASSES]) for row in rows for k in range(CLASSES)))
    images = bytes(values) if kind == "u8" else struct.pack(f"<{len(values)}f", *values)
    contents = {f"inputs.{kind}": images, "logits.f32": logits}
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    record = {
        "shape": [3, *SHAPE[1:]],
        "classes": CLASSES,
        "inputs": f"inputs.{kind}",
        "logits": "logits.f32",
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    (folder / "golden.json").write_text(json.dumps({**record, "sha256": digests}))
    return folder


@pytest.mark.parametrize("version", ["8.5", "10.3", "11"])
def test_tensorrt_copies_a_quarter_of_the_bytes(version, run_fake, tmp_path):
    """Against the fake, on a Python without NumPy."""
    graph, engine = tmp_path / "g.json", tmp_path / "model.plan"
    graph.write_text(json.dumps({"shape": SHAPE, "classes": CLASSES, "quantized": True, "unsigned": True}))
    built = ("--graph", graph, "--out", engine, "--backend", "tensorrt", "--precision", "int8")
    assert run_fake(version, "build", *built).exit_code == 0
    tested = run_fake(version, "selftest", "--engine", engine, "--golden", golden_pixels(tmp_path / "golden"))
    assert (tested.result["verdict"], tested.result["largest_difference"]) == ("pass", 0.0)
    timed = run_fake(version, "time", "--engine", engine, "--warmup-ms", 0, "--duration-s", 0.01)
    assert timed.result["timings"][0]["h2d_ms"]["median"] == pytest.approx(2 * 48 * 1e-6)
    floats = golden_pixels(tmp_path / "floats", kind="f32")
    refused = run_fake(version, "selftest", "--engine", engine, "--golden", floats)
    assert "has float32 images, the engine takes uint8" in refused.result["error"]["message"]
