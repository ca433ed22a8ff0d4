"""Runs that are killed at random times by every signal: the next run has the same numbers and engines."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from edgeship.toolkit.pipeline.stages import STAGES

KILLS = int(os.environ.get("EDGESHIP_KILLS", "24"))
ROUND = 6  # kills, then a run to the end
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RECIPE = """
[load]
model = "resnet20"
weights = "train"
[load.train]
epochs = 2
batch = 64
source = "digits:train"
[prune]
method = "magnitude"
keep_ratio = 0.7
images = 40
[finetune]
epochs = 1
images = 100
[export]
size = 16
[select]
source = "digits:train"
images = 24
[quantize]
effort = "balanced"
[compile]
targets = ["openvino", "onnxruntime"]
[evaluate]
source = "digits:test"
images = 100
[bench]
runs = 4
throughput_s = 0.01
warmup_s = 0.0
"""


def heed_signals():
    """Undo what `nohup` and a shell's `&` set: SIGHUP and SIGINT would be ignored."""
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)


def start(recipe, folder):
    command = [sys.executable, "-m", "edgeship.toolkit.cli.app", "run", str(recipe), "--overwrite"]
    places = ["--out", str(folder / "out"), "--store", str(folder / "store")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *places],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    )


def finished(recipe, folder):
    """Return what has to be equal after every run: accuracy, and the digest of every engine and graph."""
    process = start(recipe, folder)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    report = json.loads((folder / "out" / "report.json").read_text())
    numbers = {
        each["name"]: [each[key] for key in ("top1", "drop_pp", "drop_ci95_pp", "agreement", "sqnr_db")]
        for each in report["variants"]
    }
    files = {
        str(file.relative_to(folder / "out")): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / "out" / "engines").rglob("*"))
        if file.is_file()
    }
    return numbers, files


def forget(keys, first):
    """Remove the results of the stages from `first` on, so that the next kill meets work."""
    names = {stage.name for stage in STAGES[first:]}
    for file in keys.glob("*.json"):
        if file.name.partition("-")[0] in names:
            file.unlink()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_killed_run_is_resumed_with_the_same_results(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    began = time.monotonic()
    expected = finished(recipe, tmp_path / "whole")
    whole_s = time.monotonic() - began
    chance, reached = random.Random(int(os.environ.get("EDGESHIP_SEED", "0"))), set()
    for number in range(-(-KILLS // ROUND)):
        folder = tmp_path / f"killed-{number}"
        for _ in range(ROUND):
            process = start(recipe, folder)
            try:
                process.wait(chance.uniform(0.2, 1.0) * whole_s)
                reached.add("end")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, chance.choice(SIGNALS))
                try:
                    process.wait(300)
                finally:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
            printed = process.communicate()[0]
            assert "Traceback" not in printed
            assert process.returncode not in {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS}, printed
            done = folder / "store" / "keys"
            reached |= {file.name.partition("-")[0] for file in done.glob("*.json")}
            if process.returncode == 0:
                forget(done, chance.randrange(len(STAGES)))
        assert finished(recipe, folder) == expected
        leftovers = [path.name for path in (folder / "out").iterdir() if path.name.startswith(".")]
        assert not leftovers
    assert {stage.name for stage in STAGES} <= reached
