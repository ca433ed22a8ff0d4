"""The classifier: the classes of the report from a run, an engine or a file; a live switch of releases."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeship.calibration.datasets import open_dataset
from edgeship.targets.runner import classifier as module
from edgeship.targets.runner import classify
from edgeship.targets.runner import description as device_description
from edgeship.targets.runner.classifier import Classifier
from edgeship.targets.runner.failures import Failure
from edgeship.toolkit.api.classifier import is_simulated
from edgeship.toolkit.cli import app
from edgeship.toolkit.deploy import bundle_from_run
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline import Recipe, Store, datasets, run
from edgeship.toolkit.runs import description

IMAGES = 40


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return the folder of a run, and the logits that it measured."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    weights.save(resnet.ResNet(resnet.architecture("resnet20", width=4)), folder)
    names = folder / "names.txt"
    names.write_text("".join(f"digit {index}, “{index}”\n" for index in range(10)), encoding="utf-8")
    recipe = Recipe.build(
        {
            "load": {"weights": str(folder / "model.safetensors"), "labels": str(names)},
            "export": {"size": 16},
            "select": {"source": "digits:train", "images": 12},
            "quantize": {"effort": "fast"},
            "compile": {"targets": ["openvino", "onnxruntime"]},
            "evaluate": {"source": "digits:test", "images": IMAGES},
            "bench": {"runs": 3, "throughput_s": 0.01, "warmup_s": 0.0},
        }
    )
    finished = run(recipe, store=Store(folder / "store"), out=folder / "out")
    logits = {path.stem: np.load(path) for path in (finished.folder("evaluate") / "logits").iterdir()}
    return folder / "out", logits


@pytest.fixture(scope="module")
def pictures():
    dataset = open_dataset("digits:test")
    return [dataset.image(index) for index in datasets.subset(dataset, IMAGES)]


@pytest.mark.parametrize("variant", ["openvino-int8", "openvino-fp32", "onnxruntime-int8"])
def test_the_classes_are_those_of_the_report(published, pictures, variant):
    out, logits = published
    with Classifier(out / "engines" / variant.split("-", maxsplit=1)[0] / variant) as classifier:
        results = classifier(pictures)
        single = classifier(pictures[0])
    np.testing.assert_array_equal(np.stack([result.logits for result in results]), logits[variant])
    assert [result.index for result in results] == logits[variant].argmax(1).tolist()
    expected = np.exp(logits[variant][0]) / np.exp(logits[variant][0]).sum()
    np.testing.assert_allclose(single.probabilities, expected, rtol=1e-5)
    best = single.top(3)
    assert [each.index for each in best] == np.argsort(-logits[variant][0])[:3].tolist()
    assert best[0].label == single.label == f"digit {best[0].index}, “{best[0].index}”"
    assert best[0].probability == pytest.approx(expected.max(), rel=1e-5)


def test_files_bytes_arrays_and_bgr_are_the_same_image(published, pictures, tmp_path):
    path = tmp_path / "a.png"
    pictures[1].save(path)
    array = np.asarray(pictures[1])
    with Classifier(published[0] / "engines/openvino/openvino-int8") as classifier:
        expected = classifier(pictures[1]).logits
        for image in (path, str(path), path.read_bytes(), array):
            np.testing.assert_array_equal(classifier(image).logits, expected)
        np.testing.assert_array_equal(classifier(array[..., ::-1], color="bgr").logits, expected)
        coloured = array.copy()
        coloured[..., 0] //= 2
        assert not np.array_equal(classifier(coloured).logits, classifier(coloured, color="bgr").logits)
        np.testing.assert_array_equal(classifier(np.stack([array] * 2))[1].logits, expected)


def test_nv12_frames_are_stated_in_full(published):
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (33, 20), np.uint8)
    with Classifier(published[0] / "engines/openvino/openvino-int8") as classifier:
        answers = {}
        for color in module.NV12:
            rgb = module.imaging.from_nv12(frame, *color.split("-")[1:])
            answers[color] = classifier(frame, color=color).logits
            np.testing.assert_array_equal(answers[color], classifier(rgb).logits)
        assert len({each.tobytes() for each in answers.values()}) == 4
        for color in ("nv12", "nv12-bt601", "NV12-bt601-full"):
            with pytest.raises(Failure, match="color is") as caught:
                classifier(frame, color=color)
            assert "nv12-bt709-limited" in caught.value.cause
        with pytest.raises(Failure, match="no NV12 frame") as caught:
            classifier(frame[:32], color="nv12-bt601-full")
        assert caught.value.code == "image-form"


def test_without_pillow_arrays_give_the_same_logits(published, pictures, monkeypatch):
    array = np.asarray(pictures[2])
    with Classifier(published[0] / "engines/openvino/openvino-int8") as classifier:
        expected = classifier(array).logits
        monkeypatch.setattr(module.imaging, "Image", None)
        np.testing.assert_array_equal(classifier(array).logits, expected)
        with pytest.raises(Failure, match="cannot decode"):
            classifier(b"x")


def test_a_model_with_a_softmax_is_not_normalized_twice(published, pictures, tmp_path):
    import onnx

    graph = onnx.load(published[0] / "engines/onnxruntime/onnxruntime-fp32/model.onnx")
    logits = graph.graph.output[0].name
    graph.graph.node.append(onnx.helper.make_node("Softmax", [logits], ["probabilities"], axis=1))
    graph.graph.output[0].name = "probabilities"
    onnx.save(graph, tmp_path / "model.onnx")
    shutil.copy(published[0] / "engines" / description.DESCRIPTION, tmp_path)
    with Classifier(tmp_path / "model.onnx") as classifier:
        result = classifier(pictures[0])
    expected = published[1]["onnxruntime-fp32"][0]
    np.testing.assert_allclose(
        result.probabilities, np.exp(expected) / np.exp(expected).sum(), rtol=1e-4, atol=1e-7
    )


def test_the_schema_is_the_one_that_runs_write(published):
    written = json.loads((published[0] / "engines" / description.DESCRIPTION).read_text())
    assert written["schema"] == device_description.SCHEMA == description.SCHEMA
    assert device_description.DESCRIPTION == description.DESCRIPTION
    lines = (published[0] / "engines" / description.LABELS).read_text(encoding="utf-8").splitlines()
    assert lines == written["labels"] and len(lines) == 10


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(5, np.uint8),
        b"no image",
        b"",
        "absent.png",
    ],
    ids=["float", "four channels", "empty", "a row", "text", "no bytes", "absent"],
)
def test_what_is_no_image_is_refused_by_name(published, image):
    with Classifier(published[0] / "engines/openvino/openvino-int8") as classifier:
        with pytest.raises(Failure) as caught:
            classifier(image)
        assert caught.value.code in {"image-form", "image-damaged", "image-missing"}
        with pytest.raises(Failure, match="color is 'bgra'"):
            classifier(np.zeros((16, 16, 3), np.uint8), color="bgra")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["one"]}, "1 class names for 10 outputs"),
        ({"schema": 2}, "schema 2, expected 1"),
        ({"preprocess": {}}, "field 'resize'"),
        ({"labels": None}, "field"),
    ],
)
def test_a_wrong_description_is_refused(published, tmp_path, change, message):
    folder = tmp_path / "engine"
    shutil.copytree(published[0] / "engines/openvino/openvino-int8", folder)
    record = json.loads((published[0] / "engines/model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(Failure, match=message):
        Classifier(folder)


def test_a_folder_without_an_engine_and_an_engine_without_a_description(published, tmp_path):
    with pytest.raises(Failure, match="no engine at"):
        Classifier(tmp_path)
    shutil.copytree(published[0] / "engines/openvino/openvino-int8", tmp_path / "engine")
    with Classifier(tmp_path / "engine") as classifier:
        assert classifier.labels[0].startswith("digit 0")  # stated in the file
    file = tmp_path / "engine" / "model.xml"
    file.write_text(re.sub("<(/?)edgeship>", r"<\1other>", file.read_text("utf-8")), "utf-8")
    with Classifier(tmp_path / "engine") as classifier:
        with pytest.raises(Failure, match=r"no model.json"):
            classifier(np.zeros((16, 16, 3), np.uint8))
        (result,) = classifier.classify_inputs(np.zeros((1, 3, 16, 16), np.float32))
        with pytest.raises(Failure, match=r"cannot run inputs of shape \(1, 3, 8, 9\)") as caught:
            classifier.classify_inputs(np.zeros((1, 3, 8, 9), np.float32))
        assert "(N, 3, 16, 16)" in caught.value.cure
    assert len(result.labels) == 10


@pytest.fixture
def releases(published, tmp_path):
    """Return two releases with other class names, and a link to the first."""
    record = json.loads((published[0] / "engines/model.json").read_text())
    for name in ("a", "b"):
        folder = tmp_path / name
        shutil.copytree(published[0] / "engines/openvino/openvino-int8", folder)
        labels = [f"{name}{index}" for index in range(10)]
        (folder / "model.json").write_text(json.dumps({**record, "labels": labels}))
    (tmp_path / "current").symlink_to("a")
    return tmp_path


def switch(folder, name):
    (folder / ".current").symlink_to(name)
    (folder / ".current").replace(folder / "current")


def test_requests_go_on_while_the_release_is_switched(releases, published, pictures):
    """Over 20 switches no request is lost or wrong, and the new release is used after each."""
    expected = published[1]["openvino-int8"][:8].argmax(1)
    wrong, stop, answers = [], threading.Event(), []

    def requests(classifier):
        while not stop.is_set():
            for index in range(8):
                result = classifier(pictures[index])
                answers.append(result.label[0])
                if result.index != expected[index]:
                    wrong.append((index, result.index))

    with Classifier(releases / "current", threads=1) as classifier:
        thread = threading.Thread(target=requests, args=(classifier,))
        thread.start()
        for number in range(20):
            name = "ba"[number % 2]
            switch(releases, name)
            classifier.reload()  # False where a request has loaded it in the meantime
            assert classifier.labels[0] == f"{name}0"
        stop.set()
        thread.join()
    assert not wrong and set(answers) == {"a", "b"}


ENDING = """
import os, sys, threading, time
from edgeship.targets.runner import classifier as module
folder, ending = os.path.dirname(sys.argv[1]), threading.Event()
classifier, opened = module.Classifier(sys.argv[1], threads=1), module._open

