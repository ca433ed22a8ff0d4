"""Layouts, pixel inputs and normalization inside a graph: the same result as the ordinary form."""

import json

import input_forms
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from edgeship import targets
from edgeship.calibration.preprocess import normalize
from edgeship.targets import onnxruntime as ort_target
from edgeship.toolkit.cli import app
from edgeship.toolkit.core.statistics import sqnr_db
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph import io

SIZE = (24, 32)
NAMES = ("openvino", "onnxruntime", "tensorrt")
TOLERANCE_DB = 0.1
STATED = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Smooth random images of 24 x 32 pixels: 20 that calibrate, all in a folder."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(20):
        small = Image.fromarray(random.integers(0, 256, (5, 6, 3)).astype(np.uint8))
        small.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


def pixels_of(photos):
    return np.stack([np.asarray(Image.open(file)) for file in sorted(photos.glob("*.png"))])


def quantized(model, photos, target, out, capfd, *more):
    """Quantize a model; its summary."""
    file = out / "net.onnx"
    onnx.save(model, file)
    fixed = ["--target", target, "--images", "20", "--effort", "fast", "--out", str(out / "q.onnx"), "--json"]
    with pytest.raises(SystemExit) as ended:
        app.main(["quantize", str(file), str(photos), *fixed, *more])
    captured = capfd.readouterr()
    assert not ended.value.code, captured.err
    return json.loads(captured.out)


def logits_of(target, file, images, out):
    """Return logits of the runtime, or of the simulated graph where the target does not run here."""
    if target == "tensorrt":
        with ort_target.simulate(file) as session:
            return session.infer(images)
    built = targets.get(target).compile(file, out / target, "int8")
    with targets.get(target).open(out / target / built.file) as session:
        return session.infer(images)


