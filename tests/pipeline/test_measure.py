"""Throughput, memory, energy and end-to-end time; quantities that cannot be measured are listed."""

import numpy as np
import pytest
from PIL import Image
from qdq_graphs import FLOAT, residual_net, save

from edgeship import targets
from edgeship.calibration import preprocess as preprocessing
from edgeship.targets import _energy, _memory
from edgeship.toolkit.core.errors import RecipeError, TargetError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.pipeline import measure
from edgeship.toolkit.pipeline.recipe import BenchOptions
from edgeship.toolkit.runs.measured import LatencyRecord

PREPROCESS = Preprocess(resize=36, crop=32)
QUICK = BenchOptions(runs=2, warmup_s=0.0, throughput_s=0.01)


def pictures(count):
    colours = np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), np.uint8)
    return [Image.fromarray(colour) for colour in colours]


class FakeSession:
    """A session that keeps what it was given."""

    def __init__(self, *, takes_pixels):
        self.takes_pixels, self.given = takes_pixels, []

    def infer(self, images):
        self.given.append(images)
        return np.zeros((len(images), 10), np.float32)


@pytest.mark.parametrize("takes_pixels", [False, True])
def test_end_to_end_begins_at_decoded_images_and_takes_the_next_ones(takes_pixels):
    session, images = FakeSession(takes_pixels=takes_pixels), pictures(3)
    run = measure.end_to_end(session, 2, images, PREPROCESS)
    assert [run().shape, run().shape] == [(2, 10), (2, 10)]
    prepare = preprocessing.pixels if takes_pixels else preprocessing.apply
    for given, chosen in zip(session.given, [(0, 1), (2, 0)], strict=True):
        np.testing.assert_array_equal(given, [prepare(images[i], PREPROCESS) for i in chosen])


def test_noise_has_the_form_that_a_session_takes():
    images = np.zeros((2, 3, 8, 9), np.float32)
    assert measure.session_input(FakeSession(takes_pixels=False), images) is images
    noise = measure.session_input(FakeSession(takes_pixels=True), images)
    assert (noise.dtype, noise.shape) == (np.uint8, (2, 8, 9, 3)) and noise.std() > 50


def measured(tmp_path, batch, options=QUICK):
    model = save(residual_net(FLOAT, batch="batch" if batch is None else batch), tmp_path / "net.onnx")
    built = targets.get("onnxruntime").compile(model, tmp_path / "engine", "fp32")
    return measure.measure(
        options,
        {"onnxruntime-fp32": ("onnxruntime", tmp_path / "engine" / built.file)},
        np.zeros((batch or 3, 3, 32, 32), np.float32),
        dynamic=batch is None,
        pictures=pictures(2),
        preprocess=PREPROCESS,
    )


@pytest.mark.parametrize(("batch", "known"), [(None, "1 2 3 4 8 16"), (4, "4")], ids=["dynamic", "static"])
def test_throughput_at_every_batch_the_engine_takes(tmp_path, monkeypatch, batch, known):
    monkeypatch.setattr(_memory, "measure", lambda *_: {"peak_bytes": 5, "resident_bytes": 4})
    monkeypatch.setattr(_energy, "per_call_mj", lambda run, _seconds: 12.0 + 0 * len(run()))
    found = measured(tmp_path, batch)
    row = found.variants["onnxruntime-fp32"]
    assert " ".join(row.throughput) == known
    assert all(ips > 0 for ips in row.throughput.values())
    assert row.throughput_ips == row.throughput[str(batch or 3)]
    assert (row.memory_bytes, row.resident_bytes) == (5, 4)
    assert row.energy_mj == 12.0 / (batch or 3)  # of an image, not of a batch
    assert min(row.end_to_end_ms) > 0
    assert "2 images of 50 x 40 pixels" in found.how["end_to_end_ms"]
    assert found.not_measured == {}


def test_what_cannot_be_measured_is_left_out_and_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise TargetError("no sensor", hint="none")

    monkeypatch.setattr(_memory, "measure", refuse)
    monkeypatch.setattr(_energy, "per_call_mj", refuse)
    found = measured(tmp_path, 1)
    assert found.not_measured == {"energy_mj": "no sensor", "memory_bytes": "no sensor"}
    row = found.variants["onnxruntime-fp32"]
    assert row.throughput_ips > 0 and row.energy_mj is row.memory_bytes is row.resident_bytes is None


def test_no_second_for_it_measures_latency_alone(tmp_path):
    found = measured(tmp_path, 1, BenchOptions(runs=2, warmup_s=0.0, throughput_s=0.0))
    row = found.variants["onnxruntime-fp32"]
    assert row == LatencyRecord(row.samples_ms, row.warning) and len(row.samples_ms) == 2
    assert (found.batch, found.threads, found.not_measured) == (1, 1, {})


@pytest.mark.parametrize(
    ("asked", "graph", "batch"), [(None, None, 1), (None, 4, 4), (8, None, 8), (4, 4, 4)]
)
def test_the_batch_that_is_timed(asked, graph, batch):
    assert measure.bench_batch(BenchOptions(batch=asked), graph) == batch


def test_a_batch_the_graph_cannot_take():
    with pytest.raises(RecipeError, match=r"bench\.batch = 8, but the graph takes 1") as caught:
        measure.bench_batch(BenchOptions(batch=8), 1)
    assert "export.batch=8" in caught.value.hint
