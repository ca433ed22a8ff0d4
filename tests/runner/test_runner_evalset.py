"""The packed set as the host writes it, and figures that agree with NumPy's."""

import array
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeship.calibration import evalset_format as host
from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.loader import batches
from edgeship.targets.runner import engines, evalset
from edgeship.targets.runner.failures import Failure
from edgeship.toolkit.core.statistics import agreement, sqnr_db
from edgeship.toolkit.core.tensors import Preprocess

PREPROCESS = Preprocess(resize=20, crop=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(7):
        folder = root / ("cat", "dog", "emu")[number % 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), np.uint8)).save(folder / f"{number}.png")
    return open_dataset(root)


@pytest.fixture(scope="module")
def packed_file(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "set.bin"
    host.pack(dataset, range(7), PREPROCESS, path)
    return path


@pytest.mark.parametrize("numpy_there", [True, False])
def test_the_device_computes_on_exactly_the_numbers_of_the_host(
    numpy_there, dataset, packed_file, monkeypatch
):
    if not numpy_there:
        monkeypatch.setattr(evalset, "numpy_or_none", lambda: None)
    expected = np.concatenate([batch.images for batch in batches(dataset, range(7), PREPROCESS, batch=7)])
    found = evalset.Packed(str(packed_file))
    assert (found.count, found.image_shape) == (7, (3, 16, 16))
    parts = list(found.batches(3, 7))
    assert [count for _, count in parts] == [3, 3, 1]
    got = np.frombuffer(b"".join(data for data, _ in parts), "<f4").reshape(7, 3, 16, 16)
    np.testing.assert_array_equal(got, expected)
    assert found.labels == [dataset.items[i].label for i in range(7)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damaged_set_is_ever_read(packed_file, tmp_path_factory, data):
    whole = bytearray(packed_file.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = bytes(whole[:place])
    else:
        whole[place] ^= data.draw(st.integers(1, 255))
        damaged = bytes(whole)
    path = tmp_path_factory.mktemp("damaged") / "set.bin"
    path.write_bytes(damaged)
    try:
        found = evalset.Packed(str(path))
    except Failure as failure:
        assert failure.code == "data-damaged"
    else:  # damage in a part of the header that the device does not need
        sound = evalset.Packed(str(packed_file))
        for name in ("count", "image_shape", "labels"):
            assert getattr(found, name) == getattr(sound, name)
        assert list(found.batches(7, 7)) == list(sound.batches(7, 7))


def _rows(values):
    return [array.array("f", row) for row in values]


def test_figures_agree_with_the_hosts():
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(50, 10)).astype(np.float32)
    got = expected + rng.normal(0, 0.3, (50, 10)).astype(np.float32)
    near = evalset.compare(_rows(got), _rows(expected))
    cosines = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert near["cosine_min"] == pytest.approx(cosines.min(), rel=1e-6)
    assert near["cosine_mean"] == pytest.approx(cosines.mean(), rel=1e-6)
    assert near["largest_difference"] == pytest.approx(np.abs(got - expected).max(), rel=1e-6)
    assert near["top1_agreement"] == pytest.approx(agreement(expected, got))
    assert evalset.sqnr_db(_rows(got), _rows(expected)) == pytest.approx(sqnr_db(expected, got), rel=1e-5)
    assert evalset.sqnr_db(_rows(expected), _rows(expected)) is None


def test_accuracy_counts_labelled_images_only():
    logits = _rows([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [9, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    found = evalset.accuracy(logits, [5, 5, -1, 0])
    assert found == {"labelled": 3, "top1": pytest.approx(2 / 3), "top5": pytest.approx(2 / 3)}
    assert evalset.accuracy(logits, [-1] * 4) == {"labelled": 0, "top1": None, "top5": None}


def test_equal_logits_go_to_the_lower_class_as_numpy_has_it():
    assert evalset.best(array.array("f", [1, 3, 3, 2]), 2) == [1, 2]
    assert np.argmax([1, 3, 3, 2]) == 1


def test_logits_that_are_no_numbers_are_noticed():
    assert evalset.finite(_rows([[0.0, 1.0]]))
    assert not evalset.finite(_rows([[0.0, math.nan]]))
    assert not evalset.finite(_rows([[0.0, math.inf]]))
    assert math.isnan(evalset.cosine(*_rows([[0, 0], [1, 0]])))


def test_evaluate_on_a_real_engine(run, packed_file, dataset, tmp_path):
    """The mean colour decides the class: what NumPy says is what the device must say."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3]], np.float32), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [2, 3, 16, 16])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 3])]
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(
        helper.make_graph(nodes, "m", inputs, outputs, [weights]), opset_imports=opset, ir_version=8
    )
    onnx.save(model, tmp_path / "m.onnx")
    stored = host.read(packed_file)
    scaled = (stored.images / np.float32(255) - np.float32(PREPROCESS.mean)) / np.float32(PREPROCESS.std)
    expected = (scaled.mean((1, 2)) * 3).astype(np.float32)
    (tmp_path / "reference.f32").write_bytes(expected.tobytes())
    run("build", "--graph", tmp_path / "m.onnx", "--out", tmp_path / "e", "--backend", "onnxruntime")
    arguments = [
        "evaluate",
        "--engine",
        tmp_path / "e",
        "--images",
        packed_file,
        "--reference",
        tmp_path / "reference.f32",
    ]
    answer = run(*arguments, "--logits-out", tmp_path / "logits.f32")
    right = np.argmax(expected, 1) == stored.labels
    assert answer.exit_code == 0, answer.result
    assert answer.result["top1"] == pytest.approx(right.mean())
    assert (answer.result["top5"], answer.result["images"], answer.result["labelled"]) == (1.0, 7, 7)
    assert answer.result["agreement"] == 1.0
    np.testing.assert_allclose(np.fromfile(tmp_path / "logits.f32", "<f4").reshape(7, 3), expected, atol=1e-5)
    gated = run(*arguments, "--top1-min", 0.999, "--limit", 6)
    assert (gated.exit_code, gated.result["verdict"], gated.result["images"]) == (3, "fail", 6)


def test_images_that_are_no_packed_set(run, tmp_path):
    Image.new("RGB", (8, 8)).save(stream := io.BytesIO(), "PNG")
    (tmp_path / "x.png").write_bytes(stream.getvalue())
    answer = run("evaluate", "--engine", "none", "--images", tmp_path / "x.png")
    assert answer.result["error"]["code"] == "data-damaged"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
GOLDEN = {"shape": [2, 3, 4, 4], "classes": 5, "inputs": "inputs.f32", "logits": "logits.f32"}


@given(
    content=st.one_of(
        json_values.map(json.dumps),
        st.tuples(st.sampled_from(sorted(GOLDEN)), json_values).map(
            lambda change: json.dumps({**GOLDEN, "sha256": {}, change[0]: change[1]})
        ),
        st.text(max_size=40),
        st.integers(0, 80).map(lambda cut: json.dumps(GOLDEN)[:cut]),
    )
)
def test_a_damaged_golden_record_is_refused_and_never_compared(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "golden.json").write_text(content, errors="ignore")
    with pytest.raises((Failure, OSError)):
        evalset.golden(str(folder))


SIDECAR = {
    "backend": "openvino",
    "version": "1",
    "fake": False,
    "precision": "int8",
    "engine_sha256": "0",
    "identity": {},
    "key": "k",
}


@given(
    content=st.one_of(
        json_values.map(json.dumps),
        st.tuples(st.sampled_from(sorted(SIDECAR)), json_values).map(
            lambda change: json.dumps({**SIDECAR, change[0]: change[1]})
        ),
        st.text(max_size=40),
        st.integers(0, 80).map(lambda cut: json.dumps(SIDECAR)[:cut]),
    )
)
def test_an_engine_with_a_damaged_record_is_not_loaded(tmp_path_factory, content):
    engine = tmp_path_factory.getbasetemp() / "engine"
    engine.write_bytes(b"an engine")
    engine.with_name("engine.json").write_text(content, errors="ignore")
    with pytest.raises(Failure):
        engines.open_engine(str(engine), None, None)
