"""The cross-check by trtexec, which is a FAKE here: it writes given times."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.targets.runner import trtexec
from edgeship.targets.runner.failures import Failure
from edgeship.targets.tensorrt import builder

FAKE = """#!{python} -S
# A FAKE of trtexec: no engine is run.
import json, os, sys
options = dict(word.partition("=")[::2] for word in sys.argv[1:])
open({log!r}, "w").write(json.dumps(sys.argv[1:]))
if {fails!r}:
    print({fails!r})
    sys.exit(1)
item = {{"h2dMs": 0.25, "computeMs": {gpu_ms}, "d2hMs": 0.25, "latencyMs": 1.0}}
open(options["--exportTimes"], "w").write({text!r} or json.dumps([item] * 40))
"""


@pytest.fixture
def timed(run_fake, tmp_path):
    """Time a fake engine with the fake trtexec of a device's tree."""

    def call(version="10.3", *arguments, gpu_ms=0.5, fails="", text="", shape=(2, 3, 4, 4), profile=()):
        graph, engine = tmp_path / "g.json", tmp_path / "model.plan"
        graph.write_text(json.dumps({"shape": shape, "classes": 5, "quantized": True}))
        options = ("--backend", "tensorrt", "--precision", "int8", *profile)
        assert run_fake(version, "build", "--graph", graph, "--out", engine, *options).exit_code == 0
        tool, log = tmp_path / "root" / trtexec.PATH.lstrip("/"), tmp_path / "arguments.json"
        tool.parent.mkdir(parents=True)
        tool.write_text(
            FAKE.format(python=sys.executable, log=str(log), fails=fails, gpu_ms=gpu_ms, text=text)
        )
        tool.chmod(0o755)
        quick = ("--warmup-ms", 0, "--duration-s", 0.01, "--root", tmp_path / "root")
        answer = run_fake(version, "time", "--engine", engine, "--trtexec", *quick, *arguments)
        return answer, json.loads(log.read_text()) if log.exists() else None

    return call


def test_both_figures_and_their_difference_are_told(timed):
    answer, arguments = timed(gpu_ms=0.4)
    timing = answer.result["timings"][0]
    assert answer.result["fake"] is True
    checked = timing["trtexec"]
    assert (checked["runs"], checked["gpu_ms"]["median"], checked["h2d_ms"]["p99"]) == (40, 0.4, 0.25)
    assert timing["gpu_ms"]["median"] == pytest.approx(0.5)  # the fake TensorRT's clock
    assert checked["difference"] == pytest.approx(0.5 / 0.4 - 1)
    assert any("trtexec's median is 0.4 ms, this runner's is +25%" in mark for mark in timing["marks"])
    assert {"--useSpinWait", "--duration=1", "--warmUp=0"} <= set(arguments)
    assert not [
        word for word in arguments if word.startswith(("--shapes", "--useCudaGraph", "--noDataTransfers"))
    ]


def test_figures_that_agree_are_not_marked(timed):
    answer, _ = timed(gpu_ms=0.48)
    assert not any("trtexec" in mark for mark in answer.result["timings"][0]["marks"])


def test_a_dynamic_batch_is_told_its_shape(timed):
    answer, arguments = timed("8.6", "--batch", 3, shape=(-1, 3, 4, 4), profile=("--profile", "1:2:4"))
    assert "--shapes=images:3x3x4x4" in arguments
    assert answer.result["timings"][0]["trtexec"]["difference"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ({"fails": "Error Code 2: OutOfMemory"}, "trtexec-failed", "swap"),
        ({"fails": "[E] the moon is full"}, "trtexec-failed", "by hand"),
        ({"fails": "[W] CUDA_MODULE_LOADING\n[E] Unknown option: --useSpinWait"}, "trtexec-failed", "--help"),
        ({"text": '[{"computeMs": 0.'}, "trtexec-failed", "--exportTimes"),
        ({"text": "[]"}, "trtexec-failed", "--exportTimes"),
        ({"text": '[{"latencyMs": 1.0}]'}, "trtexec-failed", "--exportTimes"),
    ],
    ids=["out of memory", "unknown", "old tool", "cut off", "no samples", "other names"],
)
def test_a_trtexec_that_fails_leaves_the_runners_own_figures(timed, fault, code, words):
    answer, _ = timed(**fault)
    assert answer.exit_code == 0
    timing = answer.result["timings"][0]
    assert timing["trtexec"]["error"]["code"] == code
    assert words in timing["trtexec"]["error"]["cure"]
    assert timing["gpu_ms"]["median"] == pytest.approx(0.5)


def test_a_device_without_trtexec_is_told_before_anything_is_timed(run_fake, tmp_path):
    answer = run_fake("10.3", "time", "--engine", "x", "--trtexec", "--root", tmp_path)
    assert answer.result["error"]["code"] == "trtexec-missing"
    assert "libnvinfer-bin" in answer.result["error"]["cure"]
    (tmp_path / "tool").write_text("not executable")
    answer = run_fake("10.3", "time", "--engine", "x", "--trtexec", tmp_path / "tool")
    assert answer.result["error"]["code"] == "trtexec-missing"


@pytest.mark.parametrize("version", ["8.5", "8.6", "10.3", "10.16", "11.4"])
@pytest.mark.parametrize(
    ("boundary", "transfers", "graph"),
    [("gpu", False, True), ("copies", True, None), ("enqueue", False, False)],
)
def test_the_flags_are_those_that_the_version_reads(version, boundary, transfers, graph):
    """Agreement with the table that bundles' instructions are made from."""
    if graph is None:  # that table's "copies" take each version's default
        graph = version.startswith("11")
    mine = set(trtexec.arguments(version, "e", None, 1000, 10, transfers, graph))
    known = set(builder.measure(version, boundary))
    extra = {"--useSpinWait"} if not version.startswith("11") else set()
    if boundary == "enqueue" and not version.startswith("11"):
        extra.add("--noDataTransfers")  # the table leaves the copies in there
    assert mine - {"--loadEngine=e", "--exportTimes={times}"} == known | extra


@given(st.text(max_size=40) | st.binary(max_size=20).map(lambda data: f"[{data!r}]"))
def test_garbage_is_a_failure_and_never_a_figure(text):
    with pytest.raises(Failure):
        trtexec._parse(text)


WHOLE = json.dumps([{"computeMs": 1.5, "latencyMs": 2.0}] * 3)


@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_off_is_a_failure(cut):
    with pytest.raises(Failure):
        trtexec._parse(WHOLE[:cut])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "true", '"1"', "null", "[]"])
def test_samples_that_are_no_times(value):
    with pytest.raises(Failure):
        trtexec._parse(f'[{{"computeMs": {value}}}]')


def test_a_failure_without_a_known_cause_quotes_the_last_error():
    log = "&&&& RUNNING trtexec\n[I] Precision: INT8\n[E] first\n[E] last\n[I] UINT8\n&&&& FAILED trtexec\n"
    failure = trtexec._failed(1, log)
    assert str(failure) == "trtexec: [E] last"
    assert "no known cause" in failure.cause and "[E] last" in failure.cause
    assert "no error line" in str(trtexec._failed(3, "[I] nothing\n&&&& FAILED trtexec\n"))


def test_the_error_of_a_log_explains_more_than_the_signal_that_ended_it():
    assert (
        "TensorRT version"
        in trtexec._failed(-6, "[E] Version tag does not match\nAborted (core dumped)").cause
    )
    assert "memory" in trtexec._failed(-9, "[I] building").cause
