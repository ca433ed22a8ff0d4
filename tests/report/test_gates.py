"""Gates: kept, missed, not judged; and the verdict in words that follows."""

import json
import re
from dataclasses import replace

import pytest
from synthetic import STAGES

from toolkit.core.results import LatencySummary, LayerAudit, Variant
from toolkit.pipeline.stages import STAGES as STAGES_OF_A_RUN
from toolkit.report import gates
from toolkit.report.gather import gather
from toolkit.report.verdict import verdicts, warnings


def latency(p50):
    return LatencySummary(batch=1, p50=p50, p90=p50, p99=p50, mean=p50, runs=100, p50_ci95=(p50, p50))


FP32 = Variant(
    "openvino-fp32", "openvino", "fp32", False, kind="measured", runs_here=True, latency_ms=latency(6.0)
)
INT8 = replace(
    FP32, name="openvino-int8", precision="int8", drop_pp=0.4, drop_ci95_pp=(0.1, 0.8), speedup=3.0,
    speedup_over=FP32.name, latency_ms=latency(2.0),
)  # fmt: skip
SIMULATED = Variant(
    "tensorrt-int8", "tensorrt", "int8", False, kind="simulated", drop_pp=0.1, drop_ci95_pp=(-0.2, 0.4)
)


@pytest.mark.parametrize(
    ("limits", "passed", "value"),
    [
        ((0.4, None, None), True, 0.4),
        ((0.39, None, None), False, 0.4),
        ((None, 3.0, None), True, 3.0),
        ((None, 3.01, None), False, 3.0),
        ((None, None, 2.0), True, 2.0),
        ((None, None, 1.9), False, 2.0),
    ],
)
def test_the_limit_itself_is_kept(limits, passed, value):
    (gate,) = gates.judge((FP32, INT8), *limits)
    assert (gate.passed, gate.value, gate.variant) == (passed, value, "openvino-int8")


def test_fp32_is_not_judged():
    assert {gate.variant for gate in gates.judge((FP32, INT8, SIMULATED), 1.0, 1.0, 9.0)} == {
        INT8.name,
        SIMULATED.name,
    }


def test_what_does_not_run_here_is_not_judged_on_speed_and_fails_nothing():
    gate = gates.judge((FP32, INT8, SIMULATED), None, 2.0, None)[1]
    assert (gate.passed, gate.value) == (None, None)
    assert "does not run on this machine" in gate.reason


def test_what_runs_here_but_has_no_figure_is_missed():
    (gate,) = gates.judge((FP32, replace(INT8, drop_pp=None)), 1.0, None, None)
    assert (gate.passed, gate.value, gate.reason) == (False, None, "not measured")


def test_a_simulation_is_judged_on_accuracy_and_missed_without_one():
    assert gates.judge((FP32, SIMULATED), 1.0, None, None)[0].passed is True
    assert gates.judge((FP32, replace(SIMULATED, drop_pp=None)), 1.0, None, None)[0].passed is False


def test_a_graph_that_a_working_sdk_refuses_is_missed_but_an_absent_sdk_is_not():
    refused = Variant("openvino-int8", "openvino", "int8", False, error="unsupported node")
    absent = Variant("tensorrt-int8", "tensorrt", "int8", False, error="tensorrt is not installed")
    first, second = gates.judge((FP32, refused, absent), 1.0, None, None)[:2]
    assert (first.passed, second.passed) == (False, None)


def test_a_gate_that_finds_nothing_to_judge_is_missed():
    found = gates.judge((SIMULATED,), None, 2.0, None)
    assert [gate.passed for gate in found] == [None, False]
    assert found[-1].reason == "nothing could be judged"
    assert gates.judge((), 1.0, None, None)[0].passed is False


def report(*variants, **limits):
    return replace(
        gather({}, recipe="r", stages=STAGES),
        variants=variants,
        gates=gates.judge(variants, limits.get("drop"), limits.get("speed"), None),
    )


