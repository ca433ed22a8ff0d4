"""Bundle of a run: graphs, golden images and simulated accuracy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from report_rows import latency

from edgeship.calibration import evalset_format
from edgeship.calibration.datasets import open_dataset
from edgeship.toolkit.core.artifact import read_json, write_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.results import Variant
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.deploy import bundle_from_run, layout
from edgeship.toolkit.report import verdict
from edgeship.toolkit.report.gather import gather
from edgeship.toolkit.runs.compiled import CompiledVariant, CompiledVariants
from edgeship.toolkit.runs.measured import Accuracies, AccuracyRow, EvaluationData
from edgeship.toolkit.runs.network import ModelInfo

COUNT = 40
PREPROCESS = Preprocess(resize=16, crop=16)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run with pruning, for OpenVINO and an absent TensorRT."""
    dataset = open_dataset("digits:test")
    indices = list(range(0, 2 * COUNT, 2))
    random = np.random.default_rng(0)
    names = ("onnxruntime-fp32", "openvino-int8", "openvino-int8-pruned", "tensorrt-int8")
    stages = {
        name: tmp_path / name for name in ("load", "export", "calibrate", "quantize", "compile", "evaluate")
    }
    for folder in stages.values():
        folder.mkdir()
    ModelInfo("ResNet18", "ab" * 32, 1, 10, PREPROCESS, "stated").write(stages["load"])
    for target in ("openvino", "openvino-pruned", "tensorrt"):
        (stages["quantize"] / f"{target}.onnx").write_text(f"graph {target}")
    made_for = {"openvino": "pairs", "openvino-pruned": "exact", "tensorrt": None}
    write_json(
        stages["quantize"] / "quantize.json", {name: {"int8_sums": sums} for name, sums in made_for.items()}
    )
    (stages["export"] / "float.onnx").write_text("graph float")
    compiled = {name: CompiledVariant("x") for name in names}
    compiled["lost-int8"] = CompiledVariant(error="no SDK")
    CompiledVariants(compiled).write(stages["compile"])
    (stages["evaluate"] / "logits").mkdir()
    labels = dataset.labels[indices]
    measured = {}
    for name in names:
        logits = random.normal(size=(COUNT, 10)).astype(np.float32)
        logits[np.arange(COUNT), labels] += 2
        np.save(stages["evaluate"] / "logits" / f"{name}.npy", logits)
        measured[name] = AccuracyRow(COUNT, "measured", f"where {name} ran", 0.9, None, 0, (0, 0), 1, None)
    np.save(stages["evaluate"] / "labels.npy", labels)
    Accuracies(EvaluationData("digits", COUNT, tuple("0123456789")), measured).write(stages["evaluate"])
    write_json(
        stages["evaluate"] / "images.json",
        {"source": "digits", "digest": "cd" * 32, "names": [dataset.items[index].name for index in indices]},
    )
    out = tmp_path / "run"
    out.mkdir()
    described = [
        {"name": name, "folder": str(folder), "digest": name * 2, "seconds": 1.0, "cached": False}
        for name, folder in stages.items()
    ]
    recipe = {
        "evaluate": {"source": "digits:test"},
        "select": {"source": "digits:train", "images": 12},
        "bench": {"threads": 2},
    }
    write_json(
        out / "run.json", {"schema": 1, "command": "edgeship run x", "recipe": recipe, "stages": described}
    )
    return out


def logits_of(run: Path, variant: str) -> np.ndarray:
    return np.load(run.parent / "evaluate" / "logits" / f"{variant}.npy")


def test_the_int8_variant_of_each_target_is_shipped_pruned_if_there_is_one(run: Path) -> None:
    bundle = bundle_from_run.bundle_of(run)
    about = bundle.manifest["targets"]
    assert {target: entry["variant"] for target, entry in about.items()} == {
        "openvino": "openvino-int8-pruned", "tensorrt": "tensorrt-int8",
    }  # fmt: skip
    assert {target: entry["int8_sums"] for target, entry in about.items()} == {
        "openvino": "exact", "tensorrt": None,
    }  # fmt: skip
    assert bundle.read("graphs/openvino.onnx") == b"graph openvino-pruned"
    assert (
        bundle.manifest["name"] == "resnet18" and bundle.manifest["provenance"]["command"] == "edgeship run x"
    )


