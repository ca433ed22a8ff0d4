"""Assembly of the report: figures unchanged, missing files and values listed."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import COMMAND, HERE, SIMULATED, STAGES, synthetic_run

from edgeship.targets._timing import noise_warning
from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.report import render
from edgeship.toolkit.report.formatting import calibration_images
from edgeship.toolkit.report.gather import gather
from edgeship.toolkit.report.verdict import warnings

PINNED = Path(__file__).with_name("report.json.gz")
PUBLIC = """
    name target precision pruned top1 top5 images measured_on drop_pp drop_ci95_pp agreement sqnr_db
    latency_ms throughput_ips size_bytes macs parameters int8_layers weighted_layers audit
""".split()  # noqa: SIM905 - a list of words reads better than a list of quotes


def report_of(folders, **gates):
    return gather(folders, recipe={"name": "synthetic"}, stages=STAGES, command=COMMAND, **gates)


def without_lists(value):
    """Leave out long lists of numbers."""
    if isinstance(value, dict):
        return {
            key: without_lists(item)
            for key, item in value.items()
            if key not in ("samples", "counts", "flips")
        }
    return [without_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def flat(value, path=""):
    """Return path -> value of every leaf."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    leaves = {} if items or value in ([], {}) else {path: value}
    for key, item in items:
        leaves |= flat(item, f"{path}/{key}")
    return leaves


def test_the_report_of_a_run_keeps_its_keys_their_order_and_its_figures(tmp_path):
    """report.json is as the version before the typed contracts wrote it; only the time of writing differs."""
    folders = synthetic_run(tmp_path / "run", images=120)
    written = without_lists(plain(report_of(folders, max_drop_pp=1.0, min_speedup=1.0, max_latency_ms=9.0)))
    written["created"] = None
    assert written["data"].pop("eval_outside_inference") is None  # newer keys
    assert written["data"].pop("calibration_images_selected") == 300
    for variant in written["variants"]:
        assert variant.pop("title") == "" and variant.pop("guard") is None
        if variant["latency_ms"]:
            own = variant["latency_ms"]
            low, high = own.pop("mean_ci95")
            assert low <= own["mean"] <= high and (own.pop("p99_ci95") is None) == (own["runs"] < 1000)
        assert variant.pop("file") == f"engines/{variant['target']}/{variant['name']}/model.xml"
    expected = flat(json.loads(gzip.decompress(PINNED.read_bytes())))
    found = flat(written)
    assert list(found) == list(expected)
    for path, value in expected.items():
        assert found[path] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), path


def by_name(report):
    return {v.name: v for v in report.variants}


def edit(folders, stage, name, change):
    path = folders[stage] / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_schema_1_has_its_public_keys_in_order(run):
    report = plain(report_of(run, max_drop_pp=1.0))
    top = ["schema", "recipe", "model", "data", "environment", "variants", "gates", "stages"]
    assert list(report)[: len(top)] == top
    assert list(report["model"])[:4] == ["name", "weights_sha256", "parameters", "macs"]
    assert list(report["data"])[:3] == ["name", "eval_images", "calibration_images"]
    assert list(report["environment"])[:4] == ["cpu", "instruction_sets", "cores", "versions"]
    assert list(report["variants"][0])[: len(PUBLIC)] == PUBLIC
    assert list(report["variants"][0]["latency_ms"])[:6] == ["batch", "p50", "p90", "p99", "mean", "runs"]
    assert list(report["gates"][0])[:4] == ["name", "limit", "value", "passed"]
    assert list(report["stages"][0]) == ["name", "seconds", "cached"]
    json.dumps(report, allow_nan=False)


def test_figures_are_those_of_the_stages(run):
    report = report_of(run)
    accuracy = json.loads((run["evaluate"] / "accuracy.json").read_text())["variants"]
    samples = json.loads((run["bench"] / "latency.json").read_text())["variants"]
    for name, variant in by_name(report).items():
        assert variant.top1 == accuracy[name]["top1"]
        if name in samples:
            ordered = sorted(samples[name]["samples_ms"])
            assert variant.latency_ms.p50 == ordered[149]  # trtexec's rule: index N - 1 - int(0.5 N)
            assert variant.latency_ms.p99 == ordered[296]
            assert variant.latency_ms.mean == pytest.approx(np.mean(ordered))
    int8 = by_name(report)["openvino-int8"]
    assert int8.drop_pp == accuracy["openvino-int8"]["drop_pp"]
    assert (int8.int8_layers, int8.weighted_layers) == (17, 18)
    assert int8.speedup == by_name(report)["openvino-fp32"].latency_ms.p50 / int8.latency_ms.p50
    assert int8.speedup_over == "openvino-fp32"
    assert by_name(report)["openvino-int8-pruned"].macs == 90_000_000
    assert (report.data.calibration_images, report.data.calibration_images_selected) == (300, 300)
    assert report.environment.cpu == "Synthetic CPU @ 2.0 GHz"