@pytest.mark.parametrize(
    ("int8", "limits", "level", "sentence"),
    [
        (INT8, {}, "good", "OpenVINO INT8 is 3.0× faster and loses 0.4 pp [0.1, 0.8]: ship it."),
        (INT8, {"drop": 0.1}, "bad", "do not ship it, it misses max_drop_pp."),
        (replace(INT8, drop_ci95_pp=(0.1, 1.4)), {}, "look", "decide whether that loss is acceptable"),
        (replace(INT8, drop_ci95_pp=(0.1, 1.4)), {"drop": 1.4}, "good", "ship it"),
        (
            replace(INT8, drop_ci95_pp=(0.1, 1.4)),
            {"drop": 0.5},
            "look",
            "it passes max_drop_pp = 0.5, but so few images cannot prove that at 95 %; decide whether that",
        ),
        (  # the half width of 1.07 must become 1: 360 * 1.07² = 412
            replace(INT8, drop_pp=0.0, drop_ci95_pp=(-1.07, 1.07), images=360),
            {"drop": 1.0},
            "look",
            "but 360 images cannot prove that at 95 % (at this drop, about 420 would); decide",
        ),
        (
            replace(INT8, drop_pp=4.9, drop_ci95_pp=(2.0, 8.0), images=100),
            {"drop": 5.0},
            "look",
            "it passes max_drop_pp = 5, but 100 images cannot prove that at 95 %",
        ),
        (replace(INT8, drop_ci95_pp=(0.1, 0.9), images=9), {"drop": 0.4}, "look", "at 95 %; decide"),
        (replace(INT8, drop_pp=-0.4, drop_ci95_pp=(-0.8, 0.1)), {}, "good", "gains 0.4 pp [−0.1, 0.8]"),
        (replace(INT8, speedup=0.8), {}, "look", "is slower (0.80× the speed)"),
        (replace(INT8, drop_pp=None, drop_ci95_pp=None), {}, "open", "its accuracy is unknown"),
        (
            replace(INT8, drop_pp=None, drop_ci95_pp=None, agreement=0.991),
            {"drop": 0.5},
            "bad",
            "agrees with FP32 on 99.1 % of the images: do not ship it, nothing was measured that max_drop_pp",
        ),
        (SIMULATED, {}, "open", "loses 0.1 pp [−0.2, 0.4] in simulation; its speed was not measured"),
        (
            Variant(
                "tensorrt-int8", "tensorrt", "int8", False, error="tensorrt is not installed", hint="pip it"
            ),
            {},
            "open",
            "TensorRT was not run: tensorrt is not installed.",
        ),
    ],
)
def test_verdict_in_words(int8, limits, level, sentence):
    (verdict,) = verdicts(report(FP32, int8, **limits))
    assert verdict.level == level
    assert sentence in verdict.sentence


def test_the_best_variant_speaks_for_its_target_and_the_others_are_mentioned():
    pruned = replace(
        INT8, name="openvino-int8-pruned", pruned=True, drop_pp=5.0, drop_ci95_pp=(4.0, 6.0), speedup=5.0
    )
    (verdict,) = verdicts(report(FP32, pruned, INT8))
    assert verdict.sentence.startswith("OpenVINO INT8 is 3.0× faster")
    assert any("OpenVINO INT8, pruned is 5.0× faster and loses 5.0 pp" in step for step in verdict.steps)


@pytest.mark.parametrize(("high", "level"), [(5.8, "good"), (6.5, "look")])
def test_a_speed_up_within_the_noise_is_not_praised(high, level):
    base = replace(FP32, latency_ms=replace(latency(6.0), p50_ci95=(5.9, 6.1)))
    int8 = replace(INT8, speedup_over=FP32.name, latency_ms=replace(latency(2.0), p50_ci95=(1.0, high)))
    (verdict,) = verdicts(report(base, int8))
    assert verdict.level == level
    assert ("may be noise" in verdict.sentence) == (level == "look")


@pytest.mark.parametrize("runs", [1, 49, 50])
def test_a_speed_up_of_few_runs_is_not_praised(run, runs):
    path = run["bench"] / "latency.json"
    measured = json.loads(path.read_text())
    for row in measured["variants"].values():
        row["samples_ms"] = row["samples_ms"][:runs]
    path.write_text(json.dumps(measured))
    found = gather(run, recipe="r", stages=STAGES)
    verdict = next(each for each in verdicts(found) if each.target == "openvino")
    said = f", but only {runs} run{' was' if runs == 1 else 's were'} timed: time at least 50 (`--set bench."
    assert (said in verdict.sentence) == (runs < 50)
    assert any("Few timed runs" in line and f"openvino-int8 {runs}," in line for line in warnings(found)) == (
        runs < 50
    )
    if runs < 50:
        assert verdict.level == "look"


