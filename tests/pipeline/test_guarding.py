"""A run with a guard: its threshold, figures, published folder, and commands that use it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from guarded_runs import PREPROCESS, table

from edgeship.calibration.datasets import open_dataset
from edgeship.targets.runner.classifier import Classifier
from edgeship.targets.runner.failures import Failure
from edgeship.toolkit.api import verify
from edgeship.toolkit.cli import app
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.deploy import bundle_from_run
from edgeship.toolkit.export_app import source
from edgeship.toolkit.pipeline import Recipe, Store, datasets, guarding, run
from edgeship.toolkit.pipeline.stages import STAGES
from edgeship.toolkit.report import render

NAME = "openvino-int8-guarded"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    result = run(Recipe.build(table(folder)), store=Store(folder / "store"), out=folder / "out")
    return result, folder


def rows(result):
    return {row["name"]: row for row in result.report["variants"]}


def logits(result, name):
    return np.load(result.folder("evaluate") / "logits" / f"{name}.npy")


def test_close_images_have_the_logits_of_fp32_and_all_others_those_of_int8(finished):
    result, _ = finished
    guards = json.loads((result.folder("guard") / "guards.json").read_text())["variants"]
    runs = json.loads((result.folder("evaluate") / "guarded.json").read_text())["variants"]
    assert set(guards) == set(runs) == {NAME, "onnxruntime-int8-guarded"}
    for name, guard in guards.items():
        target = name.partition("-")[0]
        int8, exact = logits(result, f"{target}-int8"), logits(result, f"{target}-fp32")
        ordered = np.sort(int8.astype(np.float64), axis=1)
        again = ordered[:, -1] - ordered[:, -2] <= guard["threshold"]
        assert 0 < again.sum() < len(again)
        composite = logits(result, name)
        np.testing.assert_array_equal(composite[again], exact[again])
        np.testing.assert_array_equal(composite[~again], int8[~again])
        flips = int((composite.argmax(1) != exact.argmax(1)).sum())
        alone = int((int8.argmax(1) != exact.argmax(1)).sum())
        assert runs[name] == {
            "images": len(int8),
            "rerun": int(again.sum()),
            "flips": flips,
            "int8_flips": alone,
        }
        assert flips < alone / 4


def test_the_images_of_the_threshold_are_neither_calibration_nor_evaluation_images(finished):
    guard = json.loads((finished[0].folder("guard") / "guards.json").read_text())["variants"][NAME]
    train, test = open_dataset("digits:train"), open_dataset("digits:test")
    selected = json.loads((finished[0].folder("select") / "manifest.json").read_text())["entries"]
    digests = {train.digest(index) for index in range(len(train))}
    free = digests - {entry["digest"] for entry in selected} - {test.digest(i) for i in range(len(test))}
    assert guard["images"] == len(free) + _doubles(train, free)
    assert guard["bound"] <= 0.005 < guard["bound95"] and guard["left"] > 0
    assert guard["left"] == round(guard["bound"] * (guard["images"] + 1)) - 1


def _doubles(dataset, digests):
    found = [each for each in map(dataset.digest, range(len(dataset))) if each in digests]
    return len(found) - len(set(found))


def test_the_report_states_promise_observation_latency_and_memory(finished):
    result, folder = finished
    found = rows(result)
    row, int8, exact = found[NAME], found["openvino-int8"], found["openvino-fp32"]
    guard = row["guard"]
    assert int8["guard"] is None and row["kind"] == "measured"
    assert guard["evaluated"] == row["images"] and guard["flips_ci95"][0] <= guard["flips"] / row["images"]
    assert row["memory_bytes"] == int8["memory_bytes"] + exact["memory_bytes"]
    assert row["size_bytes"] == int8["size_bytes"] + exact["size_bytes"]
    assert 0 < guard["timed_rerun_share"] < 1
    assert guard["mean_ratio"] == pytest.approx(row["latency_ms"]["mean"] / int8["latency_ms"]["mean"])
    assert row["speedup"] == pytest.approx(exact["latency_ms"]["mean"] / row["latency_ms"]["mean"])
    assert int8["speedup"] == pytest.approx(exact["latency_ms"]["p50"] / int8["latency_ms"]["p50"])
    assert row["file"] == f"engines/openvino/{NAME}/model.xml"
    assert any("calibration source" in warning for warning in row["warnings"])
    for page in ("report.md", "report.html"):
        text = (folder / "out" / page).read_text()
        assert f"{guard['flips']} of {guard['evaluated']}" in text and "uard" in text


def test_the_folder_has_both_engines_and_the_classifier_runs_them(finished):
    result, folder = finished
    engine = folder / "out/engines/openvino" / NAME
    assert {path.relative_to(engine).as_posix() for path in engine.rglob("*") if path.is_file()} == {
        *("model.xml", "model.bin", "graph.onnx"),
        *("reference/model.xml", "reference/model.bin", "reference/graph.onnx"),
        "guard.json",
    }
    dataset = open_dataset("digits:test")
    pictures = [dataset.image(index) for index in datasets.subset(dataset, "all")]
    with Classifier(engine) as classifier:
        classifier.warm_up()
        assert classifier.guard["images"] == 0  # warming up is no traffic
        found = np.stack([each.logits for each in classifier(pictures)])
        status = classifier.guard
        singly = np.stack([classifier(picture).logits for picture in pictures[:40]])
    np.testing.assert_array_equal(found, logits(result, NAME))
    np.testing.assert_array_equal(singly, found[:40])
    evaluated = rows(result)[NAME]["guard"]
    assert (status["images"], status["rerun"]) == (len(pictures), evaluated["rerun"])
    assert status["changed"] == evaluated["int8_flips"] - evaluated["flips"]
    assert status["differs"] is False and status["bound"] == evaluated["bound"]


def test_images_of_another_kind_are_noticed(finished):
    noise = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), np.uint8)
    with Classifier(finished[1] / "out/engines/openvino" / NAME) as classifier:
        classifier(noise)
        assert classifier.guard["differs"] is True


def test_predict_runs_the_guarded_variant_of_a_run_and_says_what_it_did(finished, tmp_path, capsys):
    open_dataset("digits:test").image(0).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as left:
        app.main(["predict", str(finished[1] / "out"), str(tmp_path / "a.png"), "--json"])
    assert not left.value.code
    written, noted = capsys.readouterr()
    answer = json.loads(written)
    assert answer["classes"][0]["index"] == int(logits(finished[0], NAME)[0].argmax())
    assert "guard: " in noted and "of 1 images ran again in FP32" in noted


@pytest.mark.parametrize("removed", ["reference/model.bin", "reference"])
def test_a_missing_reference_is_an_error_that_names_it(finished, tmp_path, capsys, removed):
    out = tmp_path / "out"
    shutil.copytree(finished[1] / "out", out)
    place = out / "engines/openvino" / NAME / removed
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(Failure) as raised:
        Classifier(place.parent if removed == "reference" else place.parent.parent)
    assert raised.value.code == "reference-missing"
    with pytest.raises(SystemExit) as left:
        app.main(["predict", str(out), "x.png"])
    assert left.value.code == 1 and "reference" in capsys.readouterr().err


def test_bench_times_both_and_says_how_often_the_second_ran(finished):
    command = [sys.executable, "-m", "edgeship.toolkit.cli.app", "bench", str(finished[1] / "out")]
    done = subprocess.run([*command, "--runs", "60"], capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "% ran twice" in lines[NAME] and "ran twice" not in lines["openvino-int8"]
    assert "evaluation images" in done.stdout


def test_verify_repeats_the_figures_and_notices_another_threshold(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[1] / "out", out)
    checks = [each for each in verify.verify(out) if each.subject == NAME]
    assert {each.figure for each in checks} >= {"engine files", "predictions", "agreement"}
    assert not [each for each in checks if each.result not in ("exact", "unchecked")]
    path = out / "engines/openvino" / NAME / "guard.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threshold": 0.0}))
    changed = [each for each in verify.verify(out) if each.result == "differs"]
    assert [(each.subject, each.figure) for each in changed] == [(NAME, "engine files")]


def test_the_guarded_variant_is_shipped_and_applications_get_int8(finished):
    _, folder = finished
    report = render.load(folder / "out")
    assert [each for each in report.verdicts if each.target == "openvino"]
    assert source.read(folder / "out", ["openvino"]).variant.name == "openvino-int8"
    bundle = bundle_from_run.make(folder / "out", folder / "bundle.tar", images=0)
    assert bundle.manifest["targets"]["openvino"]["variant"] == NAME


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guard.max_flips": 1e-4}, r"needs 9999 images, digits:train has 1342"),
        ({"guard.source": "digits:test"}, r"digits:test has 0"),
        ({"guard.reference": "fp16"}, r"openvino-fp16 was not built"),
        ({"compile.precisions": ("fp16",)}, "no INT8 variant"),
    ],
)
def test_a_guard_that_cannot_be_set_is_refused(finished, changes, message):
    _, folder = finished
    chosen = Recipe.build(table(folder), changes)
    with pytest.raises(RecipeError, match=message) as raised:
        run(chosen, store=Store(folder / "store"), until="guard")
    assert raised.value.hint


def test_own_images_have_no_warning(finished):
    _, folder = finished
    chosen = Recipe.build(table(folder), {"guard.source": "digits", "guard.images": None})
    result = run(chosen, store=Store(folder / "store"), until="guard")
    guard = json.loads((result.folder("guard") / "guards.json").read_text())["variants"][NAME]
    assert guard["own_images"] and guard["images"] == 199 and guard["left"] == 0


def test_without_a_guard_the_stage_does_nothing_and_reads_nothing(finished):
    _, folder = finished
    options = table(folder)
    del options["guard"]
    result = run(Recipe.build(options), store=Store(folder / "store"), until="guard")
    assert json.loads((result.folder("guard") / "guards.json").read_text()) == {"variants": {}}
    stage = next(each for each in STAGES if each.name == "guard")
    assert stage.options(Recipe.build(options)) == ("guard",) and stage.idle(Recipe.build(options))


def test_traffic_is_spread_over_the_images_and_fits_in_memory(monkeypatch):
    dataset = open_dataset("digits:test")
    monkeypatch.setattr(guarding, "TRAFFIC_BYTES", 16 * 16 * 3 * 4 * 50)
    assert guarding.traffic(dataset, PREPROCESS, pixels=False).shape == (50, 3, 16, 16)
    assert guarding.traffic(dataset, PREPROCESS, pixels=True).shape == (200, 16, 16, 3)
