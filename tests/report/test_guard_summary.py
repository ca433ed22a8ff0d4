"""A guard in the report: promise, observation, warnings, and the gate that a broken promise misses."""

from dataclasses import replace

import numpy as np
import pytest
from report_rows import FP32, INT8, latency

from edgeship.toolkit.core.statistics import batch_interval, percentile, rate_interval
from edgeship.toolkit.report import formatting, gates, guard_summary
from edgeship.toolkit.report.verdict import _merit
from edgeship.toolkit.runs.guarded import Guard, GuardedRun
from edgeship.toolkit.runs.measured import LatencyRecord

GUARD = Guard(
    threshold=0.12,
    max_flips=1e-4,
    bound=1e-4,
    bound95=3e-4,
    images=9_999,
    flips=40,
    left=0,
    rerun_share=0.02,
    reference="fp32",
    source="others",
    own_images=True,
    simulated=False,
)
RUN = GuardedRun(images=10_000, rerun=210, flips=0, int8_flips=40)
ROW = replace(INT8, name="openvino-int8-guarded", latency_ms=replace(latency(2.0), mean=2.2))


def row(guard=GUARD, run=RUN, timing=None):
    return guard_summary.with_guard(ROW, guard, run, timing, INT8.latency_ms)


def test_the_summary_has_the_promise_and_what_was_seen():
    found = row(timing=LatencyRecord((2.0,), rerun_share=0.025))
    guard = found.guard
    assert (guard.evaluated, guard.rerun, guard.flips, guard.int8_flips) == (10_000, 210, 0, 40)
    assert guard.flips_ci95 == (0.0, pytest.approx(3.688e-4, rel=1e-3))  # Clopper-Pearson, by hand
    assert guard.mean_ratio == pytest.approx(1.1) and guard.timed_rerun_share == 0.025
    assert not guard.broken and not found.warnings
    text = guard_summary.sentence(guard)
    assert "at most 0.01 %" in text and "0 of 10\u202f000 images" in text and "2.10 % ran twice" in text
    assert formatting.title(found) == "OpenVINO INT8, guarded"


def test_a_guard_that_was_not_evaluated_says_so():
    found = row(run=None)
    assert found.guard.flips is None and "not evaluated" in guard_summary.sentence(found.guard)


@pytest.mark.parametrize(
    ("guard", "run", "words"),
    [
        (replace(GUARD, own_images=False), RUN, "calibration source"),
        (replace(GUARD, simulated=True), RUN, "assumed for the device"),
        (GUARD, replace(RUN, rerun=400), "another kind"),
        (GUARD, replace(RUN, rerun=20), "another kind"),
    ],
)
def test_a_promise_that_may_not_hold_has_a_warning(guard, run, words):
    (warning,) = row(guard, run).warnings
    assert words in warning


def judge(variant, **limits):
    default = {"max_drop_pp": None, "min_speedup": None, "max_latency_ms": None}
    given = {name: limits.pop(name, value) for name, value in default.items()}
    return gates.judge([FP32, variant], *given.values(), **limits)


def test_flips_that_contradict_the_promise_miss_a_gate():
    assert rate_interval(5, 10_000)[0] > 1e-4 > rate_interval(3, 10_000)[0]
    broken = row(run=replace(RUN, flips=5))
    assert broken.guard.broken
    (gate,) = judge(broken)
    assert (gate.name, gate.limit, gate.value, gate.outcome) == ("max_flips", 1e-4, 5e-4, "fail")
    assert "another kind" in gate.reason and gate.variant == ROW.name
    assert judge(row(run=replace(RUN, flips=3))) == ()  # too few to tell


@pytest.mark.parametrize(("by", "passed"), [("p50", True), ("mean", False), ("p99", False)])
def test_a_latency_limit_is_of_the_median_the_mean_or_the_tail(by, passed):
    samples = ([1.0] * 97 + [7.0] * 3) * 20
    timed = replace(
        latency(1.0),
        mean=float(np.mean(samples)),
        p99=percentile(samples, 99),
        mean_ci95=batch_interval(samples, np.mean),
        p99_ci95=batch_interval(samples, lambda part: percentile(part, 99), 1000),
    )
    (gate,) = judge(replace(ROW, latency_ms=timed), max_latency_ms=1.1, latency_by=by)
    assert gate.passed is passed and gate.value == {"p50": 1.0, "mean": pytest.approx(1.18), "p99": 7.0}[by]
    assert {"p50": "median", "mean": "mean", "p99": "99th"}[by] in gate.reason


def test_a_tail_of_few_runs_is_undecided():
    timed = replace(latency(1.0), mean_ci95=(1.0, 1.0))
    (gate,) = judge(replace(ROW, latency_ms=timed), max_latency_ms=1.1, latency_by="p99")
    assert gate.passed is None and "too few runs" in gate.reason


def test_of_equal_verdicts_the_guarded_variant_is_shipped():
    slow = replace(row(), latency_ms=latency(2.3))
    assert _merit("pass", slow) < _merit("pass", INT8)
    assert _merit("fail", slow) > _merit("pass", INT8)