def test_noise_and_load_are_warned_of():
    noisy = replace(INT8, latency_ms=replace(latency(2.0), cv=0.12))
    environment = {"cores": 2, "load_average": [5.0, 1.0, 1.0], "throttled": True}
    first, second, third = warnings(replace(report(FP32, noisy), environment=environment))
    assert "openvino-int8 12 %" in first
    assert "throttled" in second
    assert "load of 5.0 on 2 cores" in third
    assert warnings(report(FP32, INT8)) == ()


def test_the_advice_to_measure_again_works_on_a_stored_measurement():
    noisy = replace(INT8, latency_ms=replace(latency(2.0), cv=0.4))
    (verdict,) = verdicts(replace(report(FP32, noisy), environment={"other_share": 0.5}))
    for said in (verdict.sentence, warnings(report(FP32, noisy))[0]):
        (stage,) = re.findall("measure again on a quiet machine, with `--redo ([a-z]+)`", said)
        assert stage in [known.name for known in STAGES_OF_A_RUN]


def test_what_to_ship_comes_first_and_the_fastest_of_several_says_so():
    slow = replace(INT8, name="a-int8", target="a", latency_ms=latency(3.0))
    quick = replace(INT8, name="b-int8", target="b", latency_ms=latency(1.0))
    risky = replace(INT8, name="c-int8", target="c", drop_ci95_pp=(0.1, 5.0), latency_ms=latency(0.5))
    found = verdicts(report(SIMULATED, risky, slow, quick))
    assert [(verdict.target, verdict.level) for verdict in found] == [
        ("b", "good"), ("a", "good"), ("c", "look"), ("tensorrt", "open"),
    ]  # fmt: skip
    said = ["The fastest of the 2 that may be shipped." in verdict.steps for verdict in found]
    assert said == [True, False, False, False]
    assert not any("fastest" in step for verdict in verdicts(report(risky, slow)) for step in verdict.steps)


def test_a_pruned_variant_is_set_against_the_one_in_int8_without_pruning():
    pruned = replace(INT8, name="openvino-int8-pruned", pruned=True, latency_ms=latency(1.25), speedup=4.8)
    (verdict,) = verdicts(report(FP32, INT8, pruned))
    assert verdict.sentence.startswith("OpenVINO INT8, pruned is 4.8× faster")
    assert verdict.steps[0] == (
        "It takes 1.25 ms, OpenVINO INT8 without pruning 2.00 ms: pruning alone is worth 1.60×."
    )


FP16 = replace(FP32, name="openvino-fp16", precision="fp16", latency_ms=latency(1.5), speedup=4.0)
BF16 = replace(FP32, name="openvino-bf16", precision="bf16", latency_ms=latency(1.8), speedup=3.3)


@pytest.mark.parametrize(
    ("others", "int8", "sentence"),
    [
        ((), replace(INT8, speedup=0.8, latency_ms=latency(7.5)), "OpenVINO FP32 is faster (6.00 ms against"),
        ((BF16, FP16), INT8, "OpenVINO FP16 is faster (1.50 ms against 2.00 ms)"),  # the fastest is named
        ((replace(FP16, pruned=True), replace(FP16, target="tensorrt")), INT8, ""),  # another network, place
        ((replace(FP16, latency_ms=None),), INT8, ""),
        ((replace(INT8, name="openvino-int8-mixed", latency_ms=latency(1.0)),), INT8, ""),  # is INT8 too
    ],
)
def test_whatever_is_faster_than_int8_on_its_target_is_named(others, int8, sentence):
    found = next(v for v in verdicts(report(FP32, *others, int8)) if v.target == "openvino")
    assert found.level == ("look" if sentence else "good")
    assert sentence in found.sentence
    said = " ".join((found.sentence, *found.steps))
    assert ("it is not worth it on this machine, " in said) == bool(sentence)


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({}, "look"),
        ({"latency_ms": latency(2.5)}, "good"),
        ({"precision": "fp16"}, "good"),  # what it loses is another question
        ({"runs_here": False}, "good"),
        ({"pruned": True}, "good"),
    ],
)
def test_a_float_network_that_is_faster_in_another_runtime_is_named(change, level):
    """Of a small network: ONNX Runtime in float took half of what OpenVINO did in INT8."""
    other = replace(FP32, name="b-fp32", target="b", runs_here=True, latency_ms=latency(1.5))
    int8 = replace(INT8, runs_here=True)
    found = next(v for v in verdicts(report(FP32, replace(other, **change), int8)) if v.target == "openvino")
    assert found.level == level
    told = "but on this machine b FP32 is faster (1.50 ms against 2.00 ms), without a loss."
    assert (told in found.sentence) == (level == "look")