def test_a_faster_sixteen_bit_float_is_shipped_in_its_place(run: Path, monkeypatch) -> None:
    fp16 = Variant("tensorrt-fp16", "tensorrt", "fp16", False, latency_ms=latency(1.0))
    add_variant(run, "tensorrt-fp16")
    assert "tensorrt-int8" in bundle_from_run._choose(bundle_from_run._Run(run), ())
    folder = run.parent / "report"
    folder.mkdir()
    empty = gather({}, recipe="", stages=[])
    write_json(folder / "report.json", empty)
    index = read_json(run / "run.json")
    index["stages"].append({**index["stages"][0], "name": "report", "folder": str(folder)})
    write_json(run / "run.json", index)
    monkeypatch.setattr(verdict, "to_ship", lambda report: {"tensorrt": fp16})
    bundle = bundle_from_run.make(run, run.parent / "b.tar")
    about = bundle.manifest["targets"]["tensorrt"]
    assert (about["variant"], about["precision"]) == ("tensorrt-fp16", "fp16")


def test_without_int8_the_sixteen_bit_float_is_shipped(run: Path) -> None:
    add_variant(run, "other-fp16")
    assert "other-fp16" in bundle_from_run._choose(bundle_from_run._Run(run), ())


@pytest.mark.parametrize(
    ("name", "module", "hint"),
    [
        ("tensorrt-fp16", None, "compile.precisions=fp16,int8"),
        ("tensorrt-fp8", "Orin Nano", "tensorrt-int8"),  # cannot be made there
        ("onnxruntime-fp16", None, "onnxruntime-fp32"),
        ("tensorrt-int9", None, "tensorrt-int8"),
    ],
)
def test_hint_of_an_absent_variant_names_one_that_can_be_made(run: Path, name, module, hint) -> None:
    index = read_json(run / "run.json")
    index["recipe"]["compile"] = {"module": module}
    write_json(run / "run.json", index)
    with pytest.raises(DataError, match=f"no variant '{name}'") as caught:
        bundle_from_run.make(run, run / "b.tar", variants=[name])
    assert hint in caught.value.hint


def add_variant(run: Path, name: str) -> None:
    """Add an evaluated variant to a run: a copy of TensorRT's."""
    for stage, file in (("compile", "compiled.json"), ("evaluate", "accuracy.json")):
        content = read_json(run.parent / stage / file)
        content["variants"][name] = content["variants"]["tensorrt-int8"]
        write_json(run.parent / stage / file, content)
    folder = run.parent / "evaluate/logits"
    (folder / f"{name}.npy").write_bytes((folder / "tensorrt-int8.npy").read_bytes())


def test_the_typed_form_of_a_graph_is_shipped_too(run: Path) -> None:
    (run.parent / "compile/tensorrt-int8").mkdir()
    (run.parent / "compile/tensorrt-int8" / bundle_from_run.TYPED).write_text("typed graph")
    bundle = bundle_from_run.bundle_of(run)
    assert bundle.read("graphs/tensorrt-typed.onnx") == b"typed graph"
    paths = {typed: {f.path for f in bundle.files_for("tensorrt", typed=typed)} for typed in (False, True)}
    assert paths[False] ^ paths[True] == {"graphs/tensorrt.onnx", "graphs/tensorrt-typed.onnx"}
    assert "graphs/tensorrt.onnx" in paths[False]
    assert layout.graph_for(bundle.files, "openvino", typed=True) == "graphs/openvino.onnx"  # it has no other


def test_what_the_run_measured_is_what_the_device_is_compared_with(run: Path, tmp_path: Path) -> None:
    bundle = bundle_from_run.make(run, tmp_path / "b.tar", images=10, golden=4)
    packed_file = tmp_path / "images.set"
    packed_file.write_bytes(bundle.read(layout.EVALUATION))
    images = evalset_format.read(packed_file)
    logits = logits_of(run, "openvino-int8-pruned")
    reference = np.frombuffer(bundle.read("evaluation/openvino.f32"), "<f4").reshape(10, 10)
    places = [int(np.flatnonzero((logits == row).all(1))[0]) for row in reference]
    assert places[0] == 0 and places[-1] == COUNT - 1 and len(set(places)) == 10  # spread over all
    dataset = open_dataset("digits:test")
    assert images.labels.tolist() == [int(dataset.labels[2 * place]) for place in places]
    simulated = bundle.manifest["targets"]["openvino"]["simulated"]
    assert simulated["top1"] == (reference.argmax(1) == images.labels).mean() and simulated["images"] == 10
    assert simulated["measured_on"] == "where openvino-int8-pruned ran"

    golden = json.loads(bundle.read("golden/openvino/golden.json"))
    assert golden["shape"] == [4, 3, 16, 16]
    expected = np.frombuffer(bundle.read("golden/openvino/logits.f32"), "<f4").reshape(4, 10)
    inputs = np.frombuffer(bundle.read("golden/openvino/inputs.f32"), "<f4").reshape(4, 3, 16, 16)
    place = int(np.flatnonzero((logits == expected[0]).all(1))[0])
    from edgeship.calibration.loader import batches

    image = next(batches(dataset, [2 * place], PREPROCESS, batch=1)).images[0]
    np.testing.assert_array_equal(inputs[0], image)
    assert sorted(golden["files"]) == list("0123")
    assert bundle.read(f"golden/openvino/{golden['files']['0']}") == dataset.read(2 * place)


