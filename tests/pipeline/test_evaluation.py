"""Evaluation with workers is bit-identical on one thread, several, processes and a cluster."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from float_graphs import Graph
from PIL import Image

from edgeship import targets
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.targets.onnxruntime import simulate
from edgeship.toolkit.core import parallel
from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.core.progress import listening
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.pipeline import Recipe, datasets, evaluation
from edgeship.toolkit.pipeline.fingerprints import key_values
from edgeship.toolkit.runs.compiled import CompiledVariant
from edgeship.toolkit.runs.measured import EvaluationTime
from edgeship.toolkit.runs.variant_id import VariantId

PREPROCESS = Preprocess(8, 8, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two classes of 20 images, a float graph and its INT8 graph for TensorRT and OpenVINO."""
    folder = tmp_path_factory.mktemp("work")
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        for index in range(20):
            pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{index:02}.png")
    g = Graph(batch=1)
    float_graph = g.head(g.unary("Relu", g.conv(g.unary("Relu", g.conv("images", 8)), 8)), 2).save(
        folder / "float.onnx"
    )
    statistics = collect(float_graph, [random.normal(size=(8, 3, 8, 8)).astype(np.float32)])
    engines = [("float", evaluation.Engine(float_graph, "onnxruntime"))]
    for target in ("openvino", "tensorrt"):
        graph = folder / f"{target}.onnx"
        quantize(float_graph, statistics, targets.get(target).scheme(), QuantizeOptions(effort="fast"), graph)
        if target == "tensorrt":
            engines.append((target, evaluation.Engine(graph, None)))
        else:
            built = targets.get(target).compile(graph, folder / "engine", "int8")
            engines.append((target, evaluation.Engine(folder / "engine" / built.file, target)))
    return evaluation.Work(tuple(engines), str(folder / "images"), 2, PREPROCESS, batch=7)


def run(work, workers, backend="threading"):
    return evaluation.run(work, range(40), workers=workers, backend=backend, label="evaluating")


@pytest.fixture(scope="module")
def alone(work):
    return run(work, 1)


@pytest.mark.parametrize(("workers", "backend"), [(2, "threading"), (5, "threading"), (2, "loky")])
def test_the_same_bits_whoever_works(workers, backend, work, alone):
    outcome, skipped = run(work, workers, backend)
    assert skipped == alone[1] == []
    for name, logits in alone[0].logits.items():
        assert logits.shape == (40, 2)
        np.testing.assert_array_equal(outcome.logits[name], logits)
    np.testing.assert_array_equal(outcome.labels, [0] * 20 + [1] * 20)
    np.testing.assert_array_equal(outcome.indices, range(40))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_cluster_gives_the_same_bits(backend, work, alone):
    pytest.importorskip({"ray": "ray", "dask": "distributed"}[backend], reason="an extra")
    outcome, _ = run(work, 2, backend)
    for name, logits in alone[0].logits.items():
        np.testing.assert_array_equal(outcome.logits[name], logits)


def test_a_cluster_that_is_not_installed_is_an_error_with_a_cure(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(parallel, "import_module", absent)
    for backend in ("ray", "dask"):
        with pytest.raises(RecipeError, match=f"backend '{backend}' is not installed") as caught:
            list(parallel.ordered(abs, [1, 2], workers=2, backend=backend, label=""))
        assert "pip install" in caught.value.hint


def test_threads_end_with_the_loop():
    """One that is inside a runtime at the interpreter's end aborts it."""

    def work(seconds):
        if not seconds:
            raise ValueError("bad image")
        time.sleep(seconds)

    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="bad image"):
        list(parallel.ordered(work, [0.0, 0.5], workers=2, label=""))
    results = parallel.ordered(work, [0.01, 0.5, 0.5], workers=2, label="")
    next(results)
    results.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_progress_is_told(workers):
    reports = []
    with listening(lambda label, done, total: reports.append((label, done, total))):
        assert list(parallel.ordered(abs, [-3, 1, -2], workers=workers, label="x")) == [3, 1, 2]
    assert reports == [("x", done, 3) for done in range(4)]


