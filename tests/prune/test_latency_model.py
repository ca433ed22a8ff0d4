"""The latency model: exact where latency is a sum of work, and the networks that are measured for it."""

import numpy as np
import pytest

from edgeship.toolkit.models.resnet import architecture, build, macs
from edgeship.toolkit.prune.groups import kept_places, stream_groups
from edgeship.toolkit.prune.joint_search import droppable
from edgeship.toolkit.prune.latency_model import LatencyModel, samples, with_streams

SIZE = 32
NAMES = ("resnet18", "resnet50", "resnet20", "preact_resnet50", "plain_resnet18")


def arch_of(name):
    return architecture(name, width=16, classes=6)


def clock(arch):
    """Milliseconds of a made-up device: multiplications, and a cost for every channel of a stream."""
    return 1e-6 * macs(arch, SIZE) + 0.02


@pytest.mark.parametrize("name", NAMES)
def test_measured_networks_can_be_built(name):
    arch = arch_of(name)
    for each in samples(arch, droppable(arch), 4, 6):
        build(each)
        assert macs(each, SIZE) < macs(arch, SIZE)


@pytest.mark.parametrize("name", NAMES)
def test_it_predicts_networks_that_were_not_measured(name):
    arch = arch_of(name)
    model = LatencyModel(arch, SIZE, clock(arch))
    networks = samples(arch, droppable(arch), 4, 24)
    before = np.mean([abs(model.total_ms(each) / clock(each) - 1) for each in networks[18:]])
    for each in networks[:18]:
        model.add(each, clock(each))
    after = np.mean([abs(model.total_ms(each) / clock(each) - 1) for each in networks[18:]])
    assert after < 0.04 and after < 0.5 * before
    assert model.total_ms(arch) == pytest.approx(clock(arch), rel=0.03)


def test_blocks_and_the_rest_are_the_whole():
    arch = arch_of("resnet50")
    model = LatencyModel(arch, SIZE, clock(arch))
    for each in samples(arch, droppable(arch), 4, 10):
        model.add(each, clock(each))
    without = [samples(arch, (), 4, 1)[0]]
    for each in (arch, *without):
        blocks = sum(
            model.block_ms(each, s, b)
            for s, stage in enumerate(each.widths.inner)
            for b, inner in enumerate(stage)
            if inner
        )
        assert 0 < blocks <= model.total_ms(each)


@pytest.mark.parametrize("name", NAMES)
def test_stream_widths_are_those_of_the_kept_channels(name):
    import torch

    arch = arch_of(name)
    groups = stream_groups(arch)
    counts = {group.name: group.width // 2 for group in groups}
    narrow = with_streams(arch, counts, arch.widths.inner)
    places = kept_places(arch, groups, {name: torch.arange(count) for name, count in counts.items()})
    assert narrow.widths.stem == len(places["stem"])
    assert narrow.widths.streams == tuple(
        len(places[f"stream{i}"]) for i in range(1, len(arch.widths.streams) + 1)
    )
