"""Gates: passed, missed, undecided and not judged, by the interval and by the point."""

from dataclasses import replace

import pytest
from report_rows import FP32, INT8, SIMULATED, latency, paired

from edgeship.toolkit.core.results import Environment, InputCheck, Variant
from edgeship.toolkit.report import gates

DROP, SPEED, MS = (1.0, None, None), (None, 2.0, None), (None, None, 3.0)


def with_interval(limits, low, high):
    """Return an INT8 variant with the limited value at the centre of an interval."""
    middle = (low + high) / 2
    if limits is DROP:
        return replace(INT8, drop_pp=middle, drop_ci95_pp=(low, high))
    if limits is SPEED:
        return replace(INT8, speedup=middle, speedup_ci95=(low, high))
    return replace(INT8, latency_ms=replace(latency(middle), p50_ci95=(low, high)))


@pytest.mark.parametrize(
    ("limits", "low", "high", "by_interval", "by_point"),
    [
        (DROP, 0.2, 1.0, "pass", "pass"),  # the limit itself is kept
        (DROP, 0.2, 1.01, "needs_data", "pass"),
        (DROP, -6.5, 12.9, "needs_data", "fail"),  # of 40 images
        (DROP, 1.0, 1.8, "needs_data", "fail"),
        (DROP, 1.01, 1.8, "fail", "fail"),
        (SPEED, 2.0, 3.0, "pass", "pass"),
        (SPEED, 1.9, 3.0, "needs_data", "pass"),
        (SPEED, 1.5, 2.2, "needs_data", "fail"),
        (SPEED, 1.5, 1.9, "fail", "fail"),
        (MS, 1.0, 3.0, "pass", "pass"),
        (MS, 1.0, 3.1, "needs_data", "pass"),
        (MS, 2.9, 4.0, "needs_data", "fail"),
        (MS, 3.1, 4.0, "fail", "fail"),
    ],
)
def test_the_whole_interval_decides_or_the_point(limits, low, high, by_interval, by_point):
    variants = (FP32, with_interval(limits, low, high))
    for by, expected in (("interval", by_interval), ("point", by_point)):
        (gate,) = gates.judge(variants, *limits, by=by)
        assert (gate.outcome, gate.judged_by, gate.interval) == (expected, by, (low, high))
        assert gate.passed is {"pass": True, "fail": False, "needs_data": None}[expected]
        assert gate.value == pytest.approx((low + high) / 2)


def test_an_undecided_drop_says_how_many_images_would_decide():
    few = replace(INT8, drop_pp=0.0, drop_ci95_pp=(-1.03, 1.03), images=355, paired=paired(0, 0, 355))
    (gate,) = gates.judge((FP32, few), *DROP)
    assert "355 images are too few" in gate.reason and "about 370 are enough" in gate.reason
    (gate,) = gates.judge((FP32, replace(few, paired=None)), *DROP)
    assert gate.outcome == "needs_data" and "would" not in gate.reason


@pytest.mark.parametrize("limits", [SPEED, MS])
@pytest.mark.parametrize(
    "environment",
    [
        Environment(other_share=0.5),
        Environment(stolen_share=0.2),
        Environment(throttled=True),
        Environment(load_average=(9, 9, 9), cores=2),
    ],
)
def test_a_time_of_a_busy_machine_decides_nothing_by_the_interval(limits, environment):
    for low, high in ((2.1, 2.2), (5.0, 6.0)):
        variants = (FP32, with_interval(limits, low, high))
        (gate,) = gates.judge(variants, *limits, environment=environment)
        assert gate.outcome == "needs_data" and "busy machine" in gate.reason
        (point,) = gates.judge(variants, *limits, environment=environment, by="point")
        assert point.outcome in ("pass", "fail")
    (drop,) = gates.judge((FP32, INT8), *DROP, environment=environment)
    assert drop.outcome == "pass"


def test_few_runs_have_no_interval_and_decide_nothing():
    few = replace(INT8, latency_ms=replace(latency(1.0), p50_ci95=None), speedup_ci95=None)
    for limits in (SPEED, MS):
        assert gates.judge((FP32, few), *limits)[0].outcome == "needs_data"


def test_fp32_is_not_judged():
    assert {gate.variant for gate in gates.judge((FP32, INT8, SIMULATED), 1.0, 1.0, 9.0)} == {
        INT8.name,
        SIMULATED.name,
    }


