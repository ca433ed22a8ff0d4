"""Class names and preprocessing inside engine files, in the forms of other tools."""

import json

import numpy as np
import onnx
import openvino
import pytest

from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.runs.annotations import annotate
from tests import float_graphs

LABELS = ["red fox", 'a "quoted" <b>', "naïve\x01", "d", "e"]
DESCRIPTION = {
    "schema": 1,
    "labels": LABELS,
    "preprocess_source": "stated",
    "preprocess": {
        "resize": 20,
        "crop": 16,
        "mean": [0.5, 0.25, 0.125],
        "std": [0.5, 0.25, 0.2],
        "interpolation": "bilinear",
    },
}


@pytest.fixture
def net(tmp_path):
    file = tmp_path / "net.onnx"
    float_graphs.residual().save(file)
    return file


def properties(file):
    stored = [(each.key, each.value) for each in onnx.load(file).metadata_props]
    assert len(stored) == len(dict(stored)), "no key twice"
    return dict(stored)


def as_ir(net, type=None):
    model = openvino.Core().read_model(net)
    out = net.with_suffix(".xml")
    if type is not None:
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(type).set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        model = steps.build()
    openvino.save_model(model, out, compress_to_fp16=False)
    return out


def test_onnx_has_both_forms_and_the_same_weights(net):
    before = onnx.load(net).graph
    annotate(net, DESCRIPTION)
    stored = properties(net)
    assert json.loads(stored["labels"]) == LABELS
    assert json.loads(stored["preprocess"]) == DESCRIPTION["preprocess"]
    assert stored["model_info labels"].split(" ") == ["red_fox", 'a_"quoted"_<b>', "naïve\x01", "d", "e"]
    assert stored["model_info mean_values"] == "127.5 63.75 31.875"
    assert onnx.load(net).graph == before


def test_a_second_description_replaces_the_first(net):
    annotate(net, DESCRIPTION)
    size = net.stat().st_size
    annotate(net, DESCRIPTION)
    assert net.stat().st_size == size
    annotate(net, DESCRIPTION | {"labels": list("vwxyz")})
    assert json.loads(properties(net)["labels"]) == list("vwxyz")


def test_openvino_reads_model_info(net):
    file = as_ir(net)
    annotate(file, DESCRIPTION)
    annotate(file, DESCRIPTION)
    info = openvino.Core().read_model(file).get_rt_info("model_info").value
    assert info == {
        "model_type": "Classification",
        "labels": 'red_fox a_"quoted"_<b> naïve\N{REPLACEMENT CHARACTER} d e',
        "resize_type": "crop",
        "layout": "NCHW",
        "interpolation_mode": "LINEAR",
        "reverse_input_channels": "True",
        "mean_values": "127.5 63.75 31.875",
        "scale_values": "127.5 63.75 51.0",
    }


def test_a_graph_of_pixels_states_no_mean_and_scale(net):
    file = as_ir(net, openvino.Type.u8)
    annotate(file, DESCRIPTION)
    info = openvino.Core().read_model(file).get_rt_info("model_info").value
    assert info["layout"] == "NHWC"
    assert not {"mean_values", "scale_values"} & set(info)


def test_files_without_model_json_classify_by_what_they_state(net, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    file = as_ir(net)
    with Classifier(net, description=DESCRIPTION) as stated:
        expected = stated(image)
    for each in (net, file):
        annotate(each, DESCRIPTION)
        with Classifier(each) as classifier:
            assert classifier.labels == [*LABELS[:2], *classifier.labels[2:3], "d", "e"]
            np.testing.assert_allclose(classifier(image).logits, expected.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["net.onnx", "net.xml"])
def test_a_damaged_file_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff<net>")
    with pytest.raises(ModelError):
        annotate(tmp_path / name, DESCRIPTION)


def test_other_files_stay(tmp_path):
    (tmp_path / "net.bin").write_bytes(b"weights")
    annotate(tmp_path / "net.bin", DESCRIPTION)
    assert (tmp_path / "net.bin").read_bytes() == b"weights"
