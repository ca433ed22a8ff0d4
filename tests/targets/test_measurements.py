"""Memory, energy and what else went on: against sizes that are known, counters that are faked, and time."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship.targets import _cpu_load, _energy, _memory
from edgeship.targets.runner.sysfs import Tree
from edgeship.toolkit.core.errors import TargetError

MB = 1_000_000


def dense(path, inputs):
    """One fully connected layer with `inputs` x 1000 float weights."""
    weights = np.random.default_rng(0).normal(size=(inputs, 1000)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["images", "w"], ["logits"])],
        "dense",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_memory_grows_by_the_weights(tmp_path):
    found = {}
    for inputs in (100, 10_100):  # 40 MB of weights between the two
        engine = dense(tmp_path / f"{inputs}.onnx", inputs)
        found[inputs] = _memory.measure("onnxruntime", engine, np.zeros((1, inputs), np.float32), threads=1)
    small, large = found.values()
    assert 0 < small["resident_bytes"] < 30 * MB  # without what the runtime takes before
    grown = large["resident_bytes"] - small["resident_bytes"]
    assert 38 * MB < grown < 130 * MB  # the weights once, or with a copy in the kernel's own layout
    assert large["peak_bytes"] >= large["resident_bytes"] and large["peak_bytes"] < 200 * MB


def test_an_engine_that_cannot_be_loaded_says_why(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"nonsense")
    with pytest.raises(TargetError, match=r"failed: .*ONNX Runtime cannot load"):
        _memory.measure("onnxruntime", tmp_path / "no.onnx", np.zeros((1, 3), np.float32), threads=1)


def test_energy_of_a_call_by_hand(tmp_path, monkeypatch):
    """A package that uses 2 J a second, by a clock of its own."""
    zone, clock, calls = tmp_path / "sys/class/powercap/intel-rapl:0", [0.0], []
    zone.mkdir(parents=True)
    (zone / "max_energy_range_uj").write_text("262143328850\n")

    def run():
        calls.append(clock[0])
        clock[0] += 0.01
        (zone / "energy_uj").write_text(f"{round(2e6 * clock[0])}\n")

    run()
    monkeypatch.setattr(_energy.time, "perf_counter", lambda: clock[0])
    energy_mj = _energy.per_call_mj(run, 0.0, Tree(str(tmp_path)))  # a second, and not less
    assert len(calls) - 1 == pytest.approx(100, abs=1)
    assert energy_mj == pytest.approx(20)


def test_a_counter_that_is_absent_or_closed_is_named(tmp_path):
    with pytest.raises(TargetError, match=r"/sys/class/powercap"):
        _energy.per_call_mj(lambda: None, 1.0, Tree(str(tmp_path)))
    (tmp_path / "sys/class/powercap/intel-rapl:0").mkdir(parents=True)
    with pytest.raises(TargetError, match="intel-rapl:0/energy_uj may not be read") as caught:
        _energy.per_call_mj(lambda: None, 1.0, Tree(str(tmp_path)))
    assert "root" in caught.value.hint


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of four processors at 100 ticks a second, seen from a clock that the test moves."""
    (tmp_path / "proc").mkdir()
    core = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle"
    core.mkdir(parents=True)
    now = {"s": 0.0, "own_s": 0.0}

    def tell(*ticks, throttles):
        (tmp_path / "proc/stat").write_text("cpu  " + " ".join(map(str, ticks)) + " 0 0\ncpu0 1 2 3\n")
        (core / "core_throttle_count").write_text(f"{throttles}\n")

    monkeypatch.setattr(_cpu_load.time, "monotonic", lambda: now["s"])
    monkeypatch.setattr(_cpu_load, "_own_seconds", lambda: now["own_s"])
    monkeypatch.setattr(_cpu_load.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(_cpu_load.os, "sysconf", lambda _name: 100)
    return tmp_path, now, tell


def test_other_work_by_hand(system):
    root, now, tell = system
    tell(1000, 50, 100, 9000, 7, 1, 2, 30, throttles=3)
    with _cpu_load.Watch(root) as watch:
        now["s"], now["own_s"] = 10.0, 8.0
        # 12 s in user, 2 in system, 0.5 in interrupts, 25 idle, 1 waiting, 2 stolen
        tell(2200, 50, 300, 11500, 107, 21, 32, 230, throttles=3)
    assert watch.activity.other_share == pytest.approx((14.5 - 8.0) / 40)
    assert watch.activity.stolen_share == pytest.approx(2 / 40)
    assert watch.activity.throttled is False


def test_a_throttled_processor_is_noticed_and_an_unknown_one_is_not_called_cool(system, tmp_path):
    root, now, tell = system
    tell(*range(8), throttles=3)
    with _cpu_load.Watch(root) as watch:
        now["s"] = 1.0
        tell(*range(8), throttles=4)
    assert watch.activity.throttled is True
    with _cpu_load.Watch(tmp_path / "nothing") as watch:
        pass
    assert watch.activity == _cpu_load.Activity(None, None, None)