def test_a_calibration_that_converged_early_names_both_numbers(run):
    (run["calibrate"] / "float" / "statistics.json").write_text('{"images": 112}')
    assert calibration_images(report_of(run).data) == "112 of 300 images"
    (run["calibrate"] / "float" / "statistics.json").unlink()
    assert report_of(run).data.calibration_images is None


def test_the_samples_that_are_kept_are_not_biased_by_the_order_of_runs(run):
    def alternate(content):
        content["variants"]["openvino-int8"]["samples_ms"] = [
            1.0,
            3.0,
        ] * 1500  # fast after fast, slow after slow

    edit(run, "bench", "latency.json", alternate)
    latency = by_name(report_of(run))["openvino-int8"].latency_ms
    assert (latency.runs, len(latency.samples)) == (3000, 1000)
    assert 400 < latency.samples.count(1.0) < 600


def test_noise_is_what_the_timing_calls_noise(run):
    pauses = [1.0] * 96 + [40.0] * 4  # of the system

    def pause(content):
        content["variants"]["openvino-int8"]["samples_ms"] = pauses

    edit(run, "bench", "latency.json", pause)
    report = report_of(run)
    assert noise_warning(pauses) == ""
    assert by_name(report)["openvino-int8"].latency_ms.cv == 0
    assert not any("Noisy" in line and "openvino-int8 " in line for line in warnings(report))


def test_the_reference_is_not_compared_with_itself(run):
    reference = by_name(report_of(run))["onnxruntime-fp32"]
    assert reference.drop_pp is reference.drop_ci95_pp is reference.agreement is reference.sqnr_db is None
    assert reference.speedup is None


def test_a_simulation_is_never_a_measurement(run):
    report = report_of(run)
    simulated = by_name(report)["tensorrt-int8"]
    assert (simulated.kind, simulated.measured_on) == ("simulated", SIMULATED)
    assert simulated.latency_ms is simulated.speedup is simulated.throughput_ips is None
    assert (by_name(report)["openvino-int8"].kind, by_name(report)["openvino-int8"].measured_on) == (
        "measured",
        HERE,
    )
    assert any(each.startswith("latency of tensorrt-int8: ") for each in report.missing)


def test_infinite_sqnr_is_no_figure(run):
    edit(
        run,
        "evaluate",
        "accuracy.json",
        lambda c: c["variants"]["openvino-int8"].update(sqnr_db=float("inf")),
    )
    assert by_name(report_of(run))["openvino-int8"].sqnr_db is None


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("bench", "bench: not run"),
        ("evaluate", "evaluate: not run"),
        ("select", "select: not run"),
        ("compile", "compile: not run"),
        ("export", "export: not run"),
        ("load", "load: not run"),
    ],
)
def test_every_part_may_be_missing_and_is_named(run, absent, words):
    del run[absent]
    assert words in report_of(run, max_drop_pp=1.0).missing


def gaps(value, path=()):
    """Return all key paths of a JSON value; of lists and maps of maps, those of the first item."""
    if isinstance(value, list):
        value = dict(enumerate(value[:1])) if value and isinstance(value[0], dict) else {}
    elif (
        isinstance(value, dict) and len(value) > 2 and all(isinstance(item, dict) for item in value.values())
    ):
        value = dict(list(value.items())[:1])
    for key, item in value.items() if isinstance(value, dict) else ():
        if isinstance(key, str):
            yield (*path, key)
        yield from gaps(item, (*path, key))


FILES = "model plan history graphs manifest findings quantize sensitivity compiled accuracy latency device"


@pytest.mark.parametrize("name", FILES.split())
def test_a_null_anywhere_leaves_a_report(run, name):
    (path,) = (folder / f"{name}.json" for folder in run.values() if (folder / f"{name}.json").is_file())
    whole = path.read_text()
    for place in gaps(json.loads(whole)):
        content = json.loads(whole)
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = None
        path.write_text(json.dumps(content))
        report = report_of(run, max_drop_pp=1.0, min_speedup=1.0, max_latency_ms=9.0)
        assert render.markdown(report), place
        assert render.html(report), place


def test_nothing_at_all_is_still_a_report():
    report = gather({}, recipe="nothing", stages=[])
    assert report.variants == ()
    assert report.model.macs is None
    assert "evaluate: not run" in report.missing


