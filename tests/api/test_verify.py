"""`edgeship verify`: what a run and a bundle state is recomputed; a changed value is found."""

import json
import shutil

import numpy as np
import pytest
import torch
from measured import peak
from PIL import Image

import edgeship
from edgeship.toolkit.cli import app as cli
from edgeship.toolkit.core.errors import DataError, ToolkitError
from edgeship.toolkit.deploy import bundle_from_run
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline import Store
from edgeship.toolkit.report.paired_analysis import PREDICTIONS

FIGURES = {"top1", "top5", "drop_pp", "agreement", "sqnr_db"}


def photos(folder, seed, count=4):
    for label in range(10):
        (folder / f"c{label}").mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng(100 * seed + 10 * number + label).integers(
                0, 255, (16, 16, 3), np.uint8
            )
            Image.fromarray(noise).save(folder / f"c{label}" / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run and its bundle, without its store, on a machine with the images under another path."""
    root = tmp_path_factory.mktemp("verify")
    torch.manual_seed(0)
    weights.save(resnet.ResNet(resnet.architecture("resnet20", width=4)).eval(), root / "net")
    photos(root / "there", seed=1)
    photos(root / "others", seed=2)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": 16}
    options = {
        **{f"load.preprocess.{key}": value for key, value in preprocess.items()},
        **{"export.size": 16, "quantize.effort": "fast", "bench.duration_s": 0.02},
        **{"bench.throughput_s": 0, "bench.warmup_s": 0},
        "compile.targets": ["onnxruntime", "openvino", "tensorrt"],
    }
    edgeship.run(
        str(root / "net"),
        data=str(root / "there"),
        out=root / "run",
        overrides=options,
        store=Store(root / "store"),
    )
    bundle_from_run.make(root / "run", root / "bundle.tar")
    (root / "store").rename(root / "gone")
    (root / "there").rename(root / "images")
    (root / "net").rename(root / "model")
    return root


def by(checks, figure=None):
    return {(each.subject, each.figure): each for each in checks if figure in (None, each.figure)}


def test_all_accuracy_figures_and_graphs_agree_on_another_machine(place):
    checks = edgeship.verify(place / "run", str(place / "images"), model=str(place / "model"), rebuild=True)
    report = json.loads((place / "run" / "report.json").read_text())
    stated = {(v["name"], name) for v in report["variants"] for name in FIGURES if v[name] is not None}
    exact = {key for key, each in by(checks).items() if each.result == "exact"}
    assert len(stated) > 20 and stated <= exact, stated - exact
    graphs = by(checks, "bytes")
    assert len(graphs) >= 6 and {each.result for each in graphs.values()} == {"exact"}
    assert {each.result for each in by(checks, "predictions").values()} == {"exact"}
    timed = [each for each in checks if each.figure in ("latency_ms", "speedup")]
    assert timed and {each.result for each in timed} == {"unchecked"}
    assert {each.result for each in by(checks, "digest").values()} == {"unchecked"}


def test_without_images_first_classes_are_compared_with_the_report(place):
    checks = by(edgeship.verify(place / "run"))
    top1 = checks["openvino-int8", "top1"]
    assert top1.result == "exact" and PREDICTIONS in top1.why and "--data" in top1.why
    assert checks["openvino-int8", "sqnr_db"].result == "unchecked"


def test_other_images_are_noticed(place):
    checks = by(edgeship.verify(place / "run", str(place / "others")))
    assert "are others" in checks["openvino-int8", "top5"].why
    assert checks["openvino-int8", "top5"].result == "unchecked"


@pytest.mark.parametrize("figure", ["top1", "agreement", "drop_pp"])
def test_a_changed_figure_differs(place, tmp_path, figure):
    shutil.copytree(place / "run", tmp_path / "run")
    report = json.loads((place / "run" / "report.json").read_text())
    variant = next(each for each in report["variants"] if each["name"] == "openvino-int8")
    variant[figure] += 0.003  # inside the interval: the stored predictions contradict it
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    checks = by(edgeship.verify(tmp_path / "run", str(place / "images")))
    assert checks["openvino-int8", figure].result == "differs"
    assert checks["onnxruntime-int8", figure].result == "exact"


def test_a_changed_engine_differs(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    engines = tmp_path / "run" / "engines" / "onnxruntime"
    edgeship.quantize(
        str(place / "model"),
        str(place / "others"),
        target="onnxruntime",
        size=16,
        effort="fast",
        observer="minmax",
        preprocess={"resize": 16, "mean": [0.1] * 3, "std": [0.05] * 3, "crop": 16},
    ).save(engines / "onnxruntime-int8" / "model.onnx")
    checks = by(edgeship.verify(tmp_path / "run", str(place / "images")))
    assert checks["onnxruntime-int8", "sqnr_db"].result == "differs"
    assert checks["openvino-int8", "sqnr_db"].result == "exact"


def test_a_changed_byte_of_an_engine_differs_where_its_stage_is_there(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    file = tmp_path / "run/engines/onnxruntime/onnxruntime-int8/model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (place / "store").symlink_to(place / "gone")
    try:
        checks = by(edgeship.verify(tmp_path / "run", str(place / "images")))
    finally:
        (place / "store").unlink()
    results = {
        subject: check.result for (subject, figure), check in checks.items() if figure == "engine files"
    }
    assert results.pop("onnxruntime-int8") == "differs"
    assert len(results) >= 4 and set(results.values()) == {"exact"}


def test_a_bundle_is_verified_without_anything_else(place):
    checks = by(edgeship.verify(place / "bundle.tar"))
    for name in ("onnxruntime-int8", "openvino-int8", "tensorrt-int8"):
        for figure in ("golden logits", "logits", "top1", "top5"):
            assert checks[name, figure].result == "exact", (name, figure)
    assert checks["files", "digests"].result == "exact"
    assert checks["quantize", "digest"].result == "unchecked"


def test_a_damaged_bundle_is_refused(place, tmp_path):
    data = bytearray((place / "bundle.tar").read_bytes())
    data[data.index(b"graphs/onnxruntime.onnx\0") + 1024] ^= 1
    (tmp_path / "bundle.tar").write_bytes(data)
    with pytest.raises(DataError, match="digest"):
        edgeship.verify(tmp_path / "bundle.tar")
    with pytest.raises(ToolkitError):
        edgeship.verify(tmp_path)


DAMAGED = {
    "short": lambda stored: {**stored, "labels": stored["labels"][:5]},
    "empty": lambda stored: {name: values[:0] for name, values in stored.items()},
    "flat": lambda stored: {name: values.reshape(1, -1) for name, values in stored.items()},
    "text": lambda stored: {name: values.astype("U") + "x" for name, values in stored.items()},
    "without labels": lambda stored: {name: each for name, each in stored.items() if name != "labels"},
}


@pytest.mark.parametrize("damage", [*DAMAGED, b"", b"PK\3\4"])
def test_damaged_predictions_are_no_predictions(place, tmp_path, damage):
    shutil.copytree(place / "run", tmp_path / "run")
    file = tmp_path / "run" / PREDICTIONS
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    else:
        np.savez(file, **DAMAGED[damage](dict(np.load(place / "run" / PREDICTIONS))))
    checks = by(edgeship.verify(tmp_path / "run"))
    assert checks[PREDICTIONS, "content"].result == "unchecked"
    assert checks["openvino-int8", "top1"].result == "unchecked"


def test_classes_that_no_label_has_are_wrong_and_cheap(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    stored = dict(np.load(place / "run" / PREDICTIONS))
    stored["openvino-int8"] = stored["openvino-int8"] + 30_000
    np.savez(tmp_path / "run" / PREDICTIONS, **stored)
    with peak() as used:
        checks = by(edgeship.verify(tmp_path / "run"))
    assert checks["openvino-int8", "agreement"].result == "differs"
    assert used.megabytes < 200


@pytest.mark.parametrize(("change", "code"), [(0.0, 0), (0.3, 3)])
def test_the_command_lists_values_and_exits_with_3_where_one_differs(place, tmp_path, capsys, change, code):
    shutil.copytree(place / "run", tmp_path / "run")
    report = json.loads((place / "run" / "report.json").read_text())
    report["variants"][1]["top1"] += change
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    for form in ((), ("--json",)):
        with pytest.raises(SystemExit) as left:
            cli.main(["verify", str(tmp_path / "run"), "-q", *form])
        out, err = capsys.readouterr()
        assert (left.value.code or 0) == code, err
        if form:
            counts = json.loads(out)["counts"]
            assert counts["exact"] > 5 and counts.get("differs", 0) == (change > 0)
        else:
            assert (
                "agrees exactly" in out and "cannot be checked" in out and ("DIFFERS" in out) == bool(change)
            )
