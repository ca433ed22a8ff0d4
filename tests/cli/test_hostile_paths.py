"""Outputs and stores that are links, devices or someone else's: refused before work, nothing is touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeship.toolkit.core.errors import RecipeError, ToolkitError
from edgeship.toolkit.models import export, resnet, weights
from edgeship.toolkit.pipeline.publish import check_overwrite
from edgeship.toolkit.pipeline.recipe import Recipe
from edgeship.toolkit.pipeline.store import Store


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    model = resnet.ResNet(resnet.architecture("resnet20", width=4)).eval()
    weights.save(model, root / "net")
    export.export(model, root / "net.onnx", size=16)
    return root


COMMANDS = {
    "run": ("net", "--data", "digits:train"),
    "quantize": ("net.onnx", "digits:train", "--target", "onnxruntime"),
    "prune": ("net", "digits:train", "--keep-ratio", "0.5"),
    "train": ("digits:train", "--model", "resnet20"),
    "init": ("net", "--overwrite"),
    "bundle": (".",),
    "export-jetson": ("net.onnx",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_is_looked_at_before_work(call, place, tmp_path, command):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nothing").symlink_to(tmp_path / "absent")
    before = Path("/dev/null").stat().st_rdev
    for out in ("/dev/null", tmp_path / "pipe", tmp_path / "nothing", "/proc/edgeship"):
        code, _, err = call(command, *COMMANDS[command], "--out", out)
        assert code == 2 and f"{out} cannot be written" in err and "hint:" in err
    assert Path("/dev/null").stat().st_rdev == before and not (place / "store").exists()


@pytest.mark.parametrize("linked", ["engines", "engines/openvino", "engines/openvino/openvino-int8"])
def test_engines_elsewhere_are_not_touched(tmp_path, linked):
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "model.xml").write_text("a stranger's")
    (out / linked).parent.mkdir(parents=True)
    (out / linked).symlink_to(other)
    with pytest.raises(RecipeError, match="reached by a link"):
        check_overwrite(Recipe(), ["compile", "report"], out)
    assert (other / "model.xml").read_text() == "a stranger's"


def test_a_folder_of_something_else_is_no_store(tmp_path):
    (tmp_path / "home" / "tmp").mkdir(parents=True)
    (tmp_path / "home" / "tmp" / "mine").touch()
    with pytest.raises(ToolkitError, match="holds other files"), Store(tmp_path / "home").in_use():
        pass
    store = Store(tmp_path / "store")
    with store.in_use():
        pass
    (tmp_path / "store" / "tmp").rmdir()
    (tmp_path / "store" / "tmp").symlink_to(tmp_path / "home" / "tmp")
    for use in (store.gc, store.clear, store.verify):
        with pytest.raises(ToolkitError, match="tmp is a link"):
            use()
    assert (tmp_path / "home" / "tmp" / "mine").exists()


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "99999999999999999999"])
@pytest.mark.parametrize(
    "command",
    [
        ("store", "gc", "--older-than"),
        ("bundle", ".", "--max-gap-pp"),
        ("bundle", ".", "--max-latency-ms"),
        ("bundle", ".", "--golden"),
        ("deploy", ".", "--wait"),
        ("deploy", ".", "--limit"),
        ("deploy", ".", "--max-failures"),
        ("predict", ".", "a.png", "--threads"),
        ("run", "net", "--max-drop"),
        ("run", "net", "--duration"),
    ],
    ids=" ".join,
)
def test_numbers_out_of_range_are_refused_before_work(call, command, value):
    code, _, err = call(*command[:-1], f"{command[-1]}={value}")
    assert code == 2 and command[-1] in err, err


def test_output_that_cannot_be_written_is_no_traceback():
    run = [sys.executable, "-m", "edgeship.toolkit.cli.app", "run", "--options"]
    for shell, code in [(">&-", (0, 1)), ("> /dev/full", (1,))]:
        done = subprocess.run(
            f"{' '.join(run)} {shell}", shell=True, capture_output=True, text=True, timeout=300
        )
        assert done.returncode in code and "Traceback" not in done.stderr and "Exception" not in done.stderr
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*run[:3], "list", "models"], capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0 and done.stdout.isascii()


def test_a_bundle_that_has_expired_already_is_refused_before_work(call, tmp_path):
    code, _, err = call("bundle", tmp_path, "--expires", "2020-01-01")
    assert code == 2 and "2020-01-01 has come" in " ".join(err.split())
