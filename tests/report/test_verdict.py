"""Verdict per target: level, sentence and steps."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from report_rows import FP32, INT8, SIMULATED, latency, paired
from synthetic import STAGES

from edgeship.toolkit.core.results import Environment, InputCheck, LayerAudit, Variant
from edgeship.toolkit.core.statistics import drop_interval
from edgeship.toolkit.pipeline.stages import STAGES as STAGES_OF_A_RUN
from edgeship.toolkit.report import gates
from edgeship.toolkit.report.gather import gather
from edgeship.toolkit.report.verdict import verdicts, warnings

EMPTY = gather({}, recipe="r", stages=STAGES)


def report(*variants, drop=1.0, speed=None, by="interval", environment=None, checks=()):
    environment = environment or Environment()
    judged = gates.judge(variants, drop, speed, None, by=by, environment=environment, checks=checks)
    return replace(EMPTY, variants=variants, gates=judged, environment=environment, input_checks=checks)


def lossy(drop, low, high, **others):
    return replace(INT8, drop_pp=drop, drop_ci95_pp=(low, high), **others)


@pytest.mark.parametrize(
    ("int8", "limits", "level", "sentence"),
    [
        (INT8, {}, "pass", "is 3.00× as fast as FP32 [3.00, 3.00] and has a top-1 drop of 0.40 pp [0.1"),
        (INT8, {"speed": 2.0}, "pass", "it meets max_drop_pp = 1 and min_speedup = 2, deploy it"),
        (INT8, {"drop": 0.05}, "fail", "do not deploy it, it misses max_drop_pp = 0.05."),
        (INT8, {"drop": None}, "no_limit", "no limit of the drop is set; set one with"),
        (INT8, {"drop": None, "speed": 2.0}, "no_limit", "it meets min_speedup = 2, but no limit"),
        (lossy(9.0, 8.0, 10.0), {"drop": None}, "no_limit", "drop of 9.00 pp [8.00, 10.00]: no limit"),
        (lossy(2.5, -6.5, 12.9, images=40), {}, "needs_data", "max_drop_pp = 1 is undecided: 40"),
        (lossy(2.5, -6.5, 12.9, images=40), {"by": "point"}, "fail", "max_drop_pp = 1 (judged by the point)"),
        (lossy(0.4, 0.1, 1.4), {"by": "point"}, "pass", "max_drop_pp = 1 (judged by the point), deploy it"),
        (lossy(0.4, 0.1, 1.4), {"drop": 0.05}, "fail", "do not deploy it"),
        (lossy(0.4, 0.1, 1.4), {"drop": 0.5}, "needs_data", "images are too few to decide it at 95 %"),
        (
            lossy(0.0, -1.03, 1.03, images=355, paired=paired(0, 0, 355)),
            {},
            "needs_data",
            "355 images are too few to decide it at 95 % confidence (at this drop, about 370 are enough).",
        ),
        (lossy(-0.4, -0.8, 0.1), {}, "pass", "a top-1 drop of −0.40 pp [−0.80, 0.10]"),
        (replace(INT8, speedup=0.8, latency_ms=latency(7.5)), {}, "no_gain", "0.80× as fast as FP32"),
        (replace(INT8, drop_pp=None, drop_ci95_pp=None), {"drop": None}, "not_measured", "is unknown"),
        (
            replace(INT8, drop_pp=None, drop_ci95_pp=None, agreement=0.991),
            {"drop": 0.5},
            "not_measured",
            "agrees with FP32 on 99.10 % of the images: its accuracy is unknown, so max_drop_pp = 0.5",
        ),
        (replace(INT8, speedup=None, speedup_ci95=None), {}, "not_measured", "its speed-up is unknown"),
        (SIMULATED, {}, "not_measured", "[−0.20, 0.40] in simulation; its speed was not measured"),
        (SIMULATED, {}, "not_measured", "measure it on the device"),
        (replace(SIMULATED, runs_here=True), {}, "not_measured", "run the stage bench"),
        (replace(SIMULATED, drop_ci95_pp=(-2.0, 2.0)), {}, "not_measured", "max_drop_pp = 1 is undecided"),
        (replace(SIMULATED, drop_pp=5.0, drop_ci95_pp=(3.0, 6.0)), {}, "fail", "do not deploy it"),
        (
            Variant(
                "tensorrt-int8", "tensorrt", "int8", False, error="tensorrt is not installed", hint="pip it"
            ),
            {},
            "not_measured",
            "TensorRT was not run: tensorrt is not installed.",
        ),
    ],
)  # fmt: skip
def test_level_and_sentence(int8, limits, level, sentence):
    (verdict,) = verdicts(report(FP32, int8, **limits))
    assert verdict.level == level
    assert sentence in verdict.sentence


def simulated_run(rng):
    """Return True if the simulated drop meets the limit, the limit, and the measured variant."""
    images = round(50 * 100 ** rng.random())  # 50 to 5,000
    drop, limit = 0.03 * rng.random(), rng.choice([0.005, 0.01, 0.02])
    won = rng.choice([0.0, 0.002, 0.01, 0.03])
    lost, gained, _ = rng.multinomial(images, [drop + won, won, 1 - drop - 2 * won]).tolist()
    interval = drop_interval(lost, gained, images)
    return drop <= limit, 100 * limit, lossy(100 * (lost - gained) / images, *interval, images=images)


def test_of_a_thousand_simulated_runs_few_pass_or_fail_wrongly():
    rng = np.random.default_rng(0)
    levels = {True: [], False: []}
    for _ in range(1000):
        meets, limit, int8 = simulated_run(rng)
        (verdict,) = verdicts(report(FP32, int8, drop=limit))
        levels[meets].append(verdict.level)
    wrong = levels[True].count("fail") + levels[False].count("pass")
    decided = sum(each.count("fail") + each.count("pass") for each in levels.values())
    assert set(levels[True] + levels[False]) <= {"pass", "fail", "needs_data"}
    assert decided > 220  # else it would be easy to be right
    assert wrong <= 0.05 * decided
    assert wrong <= 0.01 * 1000


def test_without_a_limit_the_variant_that_loses_least_speaks_for_its_target():
    pruned = lossy(
        5.0, 4.0, 6.0, name="openvino-int8-pruned", pruned=True, speedup=5.0, latency_ms=latency(1.2)
    )
    (verdict,) = verdicts(report(FP32, pruned, INT8, drop=None))
    assert verdict.sentence.startswith("OpenVINO INT8 is 3.00× as fast")
    assert any(
        "OpenVINO INT8, pruned is 5.00× as fast" in step and "5.00 pp" in step for step in verdict.steps
    )
    (verdict,) = verdicts(report(FP32, pruned, INT8, drop=7.0))  # both pass: the faster one
    assert verdict.sentence.startswith("OpenVINO INT8, pruned is 5.00×")


ASSUMED = InputCheck(
    "preprocess-assumed", "no_pass", "preprocessing is assumed: ImageNet", "set load.preprocess"
)
CHANCE = InputCheck(
    "baseline-at-chance", "no_verdict", "FP32 is right on 10 % of 10 classes.", "check load.labels"
)


@pytest.mark.parametrize("by", ["interval", "point"])
def test_no_verdict_passes_where_the_input_is_doubted(by):
    (verdict,) = verdicts(report(FP32, INT8, by=by, checks=(ASSUMED,)))
    assert verdict.level == "needs_data" and "preprocessing is assumed: ImageNet" in verdict.sentence
    unjudged = replace(report(FP32, INT8), input_checks=(ASSUMED,))  # gates of a report without checks
    assert verdicts(unjudged)[0].level == "needs_data"
    assert verdicts(report(FP32, lossy(5.0, 4.0, 6.0), by=by, checks=(ASSUMED,)))[0].level == "fail"


def test_no_target_has_a_verdict_where_the_baseline_is_wrong():
    listed = verdicts(report(FP32, INT8, SIMULATED, checks=(ASSUMED, CHANCE)))
    assert [verdict.level for verdict in listed] == ["no_verdict"] * 2
    assert listed[0].sentence == "OpenVINO: FP32 is right on 10 % of 10 classes."
    assert listed[0].steps == ("check load.labels",)
    note = replace(CHANCE, effect="note")
    assert verdicts(report(FP32, INT8, checks=(note,)))[0].level == "pass"


@pytest.mark.parametrize(("high", "level"), [(5.8, "pass"), (6.5, "needs_data")])
def test_a_speed_up_within_the_noise_is_not_praised(high, level):
    base = replace(FP32, latency_ms=replace(latency(6.0), p50_ci95=(5.9, 6.1)))
    int8 = replace(INT8, speedup_over=FP32.name, latency_ms=replace(latency(2.0), p50_ci95=(1.0, high)))
    (verdict,) = verdicts(report(base, int8))
    assert verdict.level == level
    assert ("may be noise" in verdict.sentence) == (level == "needs_data")


@pytest.mark.parametrize("runs", [1, 49, 50])
def test_a_speed_up_of_few_runs_is_not_praised(run, runs):
    path = run["bench"] / "latency.json"
    measured = json.loads(path.read_text())
    for row in measured["variants"].values():
        row["samples_ms"] = row["samples_ms"][:runs]
    path.write_text(json.dumps(measured))
    gathered = gather(run, recipe="r", stages=STAGES)
    verdict = next(each for each in verdicts(gathered) if each.target == "openvino")
    reason = f"but only {runs} run{' was' if runs == 1 else 's were'} timed: time at least 50 (`--set bench."
    assert (reason in verdict.sentence) == (runs < 50)
    lines = [line for line in warnings(gathered) if "Few timed runs" in line]
    assert any(f"openvino-int8 {runs}," in line for line in lines) == (runs < 50)
    if runs < 50:
        assert verdict.level == "needs_data"


def test_noise_and_load_are_warned_of():
    noisy = replace(INT8, latency_ms=replace(latency(2.0), cv=0.12))
    environment = Environment(cores=2, load_average=(5.0, 1.0, 1.0), throttled=True)
    first, second, third = warnings(replace(report(FP32, noisy), environment=environment))
    assert "openvino-int8 12.0 %" in first
    assert "throttled" in second
    assert "load average 5.0 on 2 cores" in third
    assert warnings(replace(report(SIMULATED), environment=environment)) == ()  # nothing was timed
    assert warnings(report(FP32, INT8)) == ()


def test_the_advice_to_measure_again_works_on_a_stored_measurement():
    noisy = replace(INT8, latency_ms=replace(latency(2.0), cv=0.4))
    (verdict,) = verdicts(replace(report(FP32, noisy), environment=Environment(other_share=0.5)))
    for text in (verdict.sentence, warnings(report(FP32, noisy))[0]):
        (stage,) = re.findall("measure again on an idle machine, with `--[a-z]+ ([a-z]+)`", text)
        assert stage in [each.name for each in STAGES_OF_A_RUN]


def test_what_to_ship_comes_first_and_the_fastest_of_several_says_so():
    slow = replace(INT8, name="a-int8", target="a", latency_ms=latency(3.0))
    quick = replace(INT8, name="b-int8", target="b", latency_ms=latency(1.0))
    risky = replace(INT8, name="c-int8", target="c", drop_ci95_pp=(0.1, 5.0), latency_ms=latency(0.5))
    ranked = verdicts(report(SIMULATED, risky, slow, quick))
    assert [(verdict.target, verdict.level) for verdict in ranked] == [
        ("b", "pass"), ("a", "pass"), ("c", "needs_data"), ("tensorrt", "not_measured"),
    ]  # fmt: skip
    marked = [any("Fastest of the 2" in step for step in verdict.steps) for verdict in ranked]
    assert marked == [True, False, False, False]
    assert not any("Fastest" in step for verdict in verdicts(report(risky, slow)) for step in verdict.steps)


def test_a_pruned_variant_is_set_against_the_one_in_int8_without_pruning():
    pruned = replace(INT8, name="openvino-int8-pruned", pruned=True, latency_ms=latency(1.25), speedup=4.8)
    (verdict,) = verdicts(report(FP32, INT8, pruned))
    assert verdict.sentence.startswith("OpenVINO INT8, pruned is 4.80× as fast")
    assert all(
        text in verdict.steps[0] for text in ("1.25 ms", "OpenVINO INT8 without pruning 2.00 ms", "1.60×")
    )
    (busy,) = verdicts(report(FP32, INT8, pruned, environment=Environment(other_share=0.5)))
    assert not any("without pruning" in step for step in busy.steps)


FP16 = replace(FP32, name="openvino-fp16", precision="fp16", latency_ms=latency(1.5), speedup=4.0)
BF16 = replace(FP32, name="openvino-bf16", precision="bf16", latency_ms=latency(1.8), speedup=3.3)


def test_a_sixteen_bit_float_that_is_faster_than_int8_is_the_answer():
    fp16 = replace(FP16, drop_pp=0.0, drop_ci95_pp=(-0.1, 0.1))
    (verdict,) = verdicts(report(FP32, INT8, fp16))
    assert verdict.level == "pass" and verdict.sentence.startswith("OpenVINO FP16 is 4.00× as fast")
    assert any("INT8 brings no gain" in step and "FP16 is faster" in step for step in verdict.steps)


def test_of_simulated_variants_int8_is_the_answer_unless_it_misses_a_limit_or_is_absent():
    int8 = replace(SIMULATED, target="tensorrt", top1=0.9)
    fp16 = replace(
        int8, name="tensorrt-fp16", precision="fp16", top1=0.95, drop_pp=0.0, drop_ci95_pp=(-0.1, 0.1)
    )
    answers = [
        next(v for v in verdicts(report(FP32, *rows)) if v.target == "tensorrt").sentence
        for rows in ((fp16, int8), (fp16, replace(int8, drop_pp=5.0, drop_ci95_pp=(4.0, 6.0))), (fp16,))
    ]
    assert [sentence.split(" ")[1] for sentence in answers] == ["INT8", "FP16", "FP16"]


def test_a_sixteen_bit_float_that_misses_a_limit_does_not_fail_a_run_with_int8():
    slow = replace(FP16, latency_ms=latency(5.0), speedup=1.2, speedup_ci95=(1.1, 1.3), drop_pp=0.0)
    rows = (FP32, INT8, slow)
    missed = replace(report(*rows), gates=gates.judge(rows, None, 2.0, None)).missed
    alone = replace(report(FP32, slow), gates=gates.judge((FP32, slow), None, 2.0, None)).missed
    assert missed == () and [gate.variant for gate in alone] == ["openvino-fp16"]


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
    verdict = next(v for v in verdicts(report(FP32, *others, int8)) if v.target == "openvino")
    assert verdict.level == ("no_gain" if sentence else "pass")
    assert sentence in verdict.sentence
    assert ("no gain on this machine, " in verdict.sentence) == bool(sentence)


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({}, "no_gain"),
        ({"latency_ms": latency(2.5)}, "pass"),
        ({"precision": "fp16"}, "pass"),  # what it loses is another question
        ({"runs_here": False}, "pass"),
        ({"pruned": True}, "pass"),
    ],
)
def test_a_float_network_that_is_faster_in_another_runtime_is_named(change, level):
    """Regression: ONNX Runtime in float was twice as fast as OpenVINO in INT8 for a small network."""
    other = replace(FP32, name="b-fp32", target="b", runs_here=True, latency_ms=latency(1.5))
    int8 = replace(INT8, runs_here=True)
    verdict = next(
        v for v in verdicts(report(FP32, replace(other, **change), int8)) if v.target == "openvino"
    )
    assert verdict.level == level
    assert ("b FP32 is faster (1.50 ms against 2.00 ms)" in verdict.sentence) == (level == "no_gain")


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        (Environment(other_share=0.5), "needs_data"),
        (Environment(stolen_share=0.1), "needs_data"),
        (Environment(throttled=True), "needs_data"),
        (Environment(other_share=0.1, stolen_share=0.0), "pass"),
    ],
)
def test_nothing_timed_on_a_busy_machine_is_praised(environment, level):
    (verdict,) = verdicts(report(FP32, INT8, environment=environment))
    assert verdict.level == level
    assert ("measure again" in verdict.sentence) == (level == "needs_data")
    assert ("is 3.00× as fast" in verdict.sentence) == (level == "pass")
    (missed,) = verdicts(report(FP32, INT8, speed=4.0, environment=environment))
    assert missed.level == ("needs_data" if level == "needs_data" else "fail")
    assert "min_speedup = 4 is undecided" not in missed.sentence  # the disturbance is named once
    (slow,) = verdicts(report(FP32, lossy(5.0, 4.0, 6.0), environment=environment))
    assert slow.level == "fail"  # its drop has nothing to do with the load


@pytest.mark.parametrize(("own", "other"), [(10, 40), (40, 10)])
def test_the_fewest_runs_are_stated(own, other):
    base = replace(FP32, latency_ms=replace(latency(6.0), runs=other, p50_ci95=None))
    int8 = replace(INT8, speedup_over=FP32.name, latency_ms=replace(latency(2.0), runs=own, p50_ci95=None))
    (verdict,) = verdicts(report(base, int8))
    assert "only 10 runs were timed" in verdict.sentence


@pytest.mark.parametrize("interval", [(0.5, 1.5), (-0.5, 1.5), (0.0, 1.5), None])
def test_more_effort_is_advised_where_a_drop_is_certain(interval):
    int8 = replace(INT8, drop_pp=0.7, drop_ci95_pp=interval)
    (verdict,) = verdicts(report(FP32, int8, drop=0.1))
    assert any("quantize.effort" in step for step in verdict.steps) == (interval == (0.5, 1.5))


def test_layers_in_float_and_layers_of_unknown_precision_are_distinguished():
    layers = [
        LayerAudit(f"{precision}{i}", "Convolution", precision, weighted=True)
        for precision, count in (("int8", 3), ("fp16", 4), ("unknown", 1))
        for i in range(count)
    ]
    (verdict,) = verdicts(report(FP32, replace(INT8, audit=tuple(layers), weighted_layers=8)))
    assert any("4 of 8 layers" in each and "fp160, fp161, fp162" in each for each in verdict.steps)
    assert any("1 of 8 layers" in each and "unknown0" in each for each in verdict.steps)


@pytest.mark.parametrize("sums", ["pairs", "exact", None])
def test_only_a_processor_without_vnni_is_blamed(sums):
    slow = report(FP32, replace(INT8, speedup=0.8))
    (verdict,) = verdicts(replace(slow, environment=Environment(int8_sums=sums)))
    assert any("See the time per layer" in step for step in verdict.steps)
    assert any("VNNI" in step for step in verdict.steps) == (sums == "pairs")


@pytest.mark.parametrize(
    ("environment", "texts"),
    [
        (Environment(other_share=0.4), ["other work used 40 % of its processors"]),
        (Environment(other_share=0.1, cores=2, load_average=(5.0, 1.0, 1.0)), []),  # the load was before
        (
            Environment(other_share=0.0, stolen_share=0.11),
            ["gave 11 % of the processor time to other guests"],
        ),
    ],
)
def test_what_other_work_took_counts_more_than_the_load(environment, texts):
    lines = warnings(replace(report(FP32, INT8), environment=environment))
    assert len(lines) == len(texts)
    assert all(text in line for text, line in zip(texts, lines, strict=True))