def test_a_cut_off_file_is_named(run):
    path = run["bench"] / "latency.json"
    path.write_text(path.read_text()[:100])
    report = report_of(run)
    assert any("latency.json is not valid JSON" in line for line in report.missing)
    assert by_name(report)["openvino-int8"].latency_ms is None


def test_cut_off_logits_are_named_and_the_rest_goes_on(run):
    path = run["evaluate"] / "logits" / "openvino-int8.npy"
    path.write_bytes(path.read_bytes()[:500])
    report = report_of(run)
    assert any(line.startswith("evaluate: logits of openvino-int8") for line in report.missing)
    assert by_name(report)["openvino-int8"].paired is None
    assert by_name(report)["openvino-int8-pruned"].paired is not None


def test_a_variant_without_numbers_has_no_accuracy_and_the_reason(run):
    def leave_out(content):
        content["variants"].pop("tensorrt-int8")
        content["left_out"] = {"tensorrt-int8": "computes NaN"}

    edit(run, "evaluate", "accuracy.json", leave_out)
    report = report_of(run)
    row = by_name(report)["tensorrt-int8"]
    assert row.top1 is None and "computes NaN" in row.warnings
    assert "tensorrt-int8: not run (computes NaN)" in report.missing


def test_a_target_that_failed_keeps_its_reason(run):
    def fail(compiled):
        compiled["variants"]["tensorrt-int8"].update(
            error="tensorrt is not installed", hint="pip install tensorrt", audit=[]
        )

    edit(run, "compile", "compiled.json", fail)
    edit(run, "evaluate", "accuracy.json", lambda c: c["variants"].pop("tensorrt-int8"))
    report = report_of(run)
    failed = by_name(report)["tensorrt-int8"]
    assert (failed.kind, failed.error, failed.hint) == (
        "not run",
        "tensorrt is not installed",
        "pip install tensorrt",
    )
    assert "tensorrt-int8: not run (tensorrt is not installed)" in report.missing


def test_without_labels_agreement_remains_and_accuracy_is_null(tmp_path):
    report = report_of(synthetic_run(tmp_path / "run", labelled=False))
    int8 = by_name(report)["openvino-int8"]
    assert int8.top1 is int8.drop_pp is int8.paired.lost is int8.paired.ece is None
    assert 0.9 < int8.agreement < 1
    assert int8.paired.changed == round((1 - int8.agreement) * 600)
    assert any(each.startswith("accuracy of openvino-int8 (") for each in report.missing)


def test_measurements_other_than_latency_are_reported_with_their_method(run):
    report = report_of(run)
    int8 = by_name(report)["openvino-int8"]
    assert (int8.memory_bytes, int8.resident_bytes) == (32_000_000, 24_000_000)
    assert int8.end_to_end_ms == pytest.approx(2.6)  # the median of three
    assert int8.energy_mj is None
    assert int8.batch_throughput["1"] == int8.throughput_ips == 625
    assert report.details["bench"] == {
        "how": {"memory_bytes": "a process of its own", "end_to_end_ms": "resize, crop, inference"},
        "not_measured": {"energy_mj": "no power sensor"},
    }
    page = render.html(report)
    for text in ("24.0 MB", "32.0 MB", "2.60 ms", "Not measured: energy per image (no power sensor)."):
        assert text in page
    assert "Peak memory while loading" in page


@pytest.mark.parametrize(
    ("sums", "text"),
    [("exact", "exact: no overflow"), ("pairs", "pairs in 16 bits, which can overflow")],
)
def test_the_page_says_how_the_processor_adds_int8_products(run, sums, text):
    edit(run, "bench", "device.json", lambda device: device.update(int8_sums=sums))
    page = render.html(report_of(run))
    assert text in page
    assert "4 % of the processors, 0 % taken" in page
    assert "<dt>Timed</dt><dd>2026-01-02 03:04:05 UTC</dd>" in page  # and not when it was rendered


def test_a_report_of_an_earlier_bench_has_no_such_lines(run):
    keys = ("other_share", "stolen_share", "int8_sums", "throttled", "timed")
    edit(run, "bench", "device.json", lambda device: [device.pop(key) for key in keys])
    page = render.html(report_of(run))
    assert "INT8 sums" not in page
    assert "<dt>Throttled for heat</dt><dd>unknown</dd>" in page


@pytest.mark.parametrize(("stage", "figure"), [("bench", "latency of"), ("evaluate", "accuracy of")])
def test_a_stage_that_was_not_run_is_named_once(run, stage, figure):
    del run[stage]
    missing = report_of(run).missing
    assert f"{stage}: not run" in missing
    assert not any(line.startswith(figure) for line in missing)
