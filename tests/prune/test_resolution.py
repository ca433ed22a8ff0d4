"""Resolution of a pruned network: positions, refit to interpolated outputs, and its choice for a latency."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prune.nets import lively, pictures, settled

from edgeship.toolkit.models.resnet import macs
from edgeship.toolkit.models.weights import load
from edgeship.toolkit.prune import importances, joint_search
from edgeship.toolkit.prune.apply import restrided
from edgeship.toolkit.prune.distill_options import DistillOptions
from edgeship.toolkit.prune.finetune import distill, normalized_error
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.probe_images import logits, split
from edgeship.toolkit.prune.pruner import prune
from edgeship.toolkit.prune.resolution import Grid, resampled

MEMBERS = [
    ("resnet18", {}, (5, 1)),
    ("resnet18", {}, (4, 1)),
    ("resnet50", {"width": 4}, (3, 2)),
    ("preact_resnet18", {}, (3, 2)),
    ("resnet20", {}, (2, 1)),
    ("plain_resnet20", {}, (2, 1)),
]


def test_resampled_is_linear_and_keeps_what_the_positions_meet():
    x = torch.randn(2, 3, 9, 12)
    assert torch.equal(resampled(x, None), x)
    assert torch.allclose(resampled(x, Grid(2.0, (5, 6))), x[:, :, ::2, ::2])
    ramp = (torch.arange(9.0)[:, None] + 10 * torch.arange(12.0)).expand(1, 1, 9, 12)
    rows, columns = 1.5 * torch.arange(6), 1.5 * torch.arange(8)
    assert torch.allclose(resampled(ramp, Grid(1.5, (6, 8)))[0, 0], rows[:, None] + 10 * columns)
    assert torch.allclose(
        resampled(ramp, Grid(1.25, (8, 10)))[0, 0, 7], 8 + 12.5 * torch.arange(10).clamp(max=8.8)
    )


@pytest.mark.parametrize(("name", "options", "strides"), MEMBERS)
def test_a_refit_at_another_resolution_comes_nearer_to_the_dense_network(name, options, strides):
    dense = settled(lively(name, **options))
    large = [torch.nn.functional.interpolate(torch.from_numpy(each), (63, 61)) for each in pictures(60)]
    probes = split(dense, [each.numpy() for each in large], mirror=True)  # sides that no stride divides
    coarse = restrided(dense, strides)
    small = joint_search.refitted(dense, {}, coarse.architecture, {}, probes, importances.get("obs"), seed=0)
    assert small.architecture == coarse.architecture

    @torch.no_grad()
    def error(model):
        """Error of the first stage's outputs, relative to the dense network's at the same positions."""
        found = model.layer1(model.forward_stem(probes.check))
        expected = dense.layer1(dense.forward_stem(probes.check))
        grid = Grid(coarse.architecture.stem_step / dense.architecture.stem_step, tuple(found.shape[2:]))
        return normalized_error(resampled(expected, grid), found)

    assert error(small) < 0.8 * error(coarse)
    logits(small, probes.check)


def clock(arch):
    """Latency that mostly depends on the resolution."""
    return 1e-6 * macs(arch, 32) + 0.01


def test_a_coarser_network_is_chosen_where_it_loses_less():
    dense = settled(lively("resnet20"))
    # images of 4 equal pixels: half the resolution sees the same
    images = [batch[:, :, ::2, ::2].repeat(2, 2).repeat(2, 3) for batch in pictures(60)]
    options = PruneOptions(latency_ratio=0.2, scope="joint", channel_multiple=2)
    small, plan = prune(dense, images, options, clock)
    assert plan.latency_after_ms == pytest.approx(0.2 * plan.latency_before_ms, rel=0.1)
    assert plan.stem_strides == small.architecture.stem_strides == (2, 1)
    assert plan.macs_after == macs(small.architecture, 32)


def test_distillation_compares_features_at_the_positions_of_the_student(tmp_path):
    dense = settled(lively("resnet18"))
    small = restrided(dense, (5, 1))
    train = np.concatenate(pictures(48, seed=3))

    def feed(epoch):
        order = np.random.default_rng(epoch).permutation(len(train))
        for i in range(0, len(train), 16):
            yield train[order[i : i + 16]], np.full(16, -1)

    options = DistillOptions(epochs=3, batch=16, learning_rate=0.0005, crop_px=1)
    tuned, history = distill(
        small, dense, feed, options, tmp_path, images=len(train), held_out=pictures(20, seed=4)
    )
    assert min(history.score) < 0.9 * history.score[0]
    assert load(tmp_path).model.architecture == replace(dense.architecture, stem_strides=(5, 1))
    assert torch.equal(load(tmp_path).model.fc.weight, tuned.fc.weight)
