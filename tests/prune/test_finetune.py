"""Distillation lowers the divergence from the dense network, resumes, and keeps a time budget."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from prune.nets import lively, pictures, settled

from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.models import trainer
from edgeship.toolkit.models.weights import load
from edgeship.toolkit.prune import finetune
from edgeship.toolkit.prune.distill_options import DistillOptions
from edgeship.toolkit.prune.finetune import distill, divergence
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.pruner import prune
from edgeship.toolkit.prune.time_budget import TimeBudget

TRAIN = np.concatenate(pictures(48, seed=3))
HELD = pictures(20, seed=4)
OPTIONS = DistillOptions(epochs=4, batch=16, learning_rate=0.0005, crop_px=1)


@pytest.fixture(scope="module")
def pair():
    dense = settled(lively("resnet20"))
    small, plan = prune(dense, pictures(30), PruneOptions(keep_ratio=0.5, channel_multiple=2, scope="both"))
    return dense, small, plan


def batches(epoch):
    order = np.random.default_rng(epoch).permutation(len(TRAIN))
    for i in range(0, len(TRAIN), 16):
        yield TRAIN[order[i : i + 16]], np.full(16, -1)


def run(pair, out, options=OPTIONS, feed=batches):
    dense, small, plan = pair
    return distill(small, dense, feed, options, out, images=len(TRAIN), held_out=HELD, kept=plan.kept)


def test_it_comes_nearer_and_leaves_a_checkpoint(pair, tmp_path):
    before = {key: value.clone() for key, value in pair[1].state_dict().items()}
    tuned, history = run(pair, tmp_path)
    assert min(history.score) < 0.9 * history.score[0]
    assert torch.equal(load(tmp_path).model.fc.weight, tuned.fc.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.json", "model.safetensors", "widths.json"]
    assert all(torch.equal(value, before[key]) for key, value in pair[1].state_dict().items())


def test_it_never_returns_worse_than_it_got(pair, tmp_path):
    tuned, history = run(pair, tmp_path, replace(OPTIONS, learning_rate=1.0, epochs=1))
    assert history.score[1] > history.score[0]
    assert torch.equal(tuned.fc.weight, pair[1].fc.weight)


def test_an_interrupted_run_ends_the_same(pair, tmp_path):
    def stopping(epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return batches(epoch)

    straight, history = run(pair, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(pair, tmp_path / "b", feed=stopping)
    resumed, again = run(pair, tmp_path / "b")
    assert again == history
    assert torch.equal(resumed.conv1.weight, straight.conv1.weight)


def test_labels_are_used_only_when_asked(pair, tmp_path):
    with pytest.raises(DataError, match="no label"):
        run(pair, tmp_path, replace(OPTIONS, label_weight=0.5))
    with pytest.raises(RecipeError):
        DistillOptions(qat_fraction=2.0)


def test_divergence_by_hand():
    target, output = torch.log(torch.tensor([[0.8, 0.2]])), torch.log(torch.tensor([[0.5, 0.5]]))
    by_hand = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    assert float(divergence(target, output, temperature=1.0)) == pytest.approx(by_hand)


class Clock:
    """A clock that a batch moves by a second."""

    def __init__(self):
        self.seconds = 0.0

    def feed(self, epoch):
        for batch in batches(epoch):
            self.seconds += 1.0
            yield batch

    def budget(self, limit_s, file=None):
        return TimeBudget(limit_s, file, now=lambda: self.seconds)


def paced(pair, out, clock, budget, options=OPTIONS, feed=None):
    dense, small, plan = pair
    return distill(
        small, dense, feed or clock.feed, options, out,
        images=len(TRAIN), held_out=HELD, kept=plan.kept, budget=budget,
    )  # fmt: skip


def test_a_time_budget_is_used_up_and_kept(pair, tmp_path, monkeypatch):
    rounded = []
    monkeypatch.setattr(
        finetune, "int8", lambda model, scheme: rounded.append(clock.seconds) or nullcontext()
    )
    clock = Clock()
    tuned, history = paced(pair, tmp_path, clock, clock.budget(40.0))
    assert 39 <= clock.seconds <= 40
    assert min(history.score) < history.score[0]
    trained = [second for second in rounded if second > 0 and second % 3]  # others are validations
    assert min(trained) == pytest.approx(0.75 * 40 * 0.98, abs=2)
    assert tuned.conv1.weight.is_contiguous()


def test_a_rate_that_is_too_high_is_lowered_and_the_best_weights_are_trained_again(
    pair, tmp_path, monkeypatch
):
    high = replace(OPTIONS, learning_rate=0.3, qat_fraction=0.0)
    _, mended = paced(pair, tmp_path / "a", clock := Clock(), clock.budget(60.0), high)
    monkeypatch.setattr(trainer, "DIVERGED", float("inf"))
    _, other = paced(pair, tmp_path / "b", clock := Clock(), clock.budget(60.0), high)
    assert max(other.score[4:]) > 10 * other.score[0]
    assert max(mended.score[4:]) < 5 * mended.score[0]
    assert min(mended.score) < mended.score[0] < min(other.score[1:])


def test_a_loss_that_is_nan_returns_to_the_best_weights_and_ends_only_where_it_stays(
    pair, tmp_path, monkeypatch
):
    error, calls = finetune.normalized_error, []

    def broken(*features):
        calls.append(1)
        return error(*features) * (float("nan") if len(calls) in bad else 1.0)

    monkeypatch.setattr(finetune, "normalized_error", broken)
    bad = range(20, 22)
    _, history = paced(pair, tmp_path / "a", clock := Clock(), clock.budget(60.0), OPTIONS)
    assert len(calls) > 22 and np.isfinite(history.score).all() and np.isfinite(history.loss).all()
    bad = range(20, 10**6)
    with pytest.raises(DataError, match="the loss is nan"):
        paced(pair, tmp_path / "b", clock := Clock(), clock.budget(60.0), OPTIONS)


def test_the_result_is_the_average_of_the_weights(pair, tmp_path):
    last, average = (
        paced(
            pair,
            tmp_path / str(decay),
            clock := Clock(),
            clock.budget(30.0),
            replace(OPTIONS, ema_decay=decay),
        )
        for decay in (0.0, 1.0)
    )
    assert last[1].loss != average[1].loss or not torch.equal(last[0].fc.weight, average[0].fc.weight)
    assert min(last[1].score) < last[1].score[0]


def test_an_interrupted_budget_continues(pair, tmp_path):
    clock, file = Clock(), tmp_path / "clock.json"

    def stopping(epoch):
        if epoch == 4:
            raise KeyboardInterrupt
        return clock.feed(epoch)

    with pytest.raises(KeyboardInterrupt):
        paced(pair, tmp_path, clock, clock.budget(40.0, file), feed=stopping)
    assert clock.seconds == 12
    clock.seconds += 500  # stopped
    _, history = paced(pair, tmp_path, clock, clock.budget(40.0, file))
    assert clock.seconds == pytest.approx(540, abs=1.1)
    assert len(history.loss) == 13  # rounds of both processes


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet20", "resnet50"])
def test_folding_changes_no_logits(name):
    model = lively(name, width=4)
    x = torch.from_numpy(HELD[0])
    with torch.inference_mode():
        before = model(x)
        finetune._fold_batchnorm(model)
        assert torch.allclose(model(x), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
