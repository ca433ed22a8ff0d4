"""Distillation lowers the divergence from the dense network and is deterministic after a resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prune.nets import lively, pictures, settled

from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.models.weights import load
from edgeship.toolkit.prune.distill_options import DistillOptions
from edgeship.toolkit.prune.fake_quant import int8
from edgeship.toolkit.prune.finetune import distill, divergence
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.pruner import prune

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


def test_int8_rounds_inside_the_block_only():
    model = lively("resnet18")
    x = torch.from_numpy(HELD[0])
    with torch.inference_mode():
        plain = model(x)
        with int8(model):
            rounded = model(x)
        after = model(x)
    assert torch.equal(plain, after)
    error = float((rounded - plain).square().sum() / plain.square().sum())
    assert 1e-6 < error < 1e-2
    assert set(model.state_dict()) == set(lively("resnet18").state_dict())
    model.train()
    with int8(model):
        model(x).sum().backward()
    assert float(model.layer1[0].conv1.weight.grad.abs().sum()) > 0


def test_divergence_by_hand():
    target, output = torch.log(torch.tensor([[0.8, 0.2]])), torch.log(torch.tensor([[0.5, 0.5]]))
    by_hand = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    assert float(divergence(target, output, temperature=1.0)) == pytest.approx(by_hand)
