"""Pruning end to end on small networks: goals, refit, checkpoints and errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prune.nets import lively, pictures

from edgeship.toolkit.core.errors import DataError, ModelError, RecipeError
from edgeship.toolkit.core.progress import listening
from edgeship.toolkit.core.statistics import kl_divergence
from edgeship.toolkit.models.resnet import build, macs, resize
from edgeship.toolkit.models.weights import load, save
from edgeship.toolkit.prune import importances
from edgeship.toolkit.prune.apply import shrink
from edgeship.toolkit.prune.execute import expected_drop_pp
from edgeship.toolkit.prune.layer_refit import LayerRefit
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.pruner import prune
from edgeship.toolkit.prune.reconstruction import Reconstruction

IMAGES = pictures(30)
HELD = np.concatenate(pictures(30, seed=9))
HALF = PruneOptions(keep_ratio=0.5, channel_multiple=2)


def logits(model):
    with torch.inference_mode():
        return model(torch.from_numpy(HELD)).numpy()


def kl(dense, small):
    return kl_divergence(logits(dense), logits(small))


@pytest.mark.parametrize(
    ("name", "options", "scope"),
    [
        ("resnet18", {}, "block"),
        ("resnet50", {"width": 4}, "both"),
        ("resnet20", {}, "both"),
        ("resnet18", {"shortcut": "C"}, "both"),
        ("preact_resnet18", {}, "block"),
        ("preact_resnet50", {"width": 4}, "both"),
        ("plain_resnet18", {}, "both"),
    ],
)
def test_repair_brings_every_member_nearer_to_the_dense_one(name, options, scope):
    dense = lively(name, **options)
    small, plan = prune(dense, pictures(60), replace(HALF, scope=scope))
    kept = {group: torch.tensor(indices) for group, indices in plan.kept.items()}
    cut = shrink(dense, kept)
    assert cut.architecture == small.architecture
    assert plan.macs_after == macs(small.architecture, 32) < 0.7 * plan.macs_before
    assert kl(dense, small) < 0.6 * kl(dense, cut)
    if scope == "block":
        assert plan.widths_after.streams == plan.widths_before.streams
    else:
        assert plan.widths_after.streams[-1] * 2 == plan.widths_before.streams[-1]


def test_nothing_to_repair_changes_nothing():
    dense = lively("resnet18")
    copy = shrink(dense, {})
    batches = [torch.from_numpy(batch) for batch in IMAGES]
    repaired = (
        Reconstruction(dense, copy, kept={}, choice={}, importance=importances.get("obs")).run(batches).eval()
    )
    np.testing.assert_allclose(logits(repaired), logits(dense), atol=2e-3)


@pytest.mark.parametrize("method", importances.names())
def test_every_importance_prunes(method):
    dense = lively("resnet20")
    small, plan = prune(dense, IMAGES, replace(HALF, method=method))
    assert plan.method == method
    assert small.architecture.widths.inner[0][0] == (4,)
    assert np.isfinite(logits(small)).all()


def test_macs_goal_is_met_and_wider_where_it_hurts():
    dense = lively("resnet18")
    for group in ("layer1.0", "layer3.1"):  # half of these channels are zero: removed first
        block = {name: b for name, _, _, b in dense.blocks()}[group]
        block.bn1.weight.data[::2] = 0
        block.bn1.bias.data[::2] = -1
    small, plan = prune(dense, IMAGES, PruneOptions(macs_ratio=0.8, channel_multiple=2))
    assert 0.75 <= plan.macs_after / plan.macs_before <= 0.8
    assert small.architecture.widths.inner[0][0] == (4,)
    assert small.architecture.widths.inner[2][1] <= (16,)
    assert set(plan.kept["layer1.0.conv1"]) == {1, 3, 5, 7}
    assert plan.agreement > 0.7


def fake_device(arch):
    """Milliseconds with steps of 4 channels, plus 1 ms."""
    total = 1.0
    for stage, blocks in enumerate(arch.widths.inner):
        for inner in blocks:
            total += sum(-(-w // 4) * 4 / (8 * 2**stage) for w in inner)
    return total


def test_latency_goal_is_met_by_measuring_and_stairs_are_filled():
    dense = lively("resnet18")
    measured = []

    def measure(arch):
        measured.append(arch)
        return fake_device(arch)

    small, plan = prune(dense, IMAGES, PruneOptions(latency_ratio=0.7, channel_multiple=2), measure)
    assert plan.latency_before_ms == fake_device(dense.architecture) == 9.0
    assert plan.latency_after_ms == fake_device(small.architecture)
    assert plan.latency_after_ms == pytest.approx(0.7 * 9, rel=0.05)
    assert plan.latency_predicted_ms == pytest.approx(plan.latency_after_ms, rel=0.05)
    assert all(w % 4 == 0 for stage in plan.widths_after.inner for inner in stage for w in inner)
    assert len(measured) < 60


def by_macs(arch):
    """Milliseconds proportional to the multiply-accumulates, plus 0.5 ms."""
    return 0.5 + macs(arch, 32) / 1e5


def test_streams_alone_meet_a_latency_and_no_more():
    dense, measured = lively("resnet18"), []

    def measure(arch):
        measured.append(arch)
        return by_macs(arch)

    options = PruneOptions(latency_ratio=0.7, channel_multiple=2, scope="residual")
    small, plan = prune(dense, IMAGES, options, measure)
    assert plan.widths_after.inner == plan.widths_before.inner
    assert plan.widths_after.streams < plan.widths_before.streams
    assert plan.latency_after_ms == by_macs(small.architecture) <= 0.7 * plan.latency_before_ms
    assert plan.latency_predicted_ms is None
    wider = [arch for arch in measured if by_macs(arch) > 0.7 * plan.latency_before_ms]
    assert len(wider) > 1 and len(measured) <= 6  # those between it and the dense one do not do
    cut = shrink(dense, {place: torch.tensor(indices) for place, indices in plan.kept.items()})
    assert kl(dense, small) < 0.75 * kl(dense, cut)
    with pytest.raises(ModelError, match=r"cannot meet 0\.10 .*; 0\.\d\d can"):
        prune(dense, IMAGES, replace(options, latency_ratio=0.1), measure)
    with pytest.raises(ModelError, match=r"5\.000 ms dense, 4\.900 ms"):
        hardly = replace(options, latency_ratio=0.99)
        prune(dense, IMAGES, hardly, lambda arch: 5.0 if arch == dense.architecture else 4.9)


@pytest.mark.parametrize("part", [0.6, 0.35])
def test_streams_and_blocks_together_meet_a_latency(part):
    dense = lively("resnet18")
    options = PruneOptions(latency_ratio=part, channel_multiple=2, scope="both")
    small, plan = prune(dense, IMAGES, options, by_macs)
    assert plan.latency_after_ms == pytest.approx(part * by_macs(dense.architecture), rel=0.05)
    assert plan.latency_predicted_ms == pytest.approx(plan.latency_after_ms, rel=0.05)
    alone = replace(options, scope="block")
    if part < 0.5:
        with pytest.raises(ModelError, match="cannot be met"):
            prune(dense, IMAGES, alone, by_macs)
        assert small.architecture.widths.streams < dense.architecture.widths.streams
    else:  # never farther from the dense network than what blocks alone give
        assert plan.kl <= prune(dense, IMAGES, alone, by_macs)[1].kl
    rows = plan.frontier
    assert rows[0].macs == plan.macs_before and rows[0].latency_ms == plan.latency_before_ms
    assert [row.macs for row in rows if row.chosen] == [plan.macs_after]
    assert len(rows) >= 3


def test_pruning_that_does_not_pay_is_refused_with_figures():
    with pytest.raises(ModelError, match=r"cannot be met; 1\.00 can"):
        prune(lively(), IMAGES, PruneOptions(latency_ratio=0.7, channel_multiple=2), lambda arch: 5.0)
    with pytest.raises(ModelError, match=r"9\.000 ms dense, 8\."):
        prune(lively(), IMAGES, PruneOptions(latency_ratio=0.98, channel_multiple=2), fake_device)
    with pytest.raises(ModelError, match="needs a device"):
        prune(lively(), IMAGES, PruneOptions(latency_ratio=0.5))


def test_a_goal_out_of_reach_says_what_can_be_met():
    with pytest.raises(ModelError, match=r"0\.05 of the multiply-accumulates .*; 0\.\d\d can"):
        prune(lively(), IMAGES, PruneOptions(macs_ratio=0.05, channel_multiple=2))
    with pytest.raises(ModelError, match=r"0\.02 of the multiply-accumulates .*; 0\.\d\d can"):
        prune(
            lively("resnet18"), IMAGES, PruneOptions(macs_ratio=0.02, channel_multiple=2, scope="both")
        )  # still of the dense


def test_both_scopes_reach_further_than_one():
    options = PruneOptions(macs_ratio=0.25, channel_multiple=2, scope="both")
    with pytest.raises(ModelError, match="cannot be met"):
        prune(lively("resnet18"), IMAGES, replace(options, scope="block"))
    small, plan = prune(lively("resnet18"), IMAGES, options)
    assert plan.macs_after <= 0.25 * plan.macs_before
    assert small.architecture.widths.streams[0] < 8


def test_blocks_are_dropped_where_that_is_cheapest():
    dense = lively("resnet34", width=4)
    useless = {name: b for name, _, _, b in dense.blocks()}["layer3.2"]
    useless.bn2.weight.data.zero_()
    useless.bn2.bias.data.zero_()  # this block adds nothing
    _, plan = prune(dense, IMAGES, PruneOptions(macs_ratio=0.9, channel_multiple=2, drop_blocks=True))
    assert "layer3.2" in plan.dropped
    assert plan.widths_after.inner[2][2] == ()


def test_expected_drop_limits_the_search(monkeypatch):
    dense = lively("resnet18", width=4)
    monkeypatch.setattr("edgeship.toolkit.prune.pruner.SEARCH_ROUNDS", 3)
    # few images: a plain distance replaces the noisy confidences
    monkeypatch.setattr(
        "edgeship.toolkit.prune.execute.expected_drop_pp",
        lambda one, two: float(100 * np.abs(one - two).mean()),
    )
    _, loose = prune(dense, IMAGES[:3], PruneOptions(max_expected_drop_pp=50.0, channel_multiple=2))
    limit = 0.6 * loose.expected_drop_pp
    _, tight = prune(dense, IMAGES[:3], PruneOptions(max_expected_drop_pp=limit, channel_multiple=2))
    assert tight.expected_drop_pp <= limit
    assert loose.macs_after < tight.macs_after < tight.macs_before
    dense_row, *tried = tight.frontier
    assert (dense_row.macs, dense_row.expected_drop_pp) == (tight.macs_before, 0.0)
    (chosen,) = (row for row in tried if row.chosen)
    assert (chosen.macs, chosen.expected_drop_pp) == (tight.macs_after, tight.expected_drop_pp)
    assert len(tried) >= 2 and all(row.expected_drop_pp > limit for row in tried if row.macs < chosen.macs)


def test_expected_drop_by_hand():
    reference = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], np.float32))
    same_and_second = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    assert expected_drop_pp(reference, same_and_second) == pytest.approx(100 * (0.0 + 0.1) / 2, abs=1e-4)
    assert expected_drop_pp(reference, reference) == 0


def test_a_pruned_network_saves_loads_and_prunes_again(tmp_path):
    dense = lively("resnet50", width=4)
    small, _ = prune(dense, IMAGES, HALF)
    save(small, tmp_path)
    again, plan = prune(load(tmp_path).model, IMAGES, HALF)
    assert plan.widths_before == small.architecture.widths
    assert again.architecture.widths.inner[3][0] == (8, 8)


class Stop:
    """Interrupts at one step of a progress label, and records all reports."""

    def __init__(self, label, at):
        self.label, self.at = label, at
        self.reports = []

    def __call__(self, label, done, total):
        self.reports.append((label, done))
        if (label, done) == (self.label, self.at):
            raise KeyboardInterrupt


def same(one, two):
    """Return True if two networks have the same weights."""
    states = (model.state_dict() for model in (one, two))
    return all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        pytest.param({}, Stop("pruning", 5), id="repairing, the repair ranks"),
        pytest.param({"keep_ratio": None, "macs_ratio": 0.6}, Stop("surveying", 5), id="surveying"),
        pytest.param(
            {"keep_ratio": None, "macs_ratio": 0.6}, Stop("pruning", 5), id="repairing, after a survey"
        ),
        pytest.param(
            {"keep_ratio": None, "macs_ratio": 0.5, "scope": "both"}, Stop("pruning", 5), id="streams too"
        ),
    ],
)
def test_an_interrupted_pass_goes_on_from_its_last_block(tmp_path, monkeypatch, options, stop):
    dense, checkpoint, how = lively("resnet20"), tmp_path / "state", replace(HALF, **options)
    straight, plan = prune(dense, IMAGES, how)
    stop.reports.clear()
    with listening(stop), pytest.raises(KeyboardInterrupt):
        prune(dense, IMAGES, how, checkpoint=checkpoint)
    kind = "survey" if stop.label == "surveying" else "repair"
    (file,) = checkpoint.glob(f"{kind}-*.pt")
    saved = torch.load(file, weights_only=True)
    assert saved["done"] == 5 if kind == "repair" else len(saved) == 5
    fitted, ranked = [], []
    fit, rank = LayerRefit.solve, importances.get(how.method)
    monkeypatch.setattr(LayerRefit, "solve", lambda *args: fitted.append(1) or fit(*args))
    monkeypatch.setattr(importances, "get", lambda _: lambda evidence: ranked.append(1) or rank(evidence))
    resumed, other = prune(dense, IMAGES, how, checkpoint=checkpoint)
    assert other == plan and same(resumed, straight)
    if kind == "survey":
        assert len(ranked) == 9 - 5
    elif how.scope == "block":
        assert len(fitted) == 2 * (9 - 5)
    assert not checkpoint.exists()


def test_another_network_or_other_images_do_not_go_on_from_it(tmp_path):
    with listening(Stop("pruning", 5)), pytest.raises(KeyboardInterrupt):
        prune(lively("resnet20"), IMAGES, HALF, checkpoint=tmp_path)
    for seed, images in ((1, IMAGES), (0, pictures(30, seed=1))):
        dense = lively("resnet20", seed=seed)
        resumed, plan = prune(dense, images, HALF, checkpoint=tmp_path)
        straight, other = prune(dense, images, HALF)
        assert plan == other and same(resumed, straight)


def test_after_a_goal_out_of_reach_the_next_one_goes_on_from_the_survey(tmp_path, monkeypatch):
    dense, goal = lively("resnet20"), PruneOptions(macs_ratio=0.6, channel_multiple=2)
    straight, plan = prune(dense, IMAGES, goal)
    with pytest.raises(ModelError, match="cannot be met"):
        prune(dense, IMAGES, replace(goal, macs_ratio=0.01), checkpoint=tmp_path)
    monkeypatch.setattr("edgeship.toolkit.prune.ranking.Targets", None)  # nothing is surveyed again
    small, other = prune(dense, IMAGES, goal, checkpoint=tmp_path)
    assert other == plan and same(small, straight)


def test_the_same_call_gives_the_same_weights():
    one, two = (prune(lively("resnet20"), IMAGES, HALF)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_few_images_warn_with_the_number_that_would_do():
    _, plan = prune(lively("resnet18"), IMAGES[:1], HALF)
    assert "rows than columns in layer3.0" in plan.warnings[0]
    assert "576 would do" in plan.warnings[0]  # 64 * 9 columns, one position a map
    _, plan = prune(lively("resnet20"), IMAGES, HALF)
    assert plan.warnings == ()


def test_bad_images_and_goals():
    with pytest.raises(DataError, match="0 images"):
        prune(lively(), [], HALF)
    with pytest.raises(DataError, match="NaN"):
        prune(lively(), [np.full((4, 3, 32, 32), np.nan, np.float32)], HALF)
    for wrong in (
        {"keep_ratio": 0.0},
        {"keep_ratio": 1.5},
        {"macs_ratio": -1},
        {"keep_ratio": 0.5, "macs_ratio": 0.5},
        {},
    ):
        with pytest.raises(RecipeError):
            PruneOptions(**wrong)
    with pytest.raises(RecipeError, match="no importance named 'ob'"):
        prune(lively(), IMAGES, replace(HALF, method="ob"))


def test_a_minimal_network_is_refused_and_none_passes_through():
    arch = lively("resnet18").architecture
    minimal = build(resize(arch, replace(arch.widths, inner=(((1,), (1,)),) * 4)), seed=0)
    with pytest.raises(ModelError, match="as narrow as"):
        prune(minimal, IMAGES, HALF)
    model = lively()
    same, plan = prune(model, IMAGES, PruneOptions(method="none"))
    assert same is model
    assert plan.widths_after == plan.widths_before


def test_dead_channels_do_not_break_the_algebra():
    dense = lively("resnet18")
    block = next(dense.blocks())[3]
    block.bn1.weight.data.zero_()
    block.bn1.bias.data.fill_(-1.0)  # every inner channel is zero after the ReLU
    small, _ = prune(dense, IMAGES, HALF)
    assert np.isfinite(logits(small)).all()
