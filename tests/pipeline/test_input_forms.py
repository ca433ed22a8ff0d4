"""Layouts, pixel inputs and normalization inside a graph: the same result as the ordinary form."""

import json

import input_forms
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import targets
from calibration.preprocess import normalize
from targets import onnxruntime as ort_target
from toolkit.cli import app
from toolkit.core.statistics import sqnr_db
from toolkit.core.tensors import Preprocess
from toolkit.graph import io

SIZE = (24, 32)
NAMES = ("openvino", "onnxruntime", "tensorrt")
TOLERANCE_DB = 0.1


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
    said = capfd.readouterr()
    assert not ended.value.code, said.err
    return json.loads(said.out)


def logits_of(target, file, images, out):
    """What the runtime computes; of a target that does not run here, the graph in exact arithmetic."""
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
    prepared = Preprocess.from_json(summary["input"]["preprocess"])
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


@pytest.mark.slow
@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("name", input_forms.FORMS)
def test_every_form_on_every_target(name, target, photos, plain, tmp_path, capfd):
    check(name, target, photos, plain, tmp_path, capfd)
