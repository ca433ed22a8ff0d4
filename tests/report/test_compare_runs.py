"""Comparison of runs: paired on equal images, else unpaired with a remark."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic import STAGES, synthetic_run

from edgeship.toolkit.core import statistics
from edgeship.toolkit.report import render
from edgeship.toolkit.report.compare_runs import Run, compare, differing_options, markdown
from edgeship.toolkit.report.gather import gather


def make(root, **options):
    folders = synthetic_run(root / "stages", **options)
    report = gather(folders, recipe="synthetic", stages=STAGES)
    render.write(report, root, evaluated=folders["evaluate"])
    return Run.read(root)


@pytest.fixture
def runs(tmp_path):
    return make(tmp_path / "rough", noise=0.6), make(tmp_path / "fine", noise=0.02)


def find(differences, name):
    return next(d for d in differences if d.variant == name)


def test_the_size_of_a_graph_is_not_set_against_that_of_an_engine(runs):
    rough, fine = runs
    built = tuple(replace(v, runs_here=True) for v in fine.report.variants)
    assert find(compare(runs), "tensorrt-int8").size_ratio == 1
    other = replace(fine, report=replace(fine.report, variants=built))
    assert find(compare((rough, other)), "tensorrt-int8").size_ratio is None


def test_same_images_are_compared_pairwise(runs, tmp_path):
    rough, fine = (
        np.load(tmp_path / n / "stages/evaluate/logits/openvino-int8-pruned.npy") for n in ("rough", "fine")
    )
    labels = np.load(tmp_path / "fine/stages/evaluate/labels.npy")
    drop, (low, high) = statistics.paired_drop(rough.argmax(1) == labels, fine.argmax(1) == labels)
    difference = find(compare(runs), "openvino-int8-pruned")
    assert difference.paired
    assert difference.drop_pp == drop < 0  # the second run is better: a drop below zero, as everywhere
    assert difference.drop_ci95_pp == (low, high)
    assert difference.drop_significant
    assert difference.p < 0.001


def test_the_same_run_twice_differs_in_nothing(runs):
    for difference in compare((runs[0], runs[0])):
        assert difference.drop_pp == 0
        assert not difference.drop_significant
        assert difference.size_ratio == 1
        assert difference.latency_significant in (False, None)


def test_other_images_are_not_paired(tmp_path):
    a, b = make(tmp_path / "a", seed=0), make(tmp_path / "b", seed=1)
    difference = find(compare((a, b)), "openvino-int8")
    assert not difference.paired
    assert "different images" in difference.remarks[0]
    v, w = (next(v for v in r.report.variants if v.name == "openvino-int8") for r in (a, b))
    assert difference.drop_pp == pytest.approx(100 * (v.top1 - w.top1))


def test_predictions_that_were_not_kept_widen_the_interval(runs):
    paired = find(compare(runs), "openvino-int8-pruned").drop_ci95_pp
    alone = find(compare((replace(runs[0], predictions=None), runs[1])), "openvino-int8-pruned")
    assert not alone.paired
    assert alone.drop_ci95_pp[1] - alone.drop_ci95_pp[0] > paired[1] - paired[0]
    assert "predictions were not kept" in alone.remarks[0]


def slower(run, factor, **changes):
    def slow(ms):
        low, high = ms.p50_ci95
        return replace(ms, p50=factor * ms.p50, p50_ci95=(factor * low, factor * high), **changes)

    variants = tuple(
        replace(v, latency_ms=slow(v.latency_ms)) if v.latency_ms else v for v in run.report.variants
    )
    return replace(run, report=replace(run.report, variants=variants))


def test_latency_beyond_the_noise_is_significant(runs):
    difference = find(compare((runs[0], slower(runs[0], 1.5))), "openvino-int8")
    assert difference.latency_ratio == pytest.approx(1 / 1.5)
    assert difference.latency_significant is True
    assert find(compare((runs[0], slower(runs[0], 1.0005))), "openvino-int8").latency_significant is False


def test_latency_of_another_device_is_not_judged(runs):
    difference = find(compare((runs[0], slower(runs[0], 1.5, measured_on="another"))), "openvino-int8")
    assert difference.latency_significant is None
    assert "vs another" in difference.remarks[0]


def within(run, part, **changes):
    return replace(run, report=replace(run.report, **{part: {**getattr(run.report, part), **changes}}))


def test_latency_of_a_busy_machine_is_not_judged(runs):
    slow = slower(runs[0], 1.5)
    for pair in ((within(runs[0], "environment", other_share=0.6), slow),
                 (runs[0], within(slow, "environment", other_share=0.6))):  # fmt: skip
        difference = find(compare(pair), "openvino-int8")
        assert difference.latency_significant is None
        assert difference.remarks == ("timed on a busy machine",)


def test_another_input_size_is_named(runs):
    a, b = (within(run, "model", input_px=size) for run, size in zip(runs, (224, 192), strict=True))
    assert "input 224 vs 192 px" in find(compare((a, b)), "openvino-int8").remarks
    assert not any("px" in remark for remark in find(compare((a, a)), "openvino-int8").remarks)


def test_markdown_has_a_row_per_variant_and_run(runs):
    text = markdown(runs, compare(runs))
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 2 + 2 * 5
    assert "significant" in text


def test_the_options_that_differ_are_listed(runs):
    first, second = (
        replace(
            run, report=replace(run.report, recipe={"name": name, "select": {"images": count, "seed": 0}})
        )
        for run, name, count in zip(runs, "ab", (10, 20), strict=True)
    )
    assert differing_options((first, second)) == {"select.images": ("10", "20")}
    assert markdown((first, second), ()).startswith(f"| option | {first.name} | {second.name} |\n| --- ")
    assert differing_options((first, first)) == differing_options(runs) == {}
