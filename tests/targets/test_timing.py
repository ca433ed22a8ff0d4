"""Timing in turns: the order, the counts, and the noise measure by hand."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeship.targets import _timing, openvino
from edgeship.targets._timing import count_until, interleave, loop_ips, noise_warning
from edgeship.targets.runner import timing as runner_timing


class Clock:
    """Time that passes in runs only."""

    def __init__(self, monkeypatch):
        self.now_s, self.calls, self.pauses = 0.0, [], 0
        monkeypatch.setattr(_timing, "_pauses", lambda: self.pauses)
        monkeypatch.setattr(_timing.time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(_timing.time, "perf_counter_ns", lambda: round(1e9 * self.now_s))

    def run(self, name, warm_s, cold_s):
        """A run that is slow the first two times after another one: its weights have left the cache."""

        def once():
            self.calls.append(name)
            cold = self.calls[-3:] != [name] * 3
            self.now_s += cold_s if cold else warm_s

        return once


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def order(calls):
    """Names in order, each turn once."""
    return "".join(name for name, _ in itertools.groupby(calls))


def test_turns_alternate_their_order(clock):
    got = interleave({n: clock.run(n, 0.01, 0.01) for n in "ABC"}, warmup_s=0, count=8)
    assert order(clock.calls) == "ABC" + "ABCBABCBA"  # the warm-up, then ABC CBA ABC CBA: the ends meet
    assert {name: len(samples) for name, samples in got.items()} == {"A": 8, "B": 8, "C": 8}
    # two of warm-up, and four turns of one untimed run and two timed ones
    assert {name: clock.calls.count(name) for name in "ABC"} == dict.fromkeys("ABC", 2 + 4 * (1 + 2))


@pytest.mark.parametrize("how", [{"count": 50}, {"duration_s": 0.5}])
def test_no_sample_pays_for_the_run_before_it(clock, how):
    runs = {"A": clock.run("A", 0.002, 0.009), "B": clock.run("B", 0.001, 0.004)}
    got = interleave(runs, warmup_s=0.1, **how)
    assert {name: set(np.round(samples, 6)) for name, samples in got.items()} == {"A": {2.0}, "B": {1.0}}
    assert len(got["A"]) == len(got["B"]) >= 50
    assert len(order(clock.calls)) >= 2 + 4


@pytest.mark.parametrize(("every", "kept"), [(2, {1.0}), (1, {5.0})], ids=["some", "all"])
def test_a_run_that_another_process_interrupts_is_repeated_but_not_for_ever(clock, every, kept):
    def run():
        clock.calls.append("A")
        if len(clock.calls) % every == 0:
            clock.now_s, clock.pauses = clock.now_s + 0.005, clock.pauses + 1
        else:
            clock.now_s += 0.001

    got = interleave({"A": run}, warmup_s=0, count=40)["A"]
    assert len(got) == 40 and set(np.round(got, 6)) == kept
    assert len(clock.calls) <= 2 + 4 * (5 + 2 * 10)


def test_the_system_counts_what_it_interrupts():
    before = _timing._pauses()
    until = time.perf_counter() + 60
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
    try:
        while _timing._pauses() == before and time.perf_counter() < until:
            sum(range(1000))
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert _timing._pauses() > before


def test_nothing_to_time_takes_no_time():
    assert interleave({}, duration_s=1e9) == {}


def test_long_runs_take_short_turns(clock):
    got = interleave({n: clock.run(n, 1.0, 1.0) for n in "AB"}, warmup_s=0, duration_s=30.0)
    assert len(got["A"]) == 24  # six turns of four: a fifth of the time goes to untimed runs
    assert clock.calls.count("A") == 2 + 6 * (1 + 4)


def test_a_duration_is_kept_and_samples_are_milliseconds():
    got = interleave({"sleep": lambda: time.sleep(0.002)}, warmup_s=0, duration_s=0.1)["sleep"]
    assert 10 <= len(got) <= 60  # a busy machine sleeps longer
    assert 2 <= min(got) < 50


def test_a_short_duration_still_gives_ten_runs():
    assert len(interleave({"a": lambda: None}, warmup_s=0, duration_s=0.0)["a"]) == 10


def test_the_mean_of_the_quickest_quarter():
    assert runner_timing.quick_mean([9.0, 1.0, 2.0, 8.0, 7.0]) == 1.5  # two of five
    assert runner_timing.quick_mean([3.0]) == 3.0


def test_noise_is_told_in_percent():
    assert noise_warning([1.0] * 20) == ""
    assert "50 %" in noise_warning([1.0, 3.0])


def test_counting_includes_what_is_finished_after():
    calls = []
    count, seconds = count_until(lambda: calls.append(1), 0.01, finish=lambda: calls.append("end"))
    assert calls == [1] * count + ["end"]
    assert seconds >= 0.01


class Slow:
    """A session whose every call takes 50 ms on the clock."""

    def __init__(self, clock):
        self.clock, self.calls = clock, 0

    def infer(self, images):
        self.calls += 1
        self.clock.now_s += 0.05
        return images


def test_throughput_is_of_images_not_of_calls(clock):
    session = Slow(clock)
    assert loop_ips(session, np.zeros((4, 3, 2, 2), np.float32), 1.0) == pytest.approx(4 / 0.05)
    assert session.calls in (21, 22)  # one to warm up; 20 or, by rounding, 21


def test_throughput_of_openvino_is_of_images(monkeypatch):
    class Queue:
        def __init__(self, compiled):
            pass

        def __len__(self):
            return 2

        def start_async(self, inputs, share_inputs):
            pass

        def wait_all(self):
            pass

    monkeypatch.setattr(openvino, "sdk", lambda: SimpleNamespace(AsyncInferQueue=Queue))
    monkeypatch.setattr(openvino, "_compiled", lambda *_, **config: SimpleNamespace(compiled=config))
    monkeypatch.setattr(openvino, "count_until", lambda start, duration_s, finish: (10, 2.0))
    images = np.zeros((4, 3, 2, 2), np.float32)
    assert openvino.TARGET.throughput_ips(Path("e"), images, duration_s=1.0) == 20.0


def test_throughput_on_a_device_is_of_images():
    subject = runner_timing.Subject("e", None, {"backend": "openvino", "precision": "int8"}, batch=4)
    for part in ("wall_ms", "latency_ms"):
        subject.samples[part] = [50.0] * 20
    subject.busy_s = 1.0
    assert subject.result(keep_samples=False, transfers=False)["throughput_ips"] == 80.0
