"""`edgeship prune`: networks in folders, their figures, and errors with usable hints."""

import shutil
import signal
from pathlib import Path

import pytest

from edgeship.toolkit.cli import app as cli
from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.options import warn_renamed
from edgeship.toolkit.models import export, weights
from edgeship.toolkit.models.resnet import architecture, build, macs
from edgeship.toolkit.pipeline import family as comparing
from edgeship.toolkit.prune.reconstruction import Reconstruction
from edgeship.toolkit.report.family import chart, page

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
def prune(capsys, checkpoint, tmp_path):
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


def test_a_family_is_nested_and_is_compared_with_the_dense_network(prune, tmp_path):
    code, out, _ = prune(*FEW, "--widths", "0.25,0.75", "--test", "digits:test", "--seconds", "0.05")
    assert code == 0
    assert out.index("dense") and out.strip().endswith("family.html")
    wide, narrow = (read_json(tmp_path / "out" / f"keep-{part}" / "plan.json") for part in ("0.75", "0.25"))
    for group, indices in narrow["kept"].items():
        assert set(indices) < set(wide["kept"][group])
    family = read_json(tmp_path / "out" / "family.json")
    assert {row["name"] for row in family["frontier"]} == {"dense", "keep-0.75", "keep-0.25"}
    ms = [row["latency_ms"] for row in family["frontier"]]
    assert ms == sorted(ms)
    for row in family["frontier"] + family["float"]:
        assert 0 <= row["top1"] <= 1 and row["drop_ci95_pp"][0] <= row["drop_pp"] <= row["drop_ci95_pp"][1]
    dense = next(row for row in family["float"] if row["name"] == "dense")
    assert dense["drop_pp"] == dense["expected_drop_pp"] == 0.0 and dense["agreement"] == 1.0
    macs_of = {row["name"]: row["macs"] for row in family["float"]}
    assert macs_of["keep-0.25"] < macs_of["keep-0.75"] < macs_of["dense"]
    assert macs_of["keep-0.25"] == narrow["macs_after"]


WIDTHS = (*FEW, "--widths", "0.75,0.5,0.25")


def members(out):
    return [(out / f"keep-{part}" / "model.safetensors").read_bytes() for part in ("0.75", "0.5", "0.25")]


def test_an_interrupted_family_goes_on_from_its_last_block(prune, tmp_path, monkeypatch):
    assert prune(*WIDTHS, "--no-compare")[0] == 0
    straight = members(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    repaired, whole = [], Reconstruction._block

    def counted(*args):
        repaired.append(args[1])
        if len(repaired) == 9 + 4:  # in the second network
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(Reconstruction, "_block", counted)
    assert prune(*WIDTHS, "--no-compare")[0] == 130
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / comparing.UNFINISHED]
    assert prune(*WIDTHS, "--no-compare")[0] == 0
    assert len(repaired) == 3 * 9 + 1  # the block that was interrupted, twice
    assert members(tmp_path / "out") == straight
    assert not (tmp_path / "out" / comparing.UNFINISHED).exists()


def test_networks_that_are_finished_are_not_pruned_again_for_an_interrupted_comparison(
    prune, tmp_path, monkeypatch
):
    quick = ("--test", "digits:test", "--seconds", "0.05")
    with monkeypatch.context() as patched:
        patched.setattr(comparing, "_quantize", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prune(*WIDTHS, *quick)[0] == 130
    written = members(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(Reconstruction, "_block", None)  # nothing is to be repaired
        assert prune(*WIDTHS, *quick)[0] == 0
    assert members(tmp_path / "out") == written and (tmp_path / "out" / "family.json").is_file()
    assert not (tmp_path / "out" / comparing.UNFINISHED).exists()
    changed = (*FEW[:-1], "batchnorm", "--widths", "0.75,0.5,0.25")
    assert prune(*changed, "--no-compare")[0] == 0
    assert members(tmp_path / "out") != written


ROWS = [
    {"name": name, "precision": "int8", "macs": 1, "top1": top1, "drop_pp": 0.0, "drop_ci95_pp": [0.0, 0.0],
     "expected_drop_pp": 0.1 * ms, "latency_ms": ms, "noise": "", "knee": name == "keep-0.5"}
    for name, ms, top1 in (("keep-0.3", 1.0, 0.6), ("keep-0.5", 2.0, 0.8), ("dense", 4.0, 0.82))
]  # fmt: skip


@pytest.mark.parametrize("labelled", [True, False])
def test_the_page_draws_the_family_its_baseline_and_the_knee(labelled):
    dense = {**ROWS[-1], "precision": "fp32", "latency_ms": 12.0, "knee": False}
    family = {
        "model": "resnet18", "target": "openvino", "size": 64, "batch": 1, "threads": 1,
        "included": "one call", "device": {"name": "a CPU"}, "pruning_images": 1000,
        "calibration_images": 300, "frontier": ROWS, "float": [dense],
        "judged": {"source": "a < b", "images": 500, "labelled": labelled},
    }  # fmt: skip
    pruned, dense, knee = chart(family).data
    assert pruned["x"] == [1.0, 2.0] and dense["x"] == [4.0] and knee["x"] == [2.0]
    assert dense["y"] == [82.0 if labelled else 0.4]
    html = page(family)
    assert "a &lt; b" in html and "2.00×" in html and "keep-0.5" in html
    assert ("expected drop, pp" in html) is not labelled


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
        (("--keep-ratio", "0"), 2, "prune.keep_ratio = 0.0 must be above 0", "channels"),
        (("--keep-ratio", "1.5"), 2, "must be at most 1", "channels"),
        (("--widths", "0.9,1.2"), 2, "1.2 is not between 0 and 1", "0.9,0.75"),
        (("--widths", "0.5,half"), 2, "--widths is '0.5,half'", "0.9,0.75"),
        (("--widths", "0.5,0.5"), 2, "twice", "once"),
        (
            ("--keep-ratio", "0.5", "--target", "openvin"),
            2,
            "compile.targets cannot be 'openvin'",
            "openvino",
        ),
        (("--keep-ratio", "0.5", "--test", "nowhere"), 1, "no such file or folder: nowhere", "known"),
        (("--keep-ratio", "0.99"), 1, "as narrow as steps of 1 channels allow", "prune.channel_multiple"),
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
    assert f"WEIGHTS is '{source}'" in err and "edgeship train digits:train" in err and "--set" not in err
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
        "prune.scope = inner is called block now",
    ]
