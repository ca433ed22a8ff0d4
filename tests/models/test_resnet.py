"""The family: hand-worked counts, torchvision's names, and the rules that widths must obey."""

from dataclasses import replace

import pytest
import torch

from edgeship.toolkit.core.errors import ModelError, RecipeError
from edgeship.toolkit.core.tensors import as_size
from edgeship.toolkit.models.resnet import (
    PadShortcut,
    ResNet,
    Widths,
    architecture,
    build,
    macs,
    names,
    resize,
)


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_accumulates"),
    [
        # counted by torchvision 0.20 and its model cards
        ("resnet18", 11_689_512, 1_814_073_344),
        ("resnet34", 21_797_672, 3_663_761_408),
        ("resnet50", 25_557_032, 4_089_184_256),
        ("resnet101", 44_549_160, 7_801_405_440),
        ("resnet152", 60_192_808, 11_513_626_624),
    ],
)
def test_parameters_and_macs_are_torchvisions(name, parameters, multiply_accumulates):
    with torch.device("meta"):
        model = ResNet(architecture(name))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert macs(model.architecture, 224) == multiply_accumulates


def test_cifar_resnet20_has_the_papers_parameters():
    model = ResNet(architecture("resnet20"))
    assert sum(p.numel() for p in model.parameters()) == 269_722  # 0.27 M in the paper


@pytest.mark.parametrize(
    ("name", "size"), [("resnet50", (45, 45)), ("resnet50", (38, 71)), ("resnet20", (9, 14))]
)
def test_macs_equal_what_the_convolutions_do(name, size):
    model = build(architecture(name, width=8, classes=7), seed=0).eval()
    counts = []

    def count(module, inputs, output):
        counts.append(module.weight[0].numel() * output[0].numel())

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, *size))  # odd sides round up at every stride
    assert macs(model.architecture, as_size(*size)) == sum(counts)


def test_names_are_torchvisions():
    keys = set(ResNet(architecture("resnet50", width=4)).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "fc.bias"} <= keys
    assert {"layer4.2.conv3.weight", "layer1.0.downsample.1.num_batches_tracked"} <= keys


def test_option_a_has_no_parameters_and_pads_both_sides():
    assert not [key for key in ResNet(architecture("resnet20")).state_dict() if "downsample" in key]
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    out = PadShortcut(2, 4, 2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


@pytest.mark.parametrize("name", [n for n in names() if n.endswith(("18", "50", "20"))])
def test_same_seed_same_weights_and_forward(name):
    arch = architecture(name, width=8, classes=5)
    one, two = build(arch, seed=3), build(arch, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_a_dropped_block_is_the_identity_and_keeps_the_numbering():
    arch = architecture("resnet34", width=8, classes=5)
    inner = list(arch.widths.inner)
    inner[1] = ((16,), (), (16,), (16,))
    model = build(resize(arch, replace(arch.widths, inner=tuple(inner))), seed=0)
    assert not [key for key in model.state_dict() if key.startswith("layer2.1.")]
    assert [name for name, *_ in model.blocks() if name.startswith("layer2")] == [
        "layer2.0",
        "layer2.2",
        "layer2.3",
    ]
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(model.layer2[1](x), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"stem": 6}, "cannot be added", id="identity shortcut over other widths"),
        pytest.param(
            {"inner": (((8,), ()), ((), (16,)), ((32,),), ((64,),))}, "cannot be dropped", id="drop"
        ),
        pytest.param({"inner": (((8, 8),), ((16,),), ((32,),), ((64,),))}, "inner widths", id="other unit"),
        pytest.param({"streams": (8, 0, 32, 64)}, "do not fit", id="zero"),
    ],
)
def test_widths_that_do_not_fit_are_refused(change, message):
    arch = architecture("resnet18", width=8)
    with pytest.raises(ModelError, match=message):
        ResNet(resize(arch, replace(arch.widths, **change)))


def test_a_misspelt_name_is_hinted():
    with pytest.raises(RecipeError) as caught:
        architecture("resnet81")
    assert "resnet18" in caught.value.hint


def test_widths_compare_by_value():
    assert architecture("resnet20").widths == Widths(
        16, (16, 32, 64), (((16,),) * 3, ((32,),) * 3, ((64,),) * 3)
    )
