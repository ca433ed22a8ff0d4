"""`edgeship prune`: networks in folders, their figures, and errors with usable hints."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from edgeship.calibration.datasets import open_dataset
from edgeship.toolkit.cli import app as cli
from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.options import warn_renamed
from edgeship.toolkit.models import export, weights
from edgeship.toolkit.models.resnet import architecture, build, macs
from edgeship.toolkit.prune.reconstruction import Reconstruction
from edgeship.toolkit.report import render

SIZE = 8
FEW = (
    "digits:train",
    "--size",
    str(SIZE),
    "--images",
    "40",
    "--channel-multiple",
    "1",
    "--method",
    "magnitude",
)


@pytest.fixture(autouse=True)
def _own_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    model = build(architecture("resnet20", classes=10, width=8), seed=0).eval()
    export.export(model, folder / "net.onnx", size=SIZE)
    return weights.save(model, folder)


@pytest.fixture
def prune(capsys, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESHIP_STORE", str(tmp_path / "store"))

    def prune(*arguments, source=checkpoint):
        with pytest.raises(SystemExit) as left:
            cli.main(("prune", str(source), *arguments, "--out", str(tmp_path / "out")))
        return left.value.code, *capsys.readouterr()

    return prune


def test_a_goal_gives_a_network_that_loads(prune, tmp_path):
    code, out, err = prune(*FEW, "--macs-ratio", "0.6", "--no-compare")
    assert (code, out.strip()) == (0, str(tmp_path / "out"))
    small = weights.load(tmp_path / "out").model.architecture
    dense = architecture("resnet20", classes=10, width=8)
    assert 0.5 < macs(small, SIZE) / macs(dense, SIZE) <= 0.6
    assert "fewer rows than columns" not in err


def test_few_images_are_warned_about(prune):
    code, _, err = prune(*FEW[:4], "2", "--channel-multiple", "1", "--keep-ratio", "0.5", "--no-compare")
    assert code == 0
    assert "note: 2 images" in err and "would do" in err


def test_several_widths_are_runs_and_are_compared_with_the_dense_network(prune, tmp_path):
    quick = ("--test", "digits:test", "--seconds", "0.05")
    code, out, _ = prune(*FEW, "--widths", "0.25,0.75", *quick, "--json")
    assert code == 0
    points = {Path(point["run"]).name: point for point in json.loads(out)}
    assert set(points) == {"dense", "keep-0.75", "keep-0.25"}
    ms = [point["variant"]["latency_ms"]["p50"] for point in points.values()]
    assert points["dense"]["speedup_dense"] == 1 and min(ms) > 0
    ratios = [point["speedup_dense"] for point in points.values()]
    assert ratios == sorted(ratios, reverse=True)
    macs_of = {name: point["variant"]["macs"] for name, point in points.items()}
    assert macs_of["keep-0.25"] < macs_of["keep-0.75"] < macs_of["dense"]
    for name in ("keep-0.75", "keep-0.25"):
        folder = tmp_path / "out" / name
        report = render.load(folder)
        row = next(v for v in report.variants if v.name == "openvino-int8-pruned")
        assert points[name]["variant"]["drop_pp"] == row.drop_pp
        assert row.drop_ci95_pp[0] <= row.drop_pp <= row.drop_ci95_pp[1]
        assert row.macs == read_json(folder / "plan.json")["macs_after"]
        assert weights.load(folder).model.architecture.name == "resnet20"
    lines = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert lines[0].startswith("| run | MACs") and any("keep-0.75" in line for line in lines)


def test_without_test_images_half_of_the_source_is_evaluated(prune, tmp_path):
    code, out, _ = prune(*FEW, "--keep-ratio", "0.5", "--seconds", "0.05")
    assert code == 0 and "dense" in out and "report.html" in out
    report = render.load(tmp_path / "out")
    train = len(open_dataset("digits:train"))
    assert report.data.eval_images == pytest.approx(train / 2, abs=10)


def test_an_interrupted_pass_goes_on_from_its_last_block(prune, tmp_path, monkeypatch):
    widths = (*FEW, "--widths", "0.75,0.25", "--no-compare")

    def members():
        return [(tmp_path / "out" / f"keep-{r}" / "model.safetensors").read_bytes() for r in ("0.75", "0.25")]

    repaired, whole = [], Reconstruction._block

    def counted(*args):
        repaired.append(args[1])
        if len(repaired) == 9 + 4:  # in the second network
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(Reconstruction, "_block", counted)
    assert prune(*widths)[0] == 130
    assert (tmp_path / "out" / "keep-0.75" / "plan.json").is_file()
    assert prune(*widths)[0] == 0
    assert len(repaired) == 2 * 9 + 1  # the block that was interrupted, twice
    resumed = members()
    shutil.rmtree(tmp_path / "out")
    assert prune(*widths)[0] == 0
    assert len(repaired) == 2 * 9 + 1 and members() == resumed  # cached


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        ((), 2, "0 pruning goals, expected 1", "--keep-ratio"),
        (
            ("--keep-ratio", "0.5", "--macs-ratio", "0.5"),
            2,
            "2 pruning goals, expected 1",
            "one of --keep-ratio",
        ),
        (("--keep-ratio", "0"), 2, "--keep-ratio = 0.0 must be above 0", "channels"),
        (("--keep-ratio", "1.5"), 2, "must be at most 1", "channels"),
        (("--widths", "0.9,1.2"), 2, "between 0 and 1: 1.2", "0.9,0.75"),
        (("--widths", "0.5,half"), 2, "--widths is '0.5,half'", "0.9,0.75"),
        (("--widths", "0.5,0.5"), 2, "different ratios", "once"),
        (
            ("--keep-ratio", "0.5", "--target", "openvin"),
            2,
            "--target cannot be 'openvin'",
            "openvino",
        ),
        (("--keep-ratio", "0.5", "--test", "nowhere"), 2, "no such file or folder: nowhere", "known"),
        (("--keep-ratio", "0.99"), 1, "as narrow as steps of 1 channels allow", "--channel-multiple"),
        (("--macs-ratio", "0.05"), 1, "0.05 of the multiply-accumulates cannot be met; 0.", "scope=both"),
    ],
)
def test_a_refusal_says_what_would_do(prune, arguments, code, message, hint):
    left, _, err = prune(*FEW, *arguments)
    error, _, tip = err.partition(" hint: ")
    assert left == code
    assert message in error and hint in tip


def test_an_onnx_file_cannot_be_pruned(prune, checkpoint):
    code, _, err = prune(*FEW, "--keep-ratio", "0.5", source=checkpoint.with_name("net.onnx"))
    assert code == 1
    assert "an ONNX file cannot be pruned" in err and "load.weights of a ResNet" in err


@pytest.mark.parametrize("source", ["train", ""])
def test_weights_that_name_no_checkpoint_are_refused_with_a_command_that_exists(prune, source):
    code, _, err = prune(*FEW, "--keep-ratio", "0.5", source=source)
    assert code == 2
    assert f"MODEL is '{source}'" in err and "edgeship train digits:train" in err and "--set" not in err
    assert not Path("/partial").exists()


def test_a_hint_names_the_options_of_prune(prune):
    code, _, err = prune(*FEW, "--keep-ratio", "0.5", "--preprocess", "mean=0.5", "--preprocess", "std=0.5")
    assert code == 2
    assert "--preprocess mean=0.485" in err and "--set" not in err


def test_former_option_names_are_accepted_with_a_warning(prune, caplog):
    warn_renamed.cache_clear()
    code, *_ = prune(*FEW[:4], "2", "--step=1", "--scope", "inner", "--keep", "0.5", "--no-compare")
    assert code == 0
    assert [record.getMessage() for record in caplog.records] == [
        "option --step is called --channel-multiple now",
        "option --keep is called --keep-ratio now",
        "--scope = inner is called block now",
    ]


def test_a_budget_distils_and_ships_the_distilled_network(prune, tmp_path):
    code, _, err = prune(*FEW, "--keep-ratio", "0.6", "--budget", "15s", "--no-compare")
    assert code == 0, err
    (tuned,) = (tmp_path / "store" / "objects").glob("finetune-*/model.safetensors")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == tuned.read_bytes()
    code, _, err = prune(*FEW, "--keep-ratio", "0.6", "--budget", "soon", "--no-compare")
    assert code == 2 and "20min" in err
