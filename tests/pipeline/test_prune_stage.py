"""The prune stage: caching, resuming, machine key with a latency goal only; and its latency table."""

import re
import time
from dataclasses import replace

import pytest
import torch

from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.progress import listening
from edgeship.toolkit.core.typed_json import from_json, read_as
from edgeship.toolkit.models import weights
from edgeship.toolkit.models.resnet import architecture, build, macs
from edgeship.toolkit.pipeline import Recipe, Store, distillation_time, pruning, run
from edgeship.toolkit.pipeline.latency_table import LatencyTable
from edgeship.toolkit.pipeline.stages import STAGES
from edgeship.toolkit.prune import width_search
from edgeship.toolkit.prune.time_budget import TimeBudget
from edgeship.toolkit.report import quantization_charts
from edgeship.toolkit.runs.network import ExportedGraphs
from edgeship.toolkit.runs.quantized import PruningSummary

SIZE = 8
NARROW = {"method": "obs", "keep_ratio": 0.5, "channel_multiple": 1, "images": 30, "flip_augment": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = build(architecture("resnet20", classes=10, width=8), seed=0).eval()
    return weights.save(model, tmp_path_factory.mktemp("net"))


@pytest.fixture
def start(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeship.toolkit.core.threads.granted_cores", lambda: 4)

    def start(prune, until="prune", **sections):
        table = {
            "load": {"weights": str(checkpoint)},
            "export": {"size": SIZE},
            "select": {"source": "digits:train", "images": 8},
            "evaluate": {"source": "digits:test"},
            "prune": prune,
            **sections,
        }
        return run(Recipe.build(table), store=Store(tmp_path / "store"), until=until)

    return start


def test_half_the_channels_go_and_the_run_is_cached(start):
    first = start(NARROW, until="export")
    small = weights.load(first.folder("finetune")).model
    assert small.architecture.widths.inner[0][0] == (4,)
    plan = read_json(first.folder("prune") / "plan.json")
    graphs = ExportedGraphs.read(first.folder("export")).graphs
    assert graphs["pruned"].macs == macs(small.architecture, SIZE) == plan["macs_after"]
    again = start(NARROW, bench={"threads": 2}, compile={"targets": ["onnxruntime"]})
    assert again.stages[-1].cached  # neither matters where nothing is timed


def test_what_a_search_tried_is_drawn_as_a_frontier(start):
    found = start(
        {
            "method": "magnitude",
            "max_expected_drop_pp": 40.0,
            "channel_multiple": 1,
            "images": 30,
            "flip_augment": False,
        }
    )
    plan = read_json(found.folder("prune") / "plan.json")
    drawn = quantization_charts.frontier(from_json(plan, PruningSummary, ""))
    line, knee, chosen = drawn.data
    assert line["x"] == sorted(row["macs"] for row in plan["frontier"])
    assert line["x"][-1] == plan["macs_before"] and line["y"][-1] == 0.0
    assert chosen["x"] == [plan["macs_after"]] and chosen["y"] == [plan["expected_drop_pp"]]
    assert knee["x"][0] in line["x"]
    single = read_as(start(NARROW).folder("prune") / "plan.json", PruningSummary)  # one candidate
    assert quantization_charts.frontier(single) is None


def test_only_a_latency_binds_it_to_the_machine():
    stage = next(stage for stage in STAGES if stage.name == "prune")
    assert not stage.on_device(Recipe.build({"prune": {"method": "obs", "macs_ratio": 0.5}}))
    assert stage.on_device(Recipe.build({"prune": {"method": "obs", "latency_ratio": 0.5}}))


def test_an_interrupted_pass_goes_on_and_leaves_nothing_behind(start, tmp_path):
    def stop(label, done, total):
        if label == "pruning" and done == 4:
            raise KeyboardInterrupt

    def states():
        return list((tmp_path / "store" / "partial").rglob("repair-*.pt"))

    with listening(stop), pytest.raises(KeyboardInterrupt, match="interrupted in stage 'prune'"):
        start(NARROW)
    (state,) = states()
    reached = [torch.load(state, weights_only=True)["done"]]

    def follow(label, done, total):
        if label == "pruning" and state.is_file():
            reached.append(torch.load(state, weights_only=True)["done"])

    with listening(follow):
        start(NARROW)
    assert reached == sorted(reached) and reached[0] == 4 and reached[-1] == 9
    assert not states()


class Scripted:
    """A stopwatch of a made-up machine: a part for every inference, and a part for every multiplication."""

    per_mac = 1e-6

    def __init__(self, names, size, threads, table):
        assert (names, size, threads) == (("openvino",), SIZE, 3)
        self.size = size

    def __enter__(self):
        return lambda arch: 0.5 + self.per_mac * macs(arch, self.size) ** 1.02

    def __exit__(self, *_):
        pass


LATENCY = {
    "method": "magnitude",
    "latency_ratio": 0.7,
    "channel_multiple": 1,
    "images": 30,
    "flip_augment": False,
}
WHERE = {"compile": {"targets": ["openvino"]}, "bench": {"threads": 3}}


def test_a_latency_is_met_and_predicted(start, monkeypatch):
    monkeypatch.setattr(pruning, "LatencyTable", Scripted)
    plan = read_json(start(LATENCY, **WHERE).folder("prune") / "plan.json")
    assert plan["latency_after_ms"] / plan["latency_before_ms"] == pytest.approx(0.7, abs=0.03)
    assert plan["latency_predicted_ms"] == pytest.approx(plan["latency_after_ms"], rel=0.05)


def test_a_gain_under_three_percent_is_refused_with_the_figures(start, monkeypatch, tmp_path):
    monkeypatch.setattr(pruning, "LatencyTable", Scripted)
    with pytest.raises(ModelError, match=r"\d\.\d{3} ms dense, \d\.\d{3} ms") as caught:
        start({**LATENCY, "latency_ratio": 0.985}, **WHERE)
    dense_ms, pruned_ms = (float(ms) for ms in re.findall(r"(\d\.\d+) ms", str(caught.value)))
    assert 0.97 * dense_ms < pruned_ms < dense_ms
    assert "less than 3% gained" in str(caught.value) and "keep the dense INT8 model" in caught.value.hint
    assert not list((tmp_path / "store" / "objects").rglob("plan.json"))
    monkeypatch.setattr(Scripted, "per_mac", 1e-5)  # where multiplications count, the same goal may pay
    start({**LATENCY, "latency_ratio": 0.95}, **WHERE)


def test_a_latency_out_of_reach_says_what_is_in_reach(start, monkeypatch):
    monkeypatch.setattr(pruning, "LatencyTable", Scripted)
    monkeypatch.setattr(Scripted, "per_mac", 1e-9)
    with pytest.raises(ModelError, match=r"0\.70 of 0\.50\d ms cannot be met; (0\.99|1\.00) can") as caught:
        start(LATENCY, **WHERE)
    assert "prune.latency_ratio" in caught.value.hint


JOINT = {**LATENCY, "latency_ratio": 0.6, "scope": "joint", "budget_s": "30s"}


@pytest.fixture
def ticks(monkeypatch):
    """A clock that a look moves by a fiftieth of a second, so that a busy machine changes nothing."""
    seconds = [0.0]

    def now():
        seconds[0] += 0.02
        return seconds[0]

    def budget(recipe, file, used_s=0.0):
        limit_s = recipe.prune.budget_s
        return None if limit_s is None else TimeBudget(limit_s, file, used_s=used_s, now=now)

    monkeypatch.setattr(distillation_time, "time_budget", budget)
    return seconds


def test_a_budget_is_split_over_search_and_distillation_and_kept(start, monkeypatch, ticks):
    monkeypatch.setattr(pruning, "LatencyTable", Scripted)
    found = start(JOINT, until="finetune", finetune={"images": 64}, **WHERE)
    assert 28.5 < ticks[0] < 30
    plan = read_json(found.folder("prune") / "plan.json")
    assert plan["latency_after_ms"] / plan["latency_before_ms"] == pytest.approx(0.6, abs=0.06)
    assert 0 < read_json(found.folder("prune") / "clock.json") < 20
    history = read_json(found.folder("finetune") / "history.json")
    assert len(history["score"]) > 10
    small = weights.load(found.folder("finetune")).model
    assert small.architecture == weights.load(found.folder("prune")).model.architecture
    again = start(JOINT, until="finetune", finetune={"images": 64}, **WHERE)
    assert again.stages[-1].cached
    assert read_as(found.folder("prune") / "plan.json", PruningSummary).frontier[-1].chosen


def test_a_budget_used_up_by_the_search_keeps_its_result(start, monkeypatch, ticks):
    class Slow(Scripted):
        def __enter__(self):
            measure = super().__enter__()

            def slow(arch):
                ticks[0] += 0.5
                return measure(arch)

            return slow

    monkeypatch.setattr(pruning, "LatencyTable", Slow)
    found = start({**JOINT, "budget_s": 5}, until="finetune", **WHERE)
    plan = read_json(found.folder("prune") / "plan.json")
    used_s = read_json(found.folder("prune") / "clock.json")
    (warning,) = [text for text in plan["warnings"] if "budget_s" in text]
    assert used_s > 4.75 and "distillation is left out" in warning
    assert float(re.search(r"took (\d+)", warning)[1]) == pytest.approx(used_s, abs=1)
    assert read_json(found.folder("finetune") / "history.json") == {}
    pruned, tuned = (weights.load(found.folder(name)).model for name in ("prune", "finetune"))
    assert torch.equal(pruned.fc.weight, tuned.fc.weight)


def test_the_stopwatch_tells_wide_from_narrow_and_remembers(tmp_path, monkeypatch):
    wide = architecture("resnet20", classes=10, width=64)
    narrow = width_search.uniform(wide, 0.25, 8)
    table = tmp_path / "latencies.json"
    with LatencyTable(("openvino",), 16, 1, table) as measure:
        dense_ms, small_ms = measure(wide), measure(narrow)
        assert small_ms < 0.8 * dense_ms
    built = []
    whole = LatencyTable._built
    monkeypatch.setattr(LatencyTable, "_built", lambda *args: built.append(args) or whole(*args))
    with LatencyTable(("openvino",), 16, 1, table) as measure:  # after an interrupted pass
        assert (measure(wide), measure(narrow)) == (dense_ms, small_ms)
        assert len(built) == 1  # the reference of all timings
        measure(narrow)
        assert len(built) == 2  # asked again, it is no longer what was believed
        assert measure(wide) == dense_ms
    with LatencyTable(("openvino",), 16, 2, table) as measure:
        measure(narrow)  # other threads: nothing is taken over
    assert len(read_json(table)["ms"]) == 1


@pytest.mark.parametrize(("threads", "clock"), [(1, time.process_time_ns), (2, time.perf_counter_ns)])
def test_one_thread_of_this_cpu_is_compared_by_processor_time(threads, clock, monkeypatch, tmp_path):
    clocks = []

    def record(runs, *, clock_ns, **_):
        clocks.append(clock_ns)
        return {name: (2.0 if name == "it" else 4.0,) * 3 for name in runs}

    monkeypatch.setattr("edgeship.targets._timing.interleave", record)
    dense = architecture("resnet20", classes=10, width=8)
    with LatencyTable(("onnxruntime",), SIZE, threads, tmp_path / "latencies.json") as measure:
        assert measure(dense) == 2.0
        assert measure(replace(dense, stem_strides=(2, 1))) == 1.0  # not the dense network's entry
    assert clocks[0] is time.perf_counter_ns and set(clocks[1:]) == {clock}
