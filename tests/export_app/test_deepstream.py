"""The DeepStream form: documented keys, labels of one line, and the classes of the reported graph."""

import configparser
import json
import shutil

import numpy as np
import pytest

from edgeship.targets import onnxruntime
from edgeship.targets.runner import imaging
from edgeship.toolkit import export_app
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.tensors import Preprocess

KEYS = {  # of [property] that the form may use; Gst-nvinfer's documentation, DeepStream 5 to 9
    *("gpu-id", "onnx-file", "model-engine-file", "labelfile-path", "batch-size", "network-mode"),
    *("network-type", "process-mode", "gie-unique-id", "infer-dims", "model-color-format"),
    *("net-scale-factor", "offsets", "maintain-aspect-ratio", "output-blob-names", "classifier-threshold"),
}


@pytest.mark.parametrize("variant", ["tensorrt-int8", "tensorrt-fp32"])
def test_the_form_has_the_classes_of_the_report(published, tmp_path, variant):
    export_app.write(published.folder, "deepstream", tmp_path / "app", variant)
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(tmp_path / "app" / "config_infer.txt", encoding="utf-8")
    assert settings.sections() == ["property"]
    values = settings["property"]
    assert set(values) <= KEYS and values["network-mode"] == {"int8": "1", "fp32": "0"}[variant[9:]]
    assert values["infer-dims"] == "3;16;16" and values["model-color-format"] == "0"
    scale = np.float32(values["net-scale-factor"])
    offsets = np.array(values["offsets"].split(";"), np.float32)[:, None, None]
    how = json.loads((published.folder / "engines/model.json").read_text())["preprocess"]
    cut = [imaging.pixels(image, how["resize"], (16, 16), "bilinear", 3) for image in published.images]
    pixels = np.stack(cut).transpose(0, 3, 1, 2).astype(np.float32)
    with onnxruntime.simulate(tmp_path / "app" / "model.onnx") as session:
        probabilities = session.infer(scale * (pixels - offsets))
    expected = published.logits[variant]
    np.testing.assert_array_equal(probabilities.argmax(1), expected.argmax(1))
    powers = np.exp(expected - expected.max(1, keepdims=True))
    np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), atol=1e-5)
    text = (tmp_path / "app" / "README.md").read_text(encoding="utf-8")
    assert "16 of 16 classes equal" in text and "not run here" in text and "trtexec --onnx=model.onnx" in text


def test_a_run_with_pixel_input_gives_its_float_graph_or_is_refused(published, tmp_path):
    from edgeship.toolkit.graph.pixels import add_pixel_input

    copy = tmp_path / "run"
    shutil.copytree(published.folder, copy)
    graph = copy / "engines/tensorrt/tensorrt-int8/model.onnx"
    how = json.loads((copy / "engines/model.json").read_text())["preprocess"]
    add_pixel_input(graph, Preprocess.from_json(how), graph)
    export_app.write(copy, "deepstream", tmp_path / "app", "tensorrt-int8")
    export_app.write(published.folder, "deepstream", tmp_path / "float", "tensorrt-int8")
    for name in ("config_infer.txt", "README.md"):
        assert (tmp_path / "app" / name).read_text() == (tmp_path / "float" / name).read_text()
    index = json.loads((copy / "run.json").read_text())
    for stage in index["stages"]:
        stage["folder"] = str(tmp_path / "removed")
    (copy / "run.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="takes uint8") as caught:
        export_app.write(copy, "deepstream", tmp_path / "other", "tensorrt-int8")
    assert "export.input=float32" in caught.value.hint and not (tmp_path / "other").exists()


def test_labels_are_one_line_with_a_class_between_semicolons(published, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(published.folder, copy)
    described = copy / "engines" / "model.json"
    record = json.loads(described.read_text())
    described.write_text(json.dumps({**record, "labels": [*record["labels"][:9], "line\nbreak; x"]}))
    export_app.write(copy, "deepstream", tmp_path / "app")
    (line,) = (tmp_path / "app" / "labels.txt").read_text(encoding="utf-8").splitlines()
    names = line.split(";")
    assert len(names) == 10 and names[1] == "it's, a, list" and names[3] == "Größe 中文 🙂"
    assert names[9] == "line break, x"
