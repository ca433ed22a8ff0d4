"""Interleaved timing: the order, the counts, and the noise measure by hand."""

import pytest

from targets._timing import count_until, interleave, noise_warning, variation


def test_runs_alternate_their_order():
    calls = []
    got = interleave({n: lambda n=n: calls.append(n) for n in "ABC"}, warmup_s=0, count=4)
    assert "".join(calls) == "ABCCBA" + "ABCCBAABCCBA"  # two rounds of warm-up, then four
    assert {name: len(samples) for name, samples in got.items()} == {"A": 4, "B": 4, "C": 4}


def test_a_duration_is_kept_and_samples_are_milliseconds():
    import time

    got = interleave({"sleep": lambda: time.sleep(0.002)}, warmup_s=0, duration_s=0.1)["sleep"]
    assert 20 <= len(got) <= 60
    assert all(2 <= sample < 50 for sample in got)


def test_a_short_duration_still_gives_ten_runs():
    assert len(interleave({"a": lambda: None}, warmup_s=0, duration_s=0.0)["a"]) == 10


def test_variation_by_hand():
    assert variation([1.0, 3.0]) == pytest.approx(0.5)  # mean 2, deviation 1
    assert variation([1.0] * 30 + [1000.0]) == 0.0  # one pause of the system is not the run's
    assert noise_warning([1.0] * 20) == ""
    assert "50 %" in noise_warning([1.0, 3.0])


def test_counting_includes_what_is_finished_after():
    calls = []
    count, seconds = count_until(lambda: calls.append(1), 0.01, finish=lambda: calls.append("end"))
    assert calls == [1] * count + ["end"]
    assert seconds >= 0.01