def test_golden_cases_are_clear_in_every_variant() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 100, 10)).astype(np.float32)
    places = bundle_from_run.choose_golden([first, second], 10)

    def margin(logits: np.ndarray) -> np.ndarray:
        ordered = np.sort(logits, 1)
        return ordered[:, -1] - ordered[:, -2]

    least = np.minimum(margin(first), margin(second))
    assert len(places) == 10 and places == sorted(places) and least[places].min() >= np.median(least)
    assert bundle_from_run.choose_golden([first[:3]], 10) == [0, 1, 2]


def test_the_bundle_of_a_run_is_made_once_and_again_when_the_run_changes(run: Path) -> None:
    first = bundle_from_run.bundle_of(run)
    written = first.path.stat().st_mtime_ns
    assert bundle_from_run.bundle_of(run).path.stat().st_mtime_ns == written
    assert bundle_from_run.bundle_of(first.path).id == first.id
    described = json.loads((run / "run.json").read_text())
    described["stages"][3]["digest"] = "another"
    (run / "run.json").write_text(json.dumps(described))
    assert bundle_from_run.bundle_of(run).id != first.id
    assert (
        bundle_from_run.make(run, run / "again.tar").path.read_bytes()
        == bundle_from_run.bundle_of(run).path.read_bytes()
    )


def test_devices_time_with_as_many_threads_as_the_run(run: Path) -> None:
    bundle = bundle_from_run.bundle_of(run)
    assert bundle.threads == bundle.manifest["threads"] == 2
    described = json.loads((run / "run.json").read_text())
    described["recipe"]["bench"]["threads"] = 4
    (run / "run.json").write_text(json.dumps(described))
    assert bundle_from_run.bundle_of(run).threads == 4
    older = {key: value for key, value in bundle.manifest.items() if key != "threads"}
    assert dataclasses.replace(bundle, manifest=older).threads == 1  # the default of a run


def test_variants_by_name_and_without_images(run: Path, tmp_path: Path) -> None:
    bundle = bundle_from_run.make(
        run, tmp_path / "b.tar", variants=["onnxruntime-fp32", "openvino-int8"], images=0
    )
    assert (
        set(bundle.manifest["targets"]) == {"onnxruntime", "openvino"}
        and layout.EVALUATION not in bundle.files
    )
    assert bundle.read("graphs/onnxruntime.onnx") == b"graph float"
    assert bundle.manifest["targets"]["openvino"]["simulated"] is None
    with pytest.raises(DataError, match="no variant 'lost-int8': no SDK"):
        bundle_from_run.make(run, tmp_path / "c.tar", variants=["lost-int8"])
    with pytest.raises(DataError, match="one graph for each target"):
        bundle_from_run.make(run, tmp_path / "c.tar", variants=["openvino-int8", "openvino-int8-pruned"])


def test_runs_that_cannot_be_shipped(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no run: it has no run.json"):
        bundle_from_run.bundle_of(tmp_path)
    names = json.loads((run.parent / "evaluate/images.json").read_text())
    write_json(run.parent / "evaluate/images.json", {**names, "names": ["gone.png"] * COUNT})
    with pytest.raises(DataError, match=r"no longer has gone.png"):
        bundle_from_run.bundle_of(run)
    (run.parent / "quantize").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no result of the stage 'quantize'") as caught:
        bundle_from_run.bundle_of(run)
    assert "run the recipe again" in caught.value.hint