def float_logits(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def sqnr(model, name, photos, target, out, capfd, *more):
    """SQNR of what is shipped against the file as it was brought, each fed in its own form; the summary."""
    pixels = pixels_of(photos)
    summary = quantized(model, photos, target, out, capfd, *more)
    prepared = Preprocess.from_json(summary["preprocess"])
    shipped = logits_of(target, out / "q.onnx", normalize(pixels, prepared), out)
    brought = (pixels / np.float32(255) - input_forms.MEAN) / input_forms.STD
    images = brought.transpose(0, 3, 1, 2) if name is None else input_forms.given(name, pixels)
    reference = float_logits(model, np.ascontiguousarray(images, images.dtype))
    return sqnr_db(reference, shipped), summary


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    """SQNR of the ordinary form, by target; worked out once each."""
    found = {}

    def of(target, capfd):
        if target not in found:
            out = tmp_path_factory.mktemp(target)
            found[target], _ = sqnr(input_forms.ordinary(SIZE), None, photos, target, out, capfd)
        return found[target]

    return of


def check(name, target, photos, plain, out, capfd):
    build, largest = input_forms.FORMS[name]
    measured, summary = sqnr(build(SIZE), name, photos, target, out, capfd, "--size", "24x32")
    print(f"{name} {target}: {measured:.2f} dB, ordinary {plain(target, capfd):.2f} dB")
    assert measured == pytest.approx(plain(target, capfd), abs=TOLERANCE_DB)
    graph = io.read(out / "q.onnx")
    assert (graph.form.layout, graph.form.dtype, graph.size) == ("NCHW", "float32", SIZE)
    assert not any(node.op_type == "Transpose" for node in graph.model.graph)
    normalization = summary["input"]["normalization"]
    assert (normalization and normalization["scale"]) == largest
    if largest:
        np.testing.assert_allclose(normalization["mean"], input_forms.MEAN, rtol=1e-5)
        np.testing.assert_allclose(normalization["std"], input_forms.STD, rtol=1e-5)
        assert any("raw pixels, 0.." in text for text in summary["warnings"])


@pytest.mark.parametrize("name", input_forms.FORMS)
def test_a_form_gives_what_the_ordinary_one_gives(name, photos, plain, tmp_path, capfd):
    target = NAMES[list(input_forms.FORMS).index(name) % 3]
    check(name, target, photos, plain, tmp_path, capfd)


@pytest.mark.parametrize("name", ["nhwc-wrapped", "sub-div", "uint8-nhwc"])
def test_pixels_give_what_ready_images_give(name, photos, tmp_path, capfd):
    build, _ = input_forms.FORMS[name]
    pixels, stated = pixels_of(photos), []
    if name == "nhwc-wrapped":
        stated = [f"--preprocess={key}={value}" for key, value in STATED.items()]
    summary = quantized(build(SIZE), photos, "onnxruntime", tmp_path, capfd, *stated)
    prepared = Preprocess.from_json(summary["preprocess"])
    expected = logits_of("onnxruntime", tmp_path / "q.onnx", normalize(pixels, prepared), tmp_path)
    quantized(build(SIZE), photos, "onnxruntime", tmp_path, capfd, *stated, "--input", "uint8")
    read = io.read(tmp_path / "q.onnx")
    kinds = [node.op_type for node in read.model.graph][:5]
    assert kinds == ["Cast", "Mul", "Sub", "Transpose", "QuantizeLinear"]
    assert (read.takes_pixels, read.size) == (True, SIZE)
    np.testing.assert_array_equal(logits_of("onnxruntime", tmp_path / "q.onnx", pixels, tmp_path), expected)


def test_the_file_is_inspected_as_it_is_and_timed_as_planes(tmp_path, capfd):
    build, _ = input_forms.FORMS["nhwc-wrapped"]
    onnx.save(build(SIZE), tmp_path / "net.onnx")
    for arguments in (["inspect", "graph"], ["bench", "--target", "onnxruntime", "--runs", "2"]):
        with pytest.raises(SystemExit) as ended:
            app.main([*arguments, str(tmp_path / "net.onnx"), "--json"])
        captured = capfd.readouterr()
        assert not ended.value.code, captured.err
        if arguments[0] == "inspect":
            assert json.loads(captured.out)["input"]["shape"] == [None, *SIZE, 3]
        else:
            assert "timed as float32 (N, C, H, W)" in captured.err
            assert len(json.loads(captured.out)["variants"]["onnxruntime"]["samples_ms"]) == 2


def test_a_mean_that_is_stated_for_a_graph_with_its_own_is_warned_of(photos, tmp_path, capfd):
    build, _ = input_forms.FORMS["sub-div"]
    stated = [f"--preprocess={key}={value}" for key, value in STATED.items()]
    summary = quantized(build(SIZE), photos, "tensorrt", tmp_path, capfd, *stated)
    assert any("normalize twice" in text for text in summary["warnings"])
    np.testing.assert_allclose(summary["preprocess"]["mean"], input_forms.MEAN, rtol=1e-6)


def test_a_size_that_the_file_contradicts_is_refused(photos, tmp_path, capfd):
    onnx.save(input_forms.ordinary(SIZE), tmp_path / "net.onnx")
    arguments = ["--target", "tensorrt", "--out", str(tmp_path / "q.onnx"), "--size", "32x24"]
    with pytest.raises(SystemExit) as ended:
        app.main(["quantize", str(tmp_path / "net.onnx"), str(photos), *arguments])
    assert ended.value.code == 2
    assert "32x24, but net.onnx takes 24 x 32 pixels" in capfd.readouterr().err


@pytest.mark.parametrize("batch", [4, "batch"])
def test_a_batch_of_the_file_does_not_matter(batch, photos, plain, tmp_path, capfd):
    model = input_forms.ordinary(SIZE, batch=batch)
    stated = [f"--preprocess={key}={value}" for key, value in STATED.items()]
    quantized(model, photos, "onnxruntime", tmp_path, capfd, *stated)
    assert io.read(tmp_path / "q.onnx").batch == (batch if batch == 4 else None)
    pixels = pixels_of(photos)
    ready = np.ascontiguousarray(
        ((pixels / np.float32(255) - input_forms.MEAN) / input_forms.STD).transpose(0, 3, 1, 2)
    )
    shipped = logits_of("onnxruntime", tmp_path / "q.onnx", ready, tmp_path)
    reference = float_logits(input_forms.ordinary(SIZE), ready)
    assert sqnr_db(reference, shipped) == pytest.approx(plain("onnxruntime", capfd), abs=TOLERANCE_DB)


@pytest.mark.slow
@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("name", input_forms.FORMS)
def test_every_form_on_every_target(name, target, photos, plain, tmp_path, capfd):
    check(name, target, photos, plain, tmp_path, capfd)