def test_what_does_not_run_here_is_not_judged_on_speed_and_fails_nothing():
    gate = gates.judge((FP32, INT8, SIMULATED), None, 2.0, None)[1]
    assert (gate.passed, gate.value, gate.outcome) == (None, None, "not_judged")
    assert "does not run on this machine" in gate.reason


def test_what_runs_here_but_has_no_figure_is_missed():
    (gate,) = gates.judge((FP32, replace(INT8, drop_pp=None)), 1.0, None, None)
    assert (gate.passed, gate.value, gate.outcome) == (False, None, "not_measured")


def test_a_simulation_is_judged_on_accuracy_and_missed_without_one():
    assert gates.judge((FP32, SIMULATED), 1.0, None, None)[0].passed is True
    assert gates.judge((FP32, replace(SIMULATED, drop_pp=None)), 1.0, None, None)[0].passed is False


def test_a_graph_that_a_working_sdk_refuses_is_missed_but_an_absent_sdk_is_not():
    refused = Variant("openvino-int8", "openvino", "int8", False, error="unsupported node")
    absent = Variant("tensorrt-int8", "tensorrt", "int8", False, error="tensorrt is not installed")
    first, second = gates.judge((FP32, refused, absent), 1.0, None, None)[:2]
    assert (first.passed, second.passed) == (False, None)


def test_a_gate_that_finds_nothing_to_judge_is_missed():
    judged = gates.judge((SIMULATED,), None, 2.0, None)
    assert [gate.passed for gate in judged] == [None, False]
    assert judged[-1].reason == "nothing could be judged"
    assert gates.judge((), 1.0, None, None)[0].passed is False
    undecided = replace(INT8, drop_ci95_pp=(-5.0, 5.0))
    assert [gate.passed for gate in gates.judge((FP32, undecided), *DROP)] == [None]  # was judged


@pytest.mark.parametrize("by", ["interval", "point"])
def test_a_check_of_the_input_keeps_a_gate_from_passing(by):
    assumed = InputCheck("preprocess-assumed", "no_pass", "preprocessing is assumed: ImageNet")
    (gate,) = gates.judge((FP32, INT8), *DROP, by=by, checks=(assumed,))
    assert gate.outcome == "needs_data" and "assumed: ImageNet" in gate.reason
    lossy = replace(INT8, drop_pp=5.0, drop_ci95_pp=(4.0, 6.0))
    assert gates.judge((FP32, lossy), *DROP, by=by, checks=(assumed,))[0].outcome == "fail"
    note = replace(assumed, effect="note")
    assert gates.judge((FP32, INT8), *DROP, by=by, checks=(note,))[0].outcome == "pass"


def test_nothing_is_judged_where_the_baseline_is_wrong_so_the_gate_is_missed():
    chance = InputCheck("baseline-at-chance", "no_verdict", "FP32 is at chance: 10 % of 10 classes")
    first, second = gates.judge((FP32, INT8), *DROP, checks=(chance,))
    slow = gates.judge((FP32, INT8), None, None, 1e-3, checks=(chance,))[0]
    quick = gates.judge((FP32, INT8), None, None, 1e3, checks=(chance,))[0]
    assert slow.outcome == "fail" and quick.outcome == "needs_data"  # a miss stands, nothing passes
    assert first.outcome == "not_judged" and "at chance" in first.reason
    assert (second.passed, second.variant) == (False, None)


def test_of_float_variants_alone_all_but_the_first_are_judged():
    others = [replace(FP32, name=name, drop_pp=0.1) for name in ("onnxruntime-fp32", "openvino-fp32-pruned")]
    judged = gates.judge((FP32, *others), 1.0, None, None, by="point")
    assert [(gate.variant, gate.passed) for gate in judged] == [(each.name, True) for each in others]


def test_an_error_on_a_target_of_which_nothing_runs_here_is_not_judged():
    failed = replace(SIMULATED, drop_pp=None, error="the SDK is absent")
    simulated_float = replace(SIMULATED, name="tensorrt-fp32", precision="fp32", drop_pp=None)
    not_judged = gates.judge((FP32, simulated_float, INT8, failed), 1.0, None, None)[-1]
    assert (not_judged.variant, not_judged.passed) == (failed.name, None)
    broken = replace(INT8, drop_pp=None, error="refused")
    missed = gates.judge((FP32, broken), 1.0, None, None)[0]
    assert (missed.variant, missed.passed) == (broken.name, False)
