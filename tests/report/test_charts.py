"""Charts: figures that Plotly accepts, with the report's numbers in them."""

from dataclasses import replace

import pytest
from synthetic import CLASSES, STAGES

from edgeship.toolkit.core.results import LayerAudit
from edgeship.toolkit.report import formatting
from edgeship.toolkit.report.chart import log_axis
from edgeship.toolkit.report.charts import charts
from edgeship.toolkit.report.gather import gather
from edgeship.toolkit.report.quantization_charts import clipping, frontier, sensitivity
from edgeship.toolkit.runs.quantized import (
    ActivationScale,
    LayerSensitivity,
    PruningCandidate,
    PruningSummary,
    QuantizationSummary,
    Sensitivity,
)


@pytest.fixture
def report(run):
    return gather(run, recipe="synthetic", stages=STAGES, max_drop_pp=1.0)


def coloured(value, key=""):
    """Replace colour names by a real colour."""
    if key == "color":
        return ["#123456"] * len(value) if isinstance(value, list) else "#123456"
    if isinstance(value, dict):
        return {name: coloured(item, name) for name, item in value.items()}
    return [coloured(item) for item in value] if isinstance(value, list) else value


def test_plotly_accepts_every_figure(report):
    import plotly.graph_objects as go

    for name, chart in charts(report).items():
        for traces in (chart.data, *chart.choices.values()):
            go.Figure(coloured(traces), coloured(chart.layout))  # raises on an unknown property
        assert chart.alt, name


def test_every_part_of_the_run_has_its_chart(report):
    assert set(charts(report)) == {
        "tradeoff", "drop", "latency", "throughput", "sqnr", "sensitivity", "activations", "weights",
        "clipping", "widths", "refit", "frontier", "classes-openvino-int8",
        "classes-openvino-int8-pruned", "classes-tensorrt-int8", "layers-openvino", "layers-onnxruntime",
    }  # fmt: skip


def test_no_figures_no_charts():
    assert charts(gather({}, recipe="nothing", stages=[])) == {}


def test_tradeoff_and_drop_hold_the_reports_numbers(report):
    drawn = charts(report)
    points = {(trace["x"][0], trace["y"][0]) for trace in drawn["tradeoff"].data}
    assert points == {(v.latency_ms.p50, 100 * v.top1) for v in report.variants if v.latency_ms}
    for trace, v in zip(drawn["drop"].data, report.variants[1:], strict=True):
        low, high = v.drop_ci95_pp
        assert trace["x"] == [v.drop_pp]
        assert v.drop_pp - trace["error_x"]["arrayminus"][0] == pytest.approx(low)
        assert v.drop_pp + trace["error_x"]["array"][0] == pytest.approx(high)


def test_labels_that_would_collide_become_a_legend(report):
    rows = [v for v in report.variants if v.latency_ms]
    distinct = [replace(v, top1=top1) for v, top1 in zip(rows, (0.9, 0.8, 0.7, 0.6), strict=True)]
    together = [replace(v, top1=0.9, latency_ms=rows[0].latency_ms) for v in rows]
    spacious, crowded = (
        charts(replace(report, variants=tuple(each)))["tradeoff"] for each in (distinct, together)
    )
    assert spacious.layout["showlegend"] is False
    assert {trace["mode"] for trace in spacious.data} == {"markers+text"}
    assert crowded.layout["showlegend"] is True
    assert {trace["mode"] for trace in crowded.data} == {"markers"}


def test_log_ticks_can_be_read_alone():
    axis = log_axis("ms", 0.3, 7.0)
    assert axis["ticktext"][:6] == ["0.1", "0.2", "0.5", "1", "2", "5"]


def test_what_is_simulated_is_hollow(report):
    symbols = {t["name"]: t["marker"]["symbol"] for t in charts(report)["drop"].data}
    assert symbols["TensorRT INT8"] == "diamond-open"
    assert symbols["OpenVINO INT8"] == "diamond"


def test_a_layer_that_runs_in_float_stands_out(report):
    trace = next(t for t in charts(report)["layers-openvino"].data if t["name"] == "OpenVINO INT8")
    colours = dict(zip(trace["y"], trace["marker"]["color"], strict=True))
    assert [name for name, colour in colours.items() if colour == "@orange"] == ["layer2.0.conv1"]


