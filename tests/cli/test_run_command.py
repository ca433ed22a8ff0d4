"""`edgeship run MODEL --data IMAGES`, `init`, `list` and shell completion, as a newcomer types them."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch

from edgeship.calibration.datasets import open_dataset
from edgeship.toolkit.cli import app as cli
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline.model_recipe import recipe_of, with_data
from edgeship.toolkit.pipeline.recipe import Recipe, as_toml, named, option_help

QUICK = (
    *("--target", "onnxruntime", "--effort", "fast", "--duration", "0.02"),
    *("--set", "bench.throughput_s=0", "--set", "bench.warmup_s=0", "--set", "export.size=16"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, images in class folders, the same in train and test, and loose ones."""
    root = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    weights.save(resnet.ResNet(resnet.architecture("resnet20", width=4)), root / "net")
    digits = open_dataset("digits:train")
    for turn, index in enumerate(range(0, len(digits), 12)):
        image, label = digits.image(index), digits.items[index].label
        parts = (f"photos/{label}", f"sets/{'train' if turn % 2 else 'test'}/{label}", "flat")
        for part in parts:
            (root / part).mkdir(parents=True, exist_ok=True)
            image.save(root / part / f"{index}.png")
    (root / "one").mkdir()
    digits.image(0).save(root / "one" / "a.png")
    (root / "notes.txt").write_text("x")
    return root


def read(place, name):
    return json.loads((place / name).read_text())


def test_a_checkpoint_and_a_folder_are_enough_and_its_recipe_repeats_the_run(call, place):
    code, out, err = call("run", "net", "--data", "photos", *QUICK)
    assert code == 0, err
    report = read(place, "runs/net/report.json")
    assert report["data"]["calibration_images"] + report["data"]["eval_images"] == 121
    assert any("photos is split" in finding["what"] for finding in report["findings"])
    assert "stage  4 of 9  calibrate" in err and "prune" not in err and "finetune" not in err
    file = next(line.split()[-1] for line in out.splitlines() if line.startswith("  file"))
    assert (place / file).is_file() and "report:  runs/net/report.html" in out and "next:    edgeship" in out
    code, out, err = call("run", "runs/net/recipe.toml", "--rerun", "evaluate")
    assert code == 0 and "runs/net holds files" in err and "runs/net-2" in out
    again = read(place, "runs/net-2/report.json")
    names = ("top1", "agreement", "size_bytes")
    for before, after in zip(report["variants"], again["variants"], strict=True):
        assert [before[name] for name in names] == [after[name] for name in names]
    assert call("run", "runs/net", *QUICK, "--overwrite", "--out", "runs/net", "-q")[2] == ""
    assert not (place / "runs" / "net-3").exists()


def test_a_folder_with_sets_is_used_as_it_says_and_one_without_labels_reports_agreement(call, place):
    assert with_data({"select.source": str(place / "sets")})["evaluate.source"] == str(place / "sets")
    code, _, err = call("run", "net/model.safetensors", "--data", "flat", *QUICK, "--out", "flat-run")
    assert code == 0, err
    report = read(place, "flat-run/report.json")
    assert {each["top1"] for each in report["variants"]} == {None}
    assert all(each["agreement"] is not None for each in report["variants"] if each["precision"] == "int8")


def test_data_options(place, monkeypatch):
    monkeypatch.chdir(place)
    assert with_data({"select.source": "photos"}) == {
        "select.source": "photos:calibration",
        "evaluate.source": "photos:evaluation",
        "select.images": len(open_dataset("photos:calibration")),
    }
    given = with_data({"select.source": "photos", "evaluate.source": "flat", "select.images": 7})
    assert given == {"select.source": "photos", "evaluate.source": "flat", "select.images": 7}
    digits = with_data({"select.source": "digits"})
    assert (digits["select.source"], digits["evaluate.source"]) == (
        "digits:calibration",
        "digits:evaluation",
    )
    assert with_data({"export.size": 8}) == {"export.size": 8}


def test_equal_images_of_a_folder_are_split_into_the_same_part(tmp_path):
    digits = open_dataset("digits:train")
    for index in range(40):
        for copy in "abc":
            (tmp_path / "photos" / copy).mkdir(parents=True, exist_ok=True)
            digits.image(index).save(tmp_path / "photos" / copy / f"{copy}{index}.png")
    parts = [open_dataset(f"{tmp_path / 'photos'}:{part}") for part in ("train", "test")]
    train, test = ({part.digest(index) for index in range(len(part))} for part in parts)
    assert not train & test and len(train | test) == 40
    assert sum(map(len, parts)) == 120 and len(parts[1]) >= 12


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("run", "net"), "--data is not set", "--data="),
        (("run", "net", "--data", "one"), "one has 1 image", "--eval-data"),
        (("run", "net", "--data", "phtos"), "no such file or folder: phtos", "did you mean 'photos'"),
        (("run", "no/net.onnx", "--data", "photos"), "recipe: no/net.onnx", "check the path /"),
        (("run", "photos", "--data", "photos"), "without model.safetensors", "--data photos"),
        (("run", "one/a.png", "--data", "photos"), "a file of images", "--data one/a.png"),
        (("run", "notes.txt", "--data", "photos"), "a .txt file", "ONNX"),
        (
            ("run", "nett", "--data", "photos"),
            "no checkpoint, ONNX file or recipe: nett",
            "did you mean 'net'",
        ),
        (("run", "net", "--data", "photos", "--out", "notes.txt/x"), "notes.txt is a file", "--out"),
        (("run", "net", "--data", "photos", "--target", "openvin"), "--target cannot be", "openvino"),
        (("run", "net", "--data", "photos", "--calibration-images", "0"), "at least 1", "Number of"),
        (("bench", "net/model.safetensors"), "is not a readable ONNX file", "edgeship run"),
        (("init", "--out", "net"), "net' is a directory", "--help"),
        (("--target", "openvino", "run", "net"), "No such option '--target'", "edgeship COMMAND --target"),
        (("bundle", "nett"), "'nett' does not exist", "did you mean 'net'"),
        (("compare", "one/a.png", "one/a.png"), "one/a.png is a file, not the folder of a run", "run --out"),
        (("predict", "notes.txt", "one/a.png"), "no engine at notes.txt", "edgeship run MODEL --data"),
        (
            ("quantize", "net", "one", "--target", "openvino", "--out", "notes.txt/q.onnx"),
            "is a file",
            "--out",
        ),
        (("list", "recips"), "recips", "list --help"),
    ],
)
def test_what_a_newcomer_mistypes(call, arguments, message, hint):
    code, out, err = call(*arguments)
    assert code in (1, 2) and out == ""
    error, tip = err.strip().splitlines()[-2:]
    assert message in error and hint in tip and "Traceback" not in err


