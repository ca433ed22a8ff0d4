"""Joint search: all members, the knapsack's optimum, budgets, resuming and coarse steps."""

import itertools

import pytest
import torch
from prune.nets import lively, pictures, settled

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.progress import listening
from edgeship.toolkit.models.resnet import architecture, macs
from edgeship.toolkit.prune.groups import inner_groups, stream_groups
from edgeship.toolkit.prune.importances import Ranking
from edgeship.toolkit.prune.joint_search import PARTS, JointSearch, Losses, droppable
from edgeship.toolkit.prune.latency_model import LatencyModel, samples, with_streams
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.pruner import prune
from edgeship.toolkit.prune.ranking import GroupSensitivity
from edgeship.toolkit.prune.time_budget import TimeBudget
from edgeship.toolkit.prune.width_search import nearest_width

SIZE = 32
HALF = PruneOptions(latency_ratio=0.5, scope="joint", channel_multiple=2)


def clock(arch):
    blocks = sum(bool(inner) for stage in arch.widths.inner for inner in stage)
    return 1e-6 * macs(arch, SIZE) + 1e-4 * sum(arch.widths.streams) + 0.01 * blocks


def search_of(arch, step, loss=lambda width, removed: (removed / width) ** 2, drop=1e9):
    model = LatencyModel(arch, SIZE, clock(arch))
    for each in samples(arch, droppable(arch), step, 12):
        model.add(each, clock(each))

    def sensitivity(width):
        losses = torch.tensor([float(loss(width, i)) for i in range(width + 1)])
        return GroupSensitivity(Ranking(torch.arange(width), losses), losses)

    losses = Losses(
        {g.name: sensitivity(g.width) for g in inner_groups(arch)},
        {g.name: sensitivity(g.width) for g in stream_groups(arch)},
        dict.fromkeys(droppable(arch), drop),
    )
    return JointSearch(arch, losses, model, step), model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {"width": 4}),
        ("resnet20", {}),
        ("resnet18", {"shortcut": "C"}),
        ("preact_resnet18", {}),
        ("plain_resnet18", {}),
    ],
)
def test_every_member_meets_the_goal(name, options):
    dense = settled(lively(name, **options))
    small, plan = prune(dense, pictures(20), HALF, clock)
    assert plan.latency_after_ms == pytest.approx(0.5 * plan.latency_before_ms, rel=0.1)
    assert plan.latency_after_ms == clock(small.architecture)
    assert [row.chosen for row in plan.frontier] == [False] * (len(plan.frontier) - 1) + [True]
    assert plan.frontier[0].latency_ms == plan.latency_before_ms
    assert max(row.latency_ms for row in plan.frontier[1:]) > 1.05 * plan.latency_after_ms


def test_the_descent_finds_the_optimum_of_all_streams():
    arch = architecture("resnet20", width=8, classes=6)
    search, model = search_of(arch, 2)
    goal = 0.6 * model.total_ms(arch)
    found = search.within(goal)
    assert found.predicted_ms <= goal
    groups = stream_groups(arch)
    every = itertools.product(*({nearest_width(g.width, p, 2) for p in PARTS if p >= 0.375} for g in groups))
    best = min(
        choice.loss
        for counts in every
        if (choice := search.with_streams(dict(zip([g.name for g in groups], counts, strict=True)), goal))
    )
    assert found.loss <= 1.02 * best


def test_a_block_without_loss_is_dropped_first():
    arch = architecture("resnet50", width=8, classes=6)
    search, model = search_of(arch, 2, drop=0.0)
    found = search.within(0.7 * model.total_ms(arch))
    assert all(not found.arch.widths.inner[s][b] for s, b in droppable(arch))
    assert found.arch.widths.streams == arch.widths.streams


def test_streams_without_loss_are_narrowed_and_inner_widths_stay():
    arch = architecture("resnet18", width=16, classes=6)
    search, model = search_of(arch, 4)
    free = {g.name: GroupSensitivity(Ranking(torch.arange(g.width), z), z) for g in stream_groups(arch)
            for z in [torch.zeros(g.width + 1)]}  # fmt: skip
    search = JointSearch(arch, Losses(search.losses.inner, free, {}), model, 4)
    narrowest = with_streams(
        arch, {g.name: nearest_width(g.width, 0.375, 4) for g in stream_groups(arch)}, arch.widths.inner
    )
    found = search.within(1.01 * model.total_ms(narrowest))
    assert found.loss == 0.0 and found.arch.widths.inner == arch.widths.inner


def test_a_goal_out_of_reach_states_what_can_be_met():
    dense = lively("resnet20")
    with pytest.raises(ModelError, match=r"0\.01 of .* about 0\.\d+ can"):
        prune(dense, pictures(20), PruneOptions(latency_ratio=0.01, scope="joint"), clock)


def test_coarse_steps_are_named_by_stage():
    arch = architecture("resnet20", width=8, classes=6)
    search, model = search_of(arch, 64, drop=0.0)  # three blocks remain; a step is a quarter of the width
    goal = 0.25 * model.total_ms(arch)
    warnings = search.coarse_steps(search.within(goal), goal)
    assert warnings and "layer1: one step of 2 channels" in warnings[0]
    wide = architecture("resnet50", width=64, classes=6)
    search, model = search_of(wide, 4)
    assert search.coarse_steps(search.within(0.6 * model.total_ms(wide)), model.total_ms(wide)) == ()


def test_an_interrupted_search_resumes_and_ends_the_same(tmp_path):
    dense = settled(lively("resnet20"))
    straight, plan = prune(dense, pictures(20), HALF, clock)
    labels = []

    def stop(label, done, total):
        labels.append(label)
        if label == "probing blocks" and done == 2:
            raise KeyboardInterrupt

    with listening(stop), pytest.raises(KeyboardInterrupt):
        prune(dense, pictures(20), HALF, clock, checkpoint=tmp_path)
    assert "surveying streams" in labels
    labels.clear()

    def follow(label, done, total):
        labels.append(label)

    with listening(follow):
        small, again = prune(dense, pictures(20), HALF, clock, checkpoint=tmp_path)
    assert "surveying streams" not in labels
    assert again == plan
    assert torch.equal(small.fc.weight, straight.fc.weight)


def test_a_budget_that_is_too_short_states_the_time_it_needs_and_keeps_the_ranking(tmp_path):
    dense, now = lively("resnet20"), [0.0]

    def tick(label, done, total):
        now[0] += 10.0 * (label == "surveying")

    def run(limit_s):
        budget = TimeBudget(limit_s, tmp_path / "clock.json", now=lambda: now[0])
        with listening(tick):
            return prune(dense, pictures(20), HALF, clock, checkpoint=tmp_path / "states", budget=budget)

    with pytest.raises(ModelError, match="need about") as caught:
        run(50.0)
    assert "budget_s" in caught.value.hint
    assert list((tmp_path / "states").glob("survey-*.pt"))
    assert not (tmp_path / "clock.json").exists()  # the next process has the whole budget
    small, _ = run(5000.0)
    assert clock(small.architecture) < 0.6 * clock(dense.architecture)


def test_a_short_budget_leaves_out_probes_and_measurements():
    dense, now, measured = settled(lively("resnet20")), [0.0], []

    def slow(arch):
        measured.append(arch)
        now[0] += 10.0
        return clock(arch)

    budget = TimeBudget(100.0, now=lambda: now[0])
    prune(dense, pictures(20), HALF, slow, budget=budget)
    assert len(measured) <= 13
    unlimited = len(measured)
    measured.clear()
    prune(dense, pictures(20), HALF, slow)
    assert len(measured) > 2 * unlimited