def test_histogram_bins_are_merged_without_losing_a_count(report):
    tensors = report.details["quantize"]["openvino"]["activations"]
    name, tensor = next(iter(tensors.items()))
    bars, low, high, *others = charts(report)["activations"].choices[name]
    assert len(bars["y"]) == 64
    assert sum(bars["y"]) == sum(tensor["counts"])
    assert (low["x"][0], high["x"][0]) == pytest.approx((-128 * tensor["scale"], 127 * tensor["scale"]))
    assert bars["x"][0] - bars["width"] / 2 == pytest.approx(tensor["low"])
    assert bars["x"][-1] + bars["width"] / 2 == pytest.approx(tensor["high"])
    assert len(others) == 4  # two clip points of each of the other two graphs


@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "points"),
    [("int8", 0.5, 0, (-64.0, 63.5)), ("uint8", 0.5, 0, (0.0, 127.5)), ("uint8", 0.1, 55, (-5.5, 20.0))],
)
def test_clip_points_by_hand(dtype, scale, zero, points):
    assert ActivationScale(dtype, scale, zero, 0.0, 1.0).clip_points == pytest.approx(points)


def test_the_part_of_a_range_that_is_kept():
    tensor = ActivationScale("uint8", scale=0.01, zero_point=0, low=0.0, high=5.1)
    tensors = {"a": tensor, "b": replace(tensor, scale=1.0), "c": replace(tensor, high=0.0)}
    chart = clipping({"openvino": QuantizationSummary(tensors)})
    assert chart.data[0]["y"] == pytest.approx([50.0, 100.0, 100.0])


def test_channels_of_a_dropped_block_are_gone(report):
    before, after = charts(report)["widths"].data
    places = dict(zip(before["x"], zip(before["y"], after["y"], strict=True), strict=True))
    assert places["layer1.0.inner1"] == (64, 48)
    assert places["layer4.1.inner1"] == (512, 0)
    assert places["stream4"] == (512, 512)


def test_the_knee_is_where_accuracy_stops_paying():
    rows = [PruningCandidate(m, top1=t) for m, t in [(1, 0.50), (2, 0.78), (3, 0.80), (4, 0.81), (5, 0.82)]]
    knee = next(
        trace for trace in frontier(PruningSummary(frontier=tuple(rows))).data if trace["name"] == "knee"
    )
    assert (knee["x"], knee["y"]) == ([2], [78.0])
    assert frontier(PruningSummary(frontier=tuple(rows[:1]))) is None
    unlabelled = [
        PruningCandidate(m, expected_drop_pp=82 - 100 * t) for m, t in [(1, 0.50), (2, 0.78), (5, 0.82)]
    ]
    assert frontier(PruningSummary(frontier=tuple(unlabelled))).data[1]["x"] == [2]


def test_a_layer_without_a_time_has_no_bar_and_is_fused_only_where_the_runtime_says_so(report):
    layers = (
        LayerAudit("conv", "Convolution", "int8", True, time_ms=0.25),
        LayerAudit("add", "Add", "int8", False, fused=True),
        LayerAudit("other", "Convolution", "int8", True),
    )
    (bare,) = (v for v in report.variants if v.name == "openvino-int8")
    int8 = replace(bare, audit=layers)
    chart = charts(replace(report, variants=(int8,)))["layers-openvino"]
    assert (chart.data[0]["x"], chart.data[0]["y"]) == ([0.25], ["conv"])
    assert chart.layout["yaxis"]["categoryarray"] == ["conv"]
    assert [formatting.layer_time(layer, int8) for layer in layers] == ["0.250 ms", "fused", "not known"]
    total = formatting.layer_total(int8)
    assert total.startswith("0.250 ms in 1 timed layer,") and "1 listed layer" in total
    assert f"without the profiler takes {formatting.milliseconds(int8.latency_ms.p50)}" in total
    untimed = replace(int8, audit=layers[1:])
    assert formatting.layer_total(untimed) == ""
    assert formatting.layer_time(layers[1], untimed) == "not measured"


def test_a_long_tail_does_not_squeeze_the_medians_together(report):
    def range_of(p99):
        variants = tuple(
            replace(v, latency_ms=replace(v.latency_ms, p99=p99)) if v.latency_ms else v
            for v in report.variants
        )
        return charts(replace(report, variants=variants))["tradeoff"].layout["xaxis"]["range"]

    slowest = max(v.latency_ms.p50 for v in report.variants if v.latency_ms)
    assert range_of(500.0) == [0, pytest.approx(2.5 * slowest)]
    assert range_of(1.1 * slowest) == [0, pytest.approx(1.54 * slowest)]


