"""An SDK that breaks its process takes only that along: the probe goes on, and says what broke."""

import json
import os
import signal
import time

import pytest
from loopback import descendants

from edgeship.targets.runner.failures import Failure
from edgeship.targets.runner.isolated_probe import run_isolated

FAKE = '"""A FAKE module that breaks whatever imports it."""\n'
KILL = "import os, signal\nos.kill(os.getpid(), signal.%s)\n"
ENDS = {
    "abort": ("import os\nos.abort()\n", "crashed", "signal 6"),
    "segmentation fault": (KILL % "SIGSEGV", "crashed", "signal 11"),
    "illegal instruction": (KILL % "SIGILL", "illegal-instruction", "OpenBLAS"),
    "out of memory": (KILL % "SIGKILL", "out-of-memory", "signal 9"),
    "exit": ("import os\nos._exit(3)\n", "crashed", "exit code 3"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_tensorrt_that_breaks_its_process_is_a_problem_of_the_probe(end, run, tmp_path):
    source, code, words = ENDS[end]
    (tmp_path / "tensorrt.py").write_text(FAKE + source)
    answer = run("probe", PYTHONPATH=str(tmp_path))
    assert answer.exit_code == 0
    offer = answer.result["backends"]["tensorrt"]
    assert (offer["available"], offer["code"]) == (False, code)
    assert words in offer["cause"]
    assert offer["cure"]
    available = {name for name, other in answer.result["backends"].items() if other["available"]}
    assert available == {"openvino", "onnxruntime"}
    if code != "out-of-memory":
        assert [problem["code"] for problem in answer.result["problems"]] == [code]


def test_a_broken_numpy_is_told_as_well(run, tmp_path):
    (tmp_path / "numpy.py").write_text(FAKE + "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    answer = run("probe", PYTHONPATH=str(tmp_path))
    assert answer.exit_code == 0
    assert answer.result["facts"]["python"]["numpy"] is None
    assert {"illegal-instruction"} == {problem["code"] for problem in answer.result["problems"][:1]}


def test_a_module_that_ends_python_politely_is_a_failure_too(run, tmp_path):
    (tmp_path / "tensorrt.py").write_text(FAKE + "raise SystemExit('licence expired')\n")
    offer = run("probe", PYTHONPATH=str(tmp_path)).result["backends"]["tensorrt"]
    assert offer["available"] is False
    assert "licence expired" in json.dumps(offer)


def test_what_hangs_is_given_up_and_nothing_is_left_running():
    def hang() -> None:
        time.sleep(600)

    started, before = time.monotonic(), descendants(os.getpid())
    found = run_isolated({"slow": hang, "quick": os.getpid, "large": lambda: "x" * 300_000}, limit_s=4.0)
    assert time.monotonic() - started < 200
    assert isinstance(found["slow"], Failure)
    assert found["slow"].code == "hangs"
    assert found["quick"] != os.getpid()
    assert len(found["large"]) == 300_000
    assert set(descendants(os.getpid())) <= set(before)


def test_an_interruption_ends_the_children():
    def interrupt() -> None:
        for pause_s in (1.0, 60.0, 60.0):  # in the middle of a fork CPython ignores it
            time.sleep(pause_s)
            os.kill(os.getppid(), signal.SIGINT)

    before = descendants(os.getpid())
    with pytest.raises(KeyboardInterrupt):
        run_isolated({"a": interrupt}, limit_s=300.0)
    assert set(descendants(os.getpid())) <= set(before)
