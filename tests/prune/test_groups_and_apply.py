"""Removal of channels: the pruned network equals the masked one."""

import pytest
import torch
from prune.nets import lively

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.models.resnet import architecture, names
from edgeship.toolkit.prune.apply import shrink
from edgeship.toolkit.prune.groups import inner_groups, kept_places, stream_groups
from edgeship.toolkit.prune.reconstruction import batchnorm_after

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FAMILY = [
    ("resnet18", {}),
    ("resnet50", {"width": 4}),
    ("resnet18", {"shortcut": "C"}),
    ("resnet20", {"width": 8}),
    ("resnet20", {"shortcut": "B"}),
    ("resnet50", {"shortcut": "A", "width": 4}),
    ("preact_resnet18", {}),
    ("preact_resnet50", {"width": 4}),
    ("preact_resnet20", {"width": 8}),
    ("plain_resnet18", {}),
]


def test_inner_groups_are_all_convolutions_but_the_last_of_each_block():
    groups = inner_groups(architecture("resnet50"))
    assert len(groups) == 32
    assert groups[0].name == "layer1.0.conv1"
    assert (groups[-1].name, groups[-1].width) == ("layer4.2.conv2", 512)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        pytest.param(
            "resnet18", [("stem", 64), ("stream2", 128), ("stream3", 256), ("stream4", 512)], id="tied"
        ),
        pytest.param(
            "resnet50",
            [("stem", 64), ("stream1", 256), ("stream2", 512), ("stream3", 1024), ("stream4", 2048)],
            id="separate stem",
        ),
        pytest.param("resnet20", [("stem", 16), ("stream2", 8), ("stream3", 16)], id="padded in pairs"),
    ],
)
def test_stream_groups(name, groups):
    assert [(g.name, g.width) for g in stream_groups(architecture(name))] == groups


def test_option_a_streams_run_through_the_padding():
    stem, second, _ = stream_groups(architecture("resnet20"))
    places = dict(stem.places)
    assert places["stem"] == places["stream1"] == tuple(range(16))
    assert places["stream2"] == tuple(range(8, 24))
    assert places["stream3"] == tuple(range(24, 40))
    assert [p for p, _ in second.places] == ["stream2", "stream2", "stream3", "stream3"]
    assert second.places[0][1] == tuple(range(8))
    assert second.places[1][1] == tuple(range(24, 32))


def keep_half(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        g.name: torch.randperm(g.width, generator=generator)[: (g.width + 1) // 2].sort().values
        for g in groups
    }


def test_every_member_has_groups_that_cover_its_stream():
    for name in names():
        arch = architecture(name)
        kept = kept_places(arch, stream_groups(arch), keep_half(stream_groups(arch)))
        assert len(kept["stream1"]) < arch.widths.streams[0], name
        assert len(kept[f"stream{len(arch.widths.streams)}"]) < arch.widths.streams[-1], name


@pytest.mark.parametrize(("name", "options"), FAMILY)
def test_pruned_inside_blocks_equals_masked(name, options):
    model = lively(name, **options)
    groups = inner_groups(model.architecture)
    kept = kept_places(model.architecture, groups, keep_half(groups))
    small = shrink(model, kept)
    for block_name, _, _, block in model.blocks():
        for i in range(1, block.depth):
            gone = torch.ones(block.conv(i).out_channels, dtype=torch.bool)
            gone[kept[f"{block_name}.conv{i}"]] = False
            block.conv(i + 1).weight.data[:, gone] = 0  # without effect on the output
    assert small.architecture.widths.inner != model.architecture.widths.inner
    with torch.inference_mode():
        torch.testing.assert_close(small(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "options"), FAMILY)
def test_pruned_stream_equals_masked(name, options):
    model = lively(name, **options)
    arch = model.architecture
    groups = stream_groups(arch)
    kept = kept_places(arch, groups, keep_half(groups))
    small = shrink(model, {place: indices for place, indices in kept.items() if "." not in place})
    assert small.architecture.widths.streams == tuple(
        len(kept[f"stream{s + 1}"]) for s in range(len(arch.widths.streams))
    )

    def hide(module, place):
        gone = torch.ones(module.num_features, dtype=torch.bool)
        gone[kept[place]] = False
        module.weight.data[gone] = 0
        module.bias.data[gone] = 0

    def silence(conv, place):
        gone = torch.ones(conv.out_channels, dtype=torch.bool)
        gone[kept[place]] = False
        conv.weight.data[gone] = 0

    silence(model.conv1, "stem")
    if not arch.preactivation:
        hide(model.bn1, "stem")
    for _, stage, index, block in model.blocks():
        before, after = (
            "stem" if stage == index == 0 else f"stream{stage + (index > 0)}",
            f"stream{stage + 1}",
        )
        silence(block.conv(block.depth), after)
        if block.projection is not None:
            silence(block.projection[0], after)
        if arch.preactivation:
            hide(block.bn(1), before)
        else:
            hide(batchnorm_after(block, block.depth), after)
            if block.projection is not None:
                hide(block.projection[1], after)
    if arch.preactivation:
        hide(model.bn, f"stream{len(arch.widths.streams)}")
    with torch.inference_mode():
        torch.testing.assert_close(small(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-4)


def test_dropping_a_block_leaves_its_shortcut_and_only_where_there_is_one():
    model = lively("resnet18")
    small = shrink(model, {}, {(1, 1)})
    assert small.architecture.widths.inner[1] == ((16,), ())
    x = model.layer1(model.forward_stem(IMAGES))
    expected = model.forward_head(model.layer4(model.layer3(model.layer2[0](x))))
    torch.testing.assert_close(small(IMAGES), expected)
    with pytest.raises(ModelError, match=r"layer2\.0 cannot be dropped"):
        shrink(model, {}, {(1, 0)})


def test_shrink_leaves_the_original_alone():
    model = lively("resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    groups = inner_groups(model.architecture)
    shrink(model, kept_places(model.architecture, groups, keep_half(groups)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