@pytest.mark.parametrize(
    ("share", "cv", "level"), [(0.5, 0.4, "look"), (0.5, 0.1, "good"), (0.1, 0.4, "good")]
)
def test_a_speed_up_on_a_busy_machine_is_not_praised(share, cv, level):
    noisy = replace(INT8, latency_ms=replace(latency(2.0), cv=cv))
    base = replace(FP32, latency_ms=replace(latency(6.0), cv=cv))
    for variants in ((FP32, noisy), (base, replace(INT8, speedup_over=FP32.name))):  # either may be the one
        (found,) = verdicts(replace(report(*variants), environment={"other_share": share}))
        assert found.level == level
        assert ("other work disturbed the timing: measure" in found.sentence) == (level == "look")


def test_layers_in_float_and_layers_of_unknown_precision_are_told_apart():
    layers = [
        LayerAudit(f"{precision}{i}", "Convolution", precision, weighted=True)
        for precision, count in (("int8", 3), ("fp16", 4), ("unknown", 1))
        for i in range(count)
    ]
    (verdict,) = verdicts(report(FP32, replace(INT8, audit=tuple(layers), weighted_layers=8)))
    assert "4 of 8 layers with weights run in float: fp160, fp161, fp162…." in verdict.steps
    assert (
        "1 of 8 layers with weights are not listed, so their precision is unknown: unknown0." in verdict.steps
    )


@pytest.mark.parametrize("sums", ["pairs", "exact", None])
def test_only_a_processor_without_vnni_is_blamed(sums):
    slow = report(FP32, replace(INT8, speedup=0.8))
    (found,) = verdicts(replace(slow, environment={"int8_sums": sums}))
    assert any("Look at the time per layer below" in step for step in found.steps)
    assert any("VNNI" in step for step in found.steps) == (sums == "pairs")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"other_share": 0.4}, ["other work took 40 % of its processors"]),
        ({"other_share": 0.1, "cores": 2, "load_average": [5.0, 1.0, 1.0]}, []),  # the load was before
        ({"other_share": 0.0, "stolen_share": 0.11}, ["gave 11 % of the processor time to other guests"]),
    ],
)
def test_what_other_work_took_counts_more_than_the_load(environment, said):
    found = warnings(replace(report(FP32, INT8), environment=environment))
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))


def test_of_float_variants_alone_all_but_the_first_are_judged():
    others = [replace(FP32, name=name, drop_pp=0.1) for name in ("onnxruntime-fp32", "openvino-fp32-pruned")]
    judged = gates.judge((FP32, *others), 1.0, None, None)
    assert [(gate.variant, gate.passed) for gate in judged] == [(each.name, True) for each in others]


def test_an_error_on_a_target_of_which_nothing_runs_here_is_not_judged():
    failed = replace(SIMULATED, drop_pp=None, error="the SDK is absent")
    simulated_float = replace(SIMULATED, name="tensorrt-fp32", precision="fp32", drop_pp=None)
    not_judged = gates.judge((FP32, simulated_float, INT8, failed), 1.0, None, None)[-1]
    assert (not_judged.variant, not_judged.passed) == (failed.name, None)
    broken = replace(INT8, drop_pp=None, error="refused")
    missed = gates.judge((FP32, broken), 1.0, None, None)[0]
    assert (missed.variant, missed.passed) == (broken.name, False)