def slowly(*arguments):
    ending.wait()
    time.sleep(0.3)
    session = opened(*arguments)
    print("loaded", flush=True)
    return session

module._open = slowly
os.symlink("b", os.path.join(folder, "next"))
os.replace(os.path.join(folder, "next"), sys.argv[1])
camera = threading.Thread(target=lambda: classifier.labels, daemon=True)
camera.start()
camera.join()
print("end of the main thread", flush=True)
ending.set()
"""


def test_a_process_that_ends_during_a_reload_waits_for_it(releases):
    done = subprocess.run(
        [sys.executable, "-c", ENDING, releases / "current"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["end of the main thread", "loaded"]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_release_that_is_switched_during_a_load_is_used_after_it(releases, pictures, monkeypatch, damaged):
    shutil.copytree(releases / "a", releases / "c")
    opened = module._open

    def switched(file, *arguments):
        if file.startswith(str(releases / "b")):
            switch(releases, "c")
            if damaged:
                raise Failure("x", "damaged", "x", "x")
        return opened(file, *arguments)

    record = json.loads((releases / "c" / "model.json").read_text())
    (releases / "c" / "model.json").write_text(json.dumps({**record, "labels": [f"c{i}" for i in range(10)]}))
    with Classifier(releases / "current", threads=1) as classifier:
        monkeypatch.setattr(module, "_open", switched)
        switch(releases, "b")
        if damaged:
            with pytest.raises(Failure, match="damaged"):
                classifier.reload()
            assert classifier.reload()
        else:
            assert classifier.reload()
        monkeypatch.setattr(classifier, "_follow", False)
        assert classifier(pictures[0]).label[0] == "c"


def test_a_reload_without_a_free_thread_leaves_the_old_engine_in_use(releases, pictures, monkeypatch):
    def refused(thread):
        raise RuntimeError("can't start new thread")

    with Classifier(releases / "current", threads=1) as classifier:
        switch(releases, "b")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            assert classifier(pictures[0]).label[0] == "a" and "new thread" in str(classifier.reload_error)
            with pytest.raises(RuntimeError):
                classifier.reload()
        assert classifier.reload() and classifier(pictures[0]).label[0] == "b"
        assert classifier.reload_error is None


def test_a_reload_that_ctrl_c_ends_before_its_thread_starts_is_tried_again(releases, pictures, monkeypatch):
    def interrupted(thread):
        raise KeyboardInterrupt

    with Classifier(releases / "current", threads=1) as classifier:
        switch(releases, "b")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                classifier(pictures[0])
        assert classifier.reload() and classifier(pictures[0]).label[0] == "b"


def test_a_release_that_cannot_be_loaded_leaves_the_old_one_in_use(releases, pictures):
    with Classifier(releases / "current") as classifier:
        before = classifier(pictures[0]).label
        (releases / "b" / "model.xml").write_text("damaged")
        switch(releases, "b")
        with pytest.raises(Failure):
            classifier.reload()
        assert classifier(pictures[0]).label == before
        shutil.rmtree(releases / "a")
        (releases / "current").unlink()
        assert classifier(pictures[0]).label == before
        assert not classifier.reload()
    with pytest.raises(Failure, match="closed"):
        classifier(pictures[0])


def predict(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        app.main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return leaving.value.code or 0, captured.out, captured.err


def test_the_command_prints_classes_of_files_folders_and_patterns(published, pictures, tmp_path, capsys):
    out, logits = published
    for index in range(3):
        pictures[index].save(tmp_path / f"{index}.png")
    code, printed, _ = predict(capsys, out, tmp_path, "--json", "--top", "2")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert code == 0 and [row["image"] for row in rows] == [str(tmp_path / f"{i}.png") for i in range(3)]
    assert [row["classes"][0]["index"] for row in rows] == logits["openvino-int8"][:3].argmax(1).tolist()
    code, printed, _ = predict(capsys, out, f"{tmp_path}/[01].png", "--variant", "onnxruntime-int8")
    assert code == 0 and printed.count(".png") == 2 and printed.count("%") == 10
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, printed, errors = predict(capsys, out, tmp_path, "--top", "1")
    assert code == 1 and "bad.png" in printed and "1 image was not classified" in errors
    assert printed.count("%") == 3


def test_the_command_classifies_with_the_graphs_of_a_bundle(published, pictures, tmp_path, capsys):
    out, _ = published
    bundle = bundle_from_run.make(out, tmp_path / "b.tar", golden=2, images=0).path
    pictures[0].save(tmp_path / "0.png")
    for variant in ("openvino-int8", "onnxruntime-int8"):
        arguments = (tmp_path / "0.png", "--json", "--variant", variant)
        code, of_bundle, errors = predict(capsys, bundle, *arguments)
        assert code == 0 and not errors
        assert of_bundle == predict(capsys, out, *arguments)[1]
    bundle.write_bytes(bundle.read_bytes()[:3000])
    code, _, errors = predict(capsys, bundle, tmp_path / "0.png")
    assert code == 1 and "no bundle" in errors


def test_a_graph_for_another_machine_is_simulated(published, tmp_path):
    folder = tmp_path / "tensorrt" / "tensorrt-int8"
    folder.mkdir(parents=True)
    shutil.copy(published[0] / "engines/openvino/openvino-int8/graph.onnx", folder / "model.onnx")
    assert is_simulated(folder)
    assert not is_simulated(published[0] / "engines/openvino/openvino-int8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.png",), "no image at absent.png"),
        (("x.png", "--variant", "openvino-int4"), "no variant openvino-int4"),
    ],
)
def test_the_command_names_what_is_wrong(published, capsys, arguments, message):
    code, _, errors = predict(capsys, published[0], *arguments)
    assert code == 2 and message in errors


def test_a_picture_is_upright_by_its_exif(published, pictures, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures[3].transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Classifier(published[0] / "engines/openvino/openvino-int8") as classifier:
        turned = classifier(tmp_path / "turned.png").logits
        np.testing.assert_array_equal(turned, classifier(pictures[3]).logits)


def test_the_frames_of_a_release_are_watched_by_the_reference_of_the_evaluation(
    published, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr("edgeship.targets.runner.watch.MEMORY", str(tmp_path))
    stated = json.loads((published[0] / "engines/model.json").read_text())["monitor"]
    assert stated["images"] == IMAGES
    assert {"dark", "blur"} <= {cause["name"] for cause in stated["causes"]}
    engine = published[0] / "engines/openvino/openvino-int8"
    with Classifier(engine) as classifier:
        assert classifier.watch is None
    (tmp_path / "current").symlink_to(engine)
    description = json.loads((published[0] / "engines/model.json").read_text())
    with Classifier(tmp_path / "current", description=description) as classifier:
        classifier(pictures)
        assert classifier.watch["alarm"] is None
    assert json.loads((tmp_path / "monitor.json").read_text())["frames"] in (0, IMAGES)


def test_names_of_files_are_printed_on_any_terminal_and_pipes_in_folders_are_passed_by(
    published, pictures, tmp_path, monkeypatch
):
    pictures[0].save(tmp_path / "ok\x1b[31m\n\u65e5.png")
    os.mkfifo(tmp_path / "pipe.png")
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    assert (
        classify.main(str(published[0] / "engines/openvino/openvino-int8"), [str(tmp_path), "--top", "1"])
        == 0
    )
    stream.flush()
    assert b"ok\\x1b[31m\\n\\u65e5.png\n" in stream.buffer.getvalue()
    with pytest.raises(SystemExit):
        classify.main("engine", ["x.png", "--top", "0"])


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a file without end")
def test_a_file_without_end_is_refused(published, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 20)
    engine = published[0] / "engines/openvino/openvino-int8"
    with Classifier(engine) as classifier, pytest.raises(Failure, match="over 1 MiB"):
        classifier("/dev/zero")


def test_outputs_that_are_not_finite_are_no_class(published, pictures, monkeypatch):
    with Classifier(published[0] / "engines/openvino/openvino-int8") as classifier:
        monkeypatch.setattr(classifier._engine._inference, "_run", lambda images: np.full((1, 10), np.nan))
        with pytest.raises(Failure, match="NaN"):
            classifier(pictures[0])


@pytest.mark.parametrize("damage", ["absent", "cut", "xml"])
def test_a_damaged_ir_names_its_files_once(published, tmp_path, damage):
    shutil.copytree(published[0] / "engines/openvino/openvino-int8", tmp_path / "engine")
    weights, graph = tmp_path / "engine/model.bin", tmp_path / "engine/model.xml"
    if damage == "absent":
        weights.unlink()
    else:
        cut = weights if damage == "cut" else graph
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(Failure) as caught:
        Classifier(tmp_path / "engine")
    assert caught.value.code == "ir-damaged"