def test_an_error_of_the_file_system_has_no_traceback(call, monkeypatch):
    def broken(*_arguments, **_settings):
        raise OSError(5, "Input/output error", "/mnt/photos")

    monkeypatch.setattr("edgeship.toolkit.pipeline.model_recipe.recipe_of", broken)
    code, _, err = call("run", "net")
    assert code == 1 and "error: /mnt/photos: Input/output error" in err and "Traceback" not in err


def test_the_recipe_of_a_run_is_what_it_was(tmp_path):
    overrides = {
        "load.weights": "train",
        "export.size": (96, 128),
        "prune.method": "obs",
        "prune.keep_ratio": 0.5,
        "load.preprocess.mean": (0.5, 0.25, 1.0),
        "quantize.float_layers": ('a"b\\c', "é"),
        "evaluate.images": 50,
        "report.max_drop_pp": 1.5,
        "select.skip_unreadable": True,
    }
    recipe = Recipe.build({}, overrides)
    for commented in (False, True):
        file = tmp_path / f"{commented}.toml"
        file.write_text(as_toml(recipe, commented=commented), encoding="utf-8")
        assert named(Recipe.read(file), "") == recipe


def test_init_writes_every_option_with_its_help(call, place):
    code, out, _ = call("init", "net", "--data", "photos", "--out", "mine.toml")
    assert (code, out) == (0, "mine.toml\n")
    text = (place / "mine.toml").read_text()
    for name, _, explanation in option_help():
        assert f"{name.rpartition('.')[2]} =" in text and f"# {explanation}" in text
    recipe = Recipe.read(place / "mine.toml")
    assert (
        recipe.load.weights == str(place / "net")
        and recipe.evaluate.source == f"{place / 'photos'}:evaluation"
    )
    assert call("init", "--out", "mine.toml")[0] == 2
    assert call("init", "--out", "mine.toml", "--overwrite")[0] == 0
    assert recipe_of(str(place / "mine.toml")) == named(Recipe(), str(place / "mine.toml"))


@pytest.mark.parametrize(
    ("kind", "word"),
    [("recipes", "quickstart"), ("models", "resnet18"), ("targets", "openvino"), ("observers", "entropy")],
)
def test_list(call, kind, word):
    assert word in call("list", kind)[1]
    assert word in json.loads(call("list", kind, "--json")[1])


def test_help_without_a_command_has_every_command_by_task(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call()
    assert code == 0
    titles = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[1:] == [f"{title}:" for title in cli.TASKS]  # no command without a task
    for name in cli.app.list_commands(None):
        assert f"\n  {name} " in out
    assert "..." not in out.replace("[ARGS]...", "") and max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("columns", ["80", "40"])
def test_help_fits_the_terminal(call, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    words = max(int(columns), 50)  # an option's name is not broken
    for name in ("run", "init", "list", "completion", "bench"):
        _, out, _ = call(name, "--help")
        text = out.partition("Example")[0]
        assert max(map(len, text.splitlines())) <= words, name


@pytest.mark.parametrize(
    ("shell", "words", "found"),
    [
        ("bash", "edgeship ru", "plain,run"),
        ("zsh", "edgeship list re", "recipes"),
        ("fish", "edgeship run x --effort ", "balanced"),
        ("bash", "edgeship run x --target open", "plain,openvino"),
    ],
)
def test_shell_completion(call, shell, words, found):
    code, script, _ = call("completion", shell)
    assert code == 0 and "_EDGESHIP_COMPLETE" in script
    environment = {
        **os.environ,
        "_EDGESHIP_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": words.split(" ")[-1] if shell == "fish" else str(len(words.split(" ")) - 1),
    }
    command = [sys.executable, "-m", "edgeship.toolkit.cli.app"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found in done.stdout, done.stderr


def test_a_checkpoint_named_onnx_is_called_a_checkpoint(call, tmp_path):
    with zipfile.ZipFile(tmp_path / "net.onnx", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    code, _, err = call("run", str(tmp_path / "net.onnx"), "--data", "photos")
    assert code == 1 and "net.onnx is a zip file" in err and "rename a checkpoint to end in .pth" in err