def test_pruned_variants_have_a_marker_of_their_own_in_every_precision(report):
    (int8,) = (v for v in report.variants if v.name == "openvino-int8-pruned")
    simulated = replace(int8, precision="fp32", kind="simulated")
    chart = charts(replace(report, variants=(int8, simulated, replace(int8, pruned=False))))["tradeoff"]
    assert {t["marker"]["symbol"] for t in chart.data} == {"diamond-cross", "circle-cross-open", "diamond"}


def test_whiskers_stay_inside_the_plot_and_within_0_and_100_percent(report):
    sure = tuple(
        replace(v, top1=0.9915, drop_pp=0.0, drop_ci95_pp=(-1.03, 1.03)) if v.drop_ci95_pp else v
        for v in report.variants
    )
    long = tuple(replace(v, latency_ms=replace(v.latency_ms, p99=900.0)) if v.latency_ms else v for v in sure)
    chart = charts(replace(report, variants=long))["tradeoff"]
    (left, right), (bottom, top) = chart.layout["xaxis"]["range"], chart.layout["yaxis"]["range"]
    whiskers = [trace for trace in chart.data if "error_y" in trace]
    assert len(whiskers) == 3
    for trace in chart.data:
        assert left < trace["x"][0] + trace["error_x"]["array"][0] <= right
    for trace in whiskers:
        assert trace["y"][0] + trace["error_y"]["array"][0] == pytest.approx(100.0)
        assert trace["y"][0] - trace["error_y"]["arrayminus"][0] == pytest.approx(99.15 - 1.03)
        assert bottom < 99.15 - 1.03 and top > 100.0


def test_drops_per_class_have_the_whiskers_of_their_intervals(report):
    chart = charts(report)["classes-openvino-int8-pruned"]
    v = next(v for v in report.variants if v.name == "openvino-int8-pruned")
    rows = {CLASSES[c.label]: c for c in v.paired.classes}
    (bars,) = chart.data
    for name, drop, above, below in zip(
        bars["y"], bars["x"], bars["error_x"]["array"], bars["error_x"]["arrayminus"], strict=True
    ):
        low, high = rows[name].drop_ci95_pp
        assert drop == pytest.approx(100 * (rows[name].top1_reference - rows[name].top1))
        assert (drop - below, drop + above) == pytest.approx((low, high))
    older = replace(
        v, paired=replace(v.paired, classes=tuple(replace(c, drop_ci95_pp=None) for c in rows.values()))
    )
    (bars,) = charts(replace(report, variants=(older,)))[f"classes-{v.name}"].data
    assert set(bars["error_x"]["array"]) == {0.0}


def test_only_layers_that_cost_are_in_the_chart_of_costs():
    rows = [
        LayerSensitivity(name, drop_db=drop)
        for name, drop in (("a", 0.5), ("b", -1.0), ("c", 0.0), ("d", 2.0))
    ]
    (bars,) = sensitivity({"openvino": Sensitivity(tuple(rows))}).data
    assert (bars["y"], bars["x"]) == (["d", "a"], [2.0, 0.5])
    assert sensitivity({"openvino": Sensitivity(tuple(rows[1:3]))}) is None


def test_an_expected_drop_keeps_its_sign_and_better_is_up():
    rows = [PruningCandidate(m, expected_drop_pp=drop) for m, drop in ((1, 9.0), (2, 1.0), (3, 0.0))]
    chart = frontier(PruningSummary(frontier=tuple(rows)))
    assert chart.data[0]["y"] == [9.0, 1.0, 0.0]
    assert chart.layout["yaxis"]["autorange"] == "reversed"
    assert chart.data[1]["y"] == [1.0]


def test_the_frontier_has_the_dense_networks_as_competitors(report):
    rows = [PruningCandidate(3, 1.6, expected_drop_pp=0.0), PruningCandidate(1, 1.0, None, 0.4, chosen=True)]
    plain = frontier(PruningSummary(frontier=tuple(rows)))
    drawn = frontier(PruningSummary(frontier=tuple(rows)), report.variants)
    assert drawn.data[:3] == plain.data
    target = next(v.target for v in report.variants if v.pruned and v.precision == "int8" and v.latency_ms)
    expected = {
        (v.latency_ms.p50, v.drop_pp or 0.0)
        for v in report.variants
        if v.target == target and v.precision in ("fp32", "int8") and v.latency_ms
    }
    assert {(trace["x"][0], trace["y"][0]) for trace in drawn.data[3:]} == expected
    assert len(expected) >= 3 and all("measured" in trace["name"] for trace in drawn.data[3:])
