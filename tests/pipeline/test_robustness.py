"""Interrupts and a full disk in every stage, by real signals and limits in real processes (slow)."""

import subprocess
import sys

import pytest
import torch

from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.pipeline.stages import STAGES

PROGRAM = """
import os, resource, signal, sys, threading, time
from edgeship.toolkit.cli import app
from edgeship.toolkit.pipeline import runner

stage, trouble, *arguments = sys.argv[1:]

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

work = runner.Store.make
def make(self, name, key, work_, **options):
    def troubled(*folders):
        if name == stage:
            threading.Timer(0.02, interrupt).start() if trouble == "interrupt" else fill()
        work_(*folders)
        time.sleep(0.3 if name == stage else 0)  # some stages are done before the signal comes
    return work(self, name, key, troubled, **options)
runner.Store.make = make
app.main(arguments)
"""

RECIPE = """
[load]
weights = "{weights}"
[export]
size = 16
[select]
source = "digits:train"
images = 8
[evaluate]
source = "digits:test"
images = 20
[compile]
targets = ["openvino", "onnxruntime"]
[bench]
runs = 3
throughput_s = 0.05
"""


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["interrupt", "full disk"])
def test_in_every_stage_nothing_is_left_and_the_next_run_goes_on(tmp_path, trouble):
    torch.manual_seed(0)
    weights.save(resnet.ResNet(resnet.architecture("resnet20", width=4)), tmp_path)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(weights=tmp_path / "model.safetensors"))
    store, out = tmp_path / "store", tmp_path / "out"

    def edgeship(stage):
        arguments = ["run", str(recipe), "--store", str(store), "--out", str(out)]
        program = [sys.executable, "-c", PROGRAM, stage, trouble, *arguments]
        return subprocess.run(program, capture_output=True, text=True, timeout=300)

    for stage in STAGES:
        done = edgeship(stage.name)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == (130 if trouble == "interrupt" else 1), (stage.name, done.stderr)
        words = "error: interrupted" if trouble == "interrupt" else "error: no room left to write"
        assert words in done.stderr, (stage.name, done.stderr)
        assert not list(store.glob("tmp/*"))
        assert not out.exists()
    done = edgeship("none")
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").is_file() and (out / "run.json").is_file()