def test_errors_of_other_processes_arrive_whole(work, tmp_path):
    lost = evaluation.Work(
        (("x", evaluation.Engine(tmp_path / "no.onnx", None)),), work.source, 2, PREPROCESS, 7
    )
    for workers, backend in ((1, "threading"), (2, "threading"), (2, "loky")):
        with pytest.raises(Exception, match=r"no\.onnx") as caught:
            run(lost, workers, backend)
        assert "check that the file exists" in caught.value.hint


def damaged(work, folder, bad):
    """The images with some that cannot be read."""
    for index, item in enumerate(datasets.open_evaluation(work.source, 2).items):
        file = folder / item.name
        file.parent.mkdir(parents=True, exist_ok=True)
        source = datasets.open_evaluation(work.source, 2).read(index)
        file.write_bytes(b"nothing" if index in bad else source)
    return evaluation.Work(work.engines, str(folder), 2, PREPROCESS, 7, skip_bad=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_of_bad_images_only_is_left_out(workers, work, alone, tmp_path):
    bad = {*range(7, 14), 20}
    outcome, skipped = run(damaged(work, tmp_path, bad), workers)
    assert len(skipped) == 8
    kept = [index for index in range(40) if index not in bad]
    np.testing.assert_array_equal(outcome.indices, kept)
    for name, logits in alone[0].logits.items():
        np.testing.assert_array_equal(outcome.logits[name], logits[kept])


def test_no_readable_image_is_an_error(work, tmp_path):
    with pytest.raises(DataError, match="none of the 40 images"):
        run(damaged(work, tmp_path, set(range(40))), 2)


def test_a_float_graph_that_is_only_simulated_is_not_run_twice(tmp_path):
    graph = Graph().head("images").save(tmp_path / "float.onnx")
    records = {
        VariantId(target, "fp32"): CompiledVariant("model.onnx", runs_here=target != "tensorrt")
        for target in ("onnxruntime", "openvino", "tensorrt")
    }
    inputs = {"export": graph.parent, "compile": tmp_path / "compile", "quantize": tmp_path}
    found = dict(evaluation.engines(records, inputs))
    assert found["tensorrt-fp32"] == found["onnxruntime-fp32"] != found["openvino-fp32"]


def test_a_simulation_with_whole_batches_gives_every_image_the_same_bits(work):
    graph = dict(work.engines)["tensorrt"].file
    pixels = np.random.default_rng(1).normal(size=(9, 3, 8, 8)).astype(np.float32)
    with simulate(graph, threads=1) as session:
        whole = session.infer(pixels)
        single = [session.infer(pixels[i : i + 1]) for i in range(9)]
    np.testing.assert_array_equal(whole, np.concatenate(single))


def test_who_works_is_no_part_of_a_result():
    one = Recipe.build({}, ["evaluate.workers=3", "evaluate.backend=loky"])
    names = ("evaluate", "evaluate.workers")
    assert key_values(one, names) == key_values(Recipe(), names)


def test_the_share_of_time_outside_inference_is_measured(work, monkeypatch):
    clock = [0.0]

    class Slow:
        takes_pixels = False

        def infer(self, images):
            clock[0] += 6.0
            return np.zeros((len(images), 10), np.float32)

    decode = evaluation._Worker._decode

    def slowly(self, indices, *, pixels):
        clock[0] += 2.0
        return decode(self, indices, pixels=pixels)

    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(evaluation._Worker, "_take", lambda self: {self._engines[0]: Slow()})
    monkeypatch.setattr(evaluation._Worker, "_decode", slowly)
    one = dataclasses.replace(work, engines=work.engines[:1], batch=2)
    outcome, _ = evaluation.run(one, range(16), workers=1, backend="threading", label="x")
    assert outcome.time == EvaluationTime(8 * 8.0, 0.25)
