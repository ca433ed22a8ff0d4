"""The ResNet family, described by depth, unit, shortcut, activation order, stem and widths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeship.toolkit.core.errors import ModelError, RecipeError, nearest
from edgeship.toolkit.core.tensors import Size, sides

Unit = Literal["basic", "bottleneck"]
Shortcut = Literal["A", "B", "C", "none"]
Stem = Literal["imagenet", "cifar"]

MOST_STEP = 7  # larger strides of the first convolution leave out pixels
EXPANSION = 4  # a bottleneck's output is four times its inner width
IMAGENET_BLOCKS: dict[int, tuple[Unit, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
PREFIXES = ("", "preact_", "plain_")


@dataclass(frozen=True, slots=True)
class Widths:
    """The channel counts that rebuild a (pruned) network.

    Attributes:
        stem: Output channels of the first convolution.
        streams: Output channels of each stage (of its residual additions).
        inner: Stage -> block -> channels inside the block: (w,) in a basic unit, (w1, w2) in a
            bottleneck, () where the block was dropped.
    """

    stem: int
    streams: tuple[int, ...]
    inner: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Architecture of a ResNet, without weights.

    Attributes:
        name: Name of the (unpruned) family member.
        unit: Two 3x3 convolutions, or 1x1, 3x3, 1x1.
        shortcut: A: strided, zero-padded identity; B: projection where the shape changes; C: projection
            everywhere; none: a plain net.
        preactivation: Whether BatchNorm and ReLU precede the convolutions of a unit (v2) or follow them (v1).
        stem: imagenet: 7x7 stride 2 and a max pool; cifar: 3x3 stride 1.
        classes: Outputs.
        channels: Colour channels of the input.
        widths: Channel counts.
        stem_strides: Strides of the first convolution and of the max pool, which set the resolution of all
            later layers; None: those of the family, (2, 2) or (1, 1). The cifar stem has no pool: (n, 1).

    Source:
        He et al. 2015, arXiv:1512.03385, sec. 3.3 and 4.2; He et al. 2016, arXiv:1603.05027, fig. 4e.
        Stride 2 of a bottleneck is in its 3x3 convolution, as in torchvision.
    """

    name: str
    unit: Unit
    shortcut: Shortcut
    preactivation: bool
    stem: Stem
    classes: int
    channels: int
    widths: Widths
    stem_strides: tuple[int, int] | None = None

    @property
    def stem_step(self) -> int:
        """Return the pixels between two positions of the input of the first block."""
        return math.prod(self.steps)

    @property
    def steps(self) -> tuple[int, int]:
        """Return the strides of the first convolution and of the max pool."""
        return self.stem_strides or ((2, 2) if self.stem == "imagenet" else (1, 1))

    def stem_sides(self, size: Size) -> tuple[int, int]:
        """Return height and width of the input of the first block, for an image of a size in pixels."""
        first, pool = self.steps
        return strided(strided(size, first), pool)

    def stride(self, stage: int, block: int) -> int:
        """Return the stride of a block: 2 for the first block of every later stage."""
        return 2 if stage > 0 and block == 0 else 1

    def width_in(self, stage: int, block: int) -> int:
        """Return the input channels of a block."""
        if block > 0:
            return self.widths.streams[stage]
        return self.widths.streams[stage - 1] if stage > 0 else self.widths.stem

    def projects(self, stage: int, block: int) -> bool:
        """Return True if the block's shortcut is a convolution."""
        changes = block == 0 and (stage > 0 or self.unit == "bottleneck")
        return self.shortcut == "C" or (self.shortcut == "B" and changes)

    def keeps_shape(self, stage: int, block: int) -> bool:
        """Return True if the block's shortcut is the identity, so that the block can be dropped."""
        if self.shortcut == "none" or self.projects(stage, block):
            return False
        return self.stride(stage, block) == 1 and self.width_in(stage, block) == self.widths.streams[stage]


def names() -> tuple[str, ...]:
    """Return the names of all family members."""
    depths = (*IMAGENET_BLOCKS, *CIFAR_DEPTHS)
    return tuple(f"{prefix}resnet{depth}" for prefix in PREFIXES for depth in depths)


def architecture(
    name: str,
    *,
    classes: int | None = None,
    channels: int = 3,
    shortcut: Shortcut | None = None,
    stem: Stem | None = None,
    width: int | None = None,
) -> Architecture:
    """Return the architecture of a named member, unpruned.

    Args:
        name: One of `names()`.
        classes: Outputs. Default: 1000; 10 for CIFAR depths.
        channels: Colour channels of the input.
        shortcut: Default: B; A for CIFAR depths; none for plain nets.
        stem: Default: by depth; e.g. the CIFAR stem on ResNet-18 for small images.
        width: Inner channels of the first stage, doubled by each later one. Default: 64; 16 for CIFAR depths.

    Raises:
        RecipeError: No member has that name.
    """
    if name not in names():
        raise RecipeError(f"no model named '{name}'", hint=nearest(name, names()))
    prefix, _, digits = name.partition("resnet")
    depth = int(digits)
    small = depth in CIFAR_DEPTHS
    unit, blocks = ("basic", ((depth - 2) // 6,) * 3) if small else IMAGENET_BLOCKS[depth]
    base = width or (16 if small else 64)
    inner_width = tuple(base * 2**stage for stage in range(len(blocks)))
    expansion = EXPANSION if unit == "bottleneck" else 1
    inner = tuple(
        ((w,) if unit == "basic" else (w, w),) * count for w, count in zip(inner_width, blocks, strict=True)
    )
    return Architecture(
        name=name,
        unit=unit,
        shortcut=shortcut or ("none" if prefix == "plain_" else "A" if small else "B"),
        preactivation=prefix == "preact_",
        stem=stem or ("cifar" if small else "imagenet"),
        classes=classes or (10 if small else 1000),
        channels=channels,
        widths=Widths(base, tuple(w * expansion for w in inner_width), inner),
    )


class PadShortcut(nn.Module):
    """Option A shortcut: strided subsampling, and zero channels split between front and back."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.front = (width_out - width_in) // 2
        self.back = width_out - width_in - self.front

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad x: (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.back))


class Block(nn.Module):
    """Residual unit: two or three convolutions and a shortcut."""

    downsample: nn.Module | None

    def __init__(self, arch: Architecture, stage: int, block: int) -> None:
        super().__init__()
        self.preactivation = arch.preactivation
        self.plain = arch.shortcut == "none"
        stride, width_in = arch.stride(stage, block), arch.width_in(stage, block)
        width_out = arch.widths.streams[stage]
        inner = arch.widths.inner[stage][block]
        kernels = (3, 3) if arch.unit == "basic" else (1, 3, 1)
        strided = 0 if arch.unit == "basic" else 1
        shape = (width_in, *inner, width_out)
        self.depth = len(kernels)
        for i, kernel in enumerate(kernels):
            step = stride if i == strided else 1
            conv = nn.Conv2d(shape[i], shape[i + 1], kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(shape[i] if self.preactivation else shape[i + 1]))
        self.downsample = None
        if arch.projects(stage, block):
            projection: list[nn.Module] = [nn.Conv2d(width_in, width_out, 1, stride, bias=False)]
            if not self.preactivation:
                projection.append(nn.BatchNorm2d(width_out))
            self.downsample = nn.Sequential(*projection)
        elif not self.plain and not arch.keeps_shape(stage, block):
            self.downsample = PadShortcut(width_in, width_out, stride)

    def conv(self, index: int) -> nn.Conv2d:
        """Return convolution `index` (from 1)."""
        return cast("nn.Conv2d", getattr(self, f"conv{index}"))

    def bn(self, index: int) -> nn.BatchNorm2d:
        """Return BatchNorm `index` (from 1)."""
        return cast("nn.BatchNorm2d", getattr(self, f"bn{index}"))

    @property
    def projection(self) -> nn.Sequential | None:
        """Return the shortcut if it is a convolution, else None."""
        return self.downsample if isinstance(self.downsample, nn.Sequential) else None

    def forward(self, x: Tensor) -> Tensor:
        """Run the unit on x: (N, in, H, W) -> (N, out, H / stride, W / stride)."""
        out = x
        for i in range(1, self.depth + 1):
            if self.preactivation:
                out = F.relu(self.bn(i)(out))
                if i == 1 and self.projection is not None:
                    x = out  # a projection has the input of the first convolution
                out = self.conv(i)(out)
            else:
                out = self.bn(i)(self.conv(i)(out))
                if i < self.depth:
                    out = F.relu(out)
        if not self.plain:
            out = out + (x if self.downsample is None else self.downsample(x))
        return out if self.preactivation else F.relu(out)


class ResNet(nn.Module):
    """A network built from its architecture, with torchvision's parameter names.

    One name is not torchvision's: `bn`, the last BatchNorm of a pre-activation network. Blocks keep their
    numbers when others are dropped.

    Raises:
        ModelError: The widths do not fit together.
    """

    conv1: nn.Conv2d
    fc: nn.Linear

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        arch = self.architecture = architecture
        _check(arch)
        large = arch.stem == "imagenet"
        kernel = 7 if large else 3
        self.conv1 = nn.Conv2d(
            arch.channels, arch.widths.stem, kernel, arch.steps[0], kernel // 2, bias=False
        )
        if not arch.preactivation:
            self.bn1 = nn.BatchNorm2d(arch.widths.stem)
        for stage, inner in enumerate(arch.widths.inner):
            blocks = (Block(arch, stage, b) if widths else nn.Identity() for b, widths in enumerate(inner))
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        if arch.preactivation:
            self.bn = nn.BatchNorm2d(arch.widths.streams[-1])
        self.fc = nn.Linear(arch.widths.streams[-1], arch.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def blocks(self) -> Iterator[tuple[str, int, int, Block]]:
        """Yield (name, stage, block, module) of every block that is not dropped, in order."""
        for stage in range(len(self.architecture.widths.streams)):
            for block, module in enumerate(cast("nn.Sequential", getattr(self, f"layer{stage + 1}"))):
                if isinstance(module, Block):
                    yield f"layer{stage + 1}.{block}", stage, block, module

    def forward_stem(self, images: Tensor) -> Tensor:
        """Run the stem: images (N, C, H, W) -> input of the first block."""
        out: Tensor = self.conv1(images)
        if not self.architecture.preactivation:
            out = F.relu(self.bn1(out))
        if self.architecture.stem == "cifar":
            return out
        return F.max_pool2d(out, 3, self.architecture.steps[1], 1)

    def forward_head(self, stream: Tensor) -> Tensor:
        """Run the head: output of the last block -> logits (N, classes)."""
        logits: Tensor = self.fc(self.pool(stream))
        return logits

    def pool(self, stream: Tensor) -> Tensor:
        """Pool the output of the last block -> input of the last layer (N, channels)."""
        if self.architecture.preactivation:
            stream = F.relu(self.bn(stream))
        return stream.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Classify preprocessed images (N, C, H, W) -> logits (N, classes)."""
        out = self.forward_stem(images)
        for _, _, _, block in self.blocks():
            out = block(out)
        return self.forward_head(out)


def build(arch: Architecture, *, seed: int | None = None) -> ResNet:
    """Build an initialized network; deterministic for a seed."""
    if seed is None:
        return ResNet(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(arch)


def resize(arch: Architecture, widths: Widths) -> Architecture:
    """Return the architecture with other widths."""
    return replace(arch, widths=widths)


def macs(arch: Architecture, size: Size) -> int:
    """Count multiply-accumulates of convolutions and the last layer, for one image of a size in pixels."""
    kernel = 49 if arch.stem == "imagenet" else 9
    total = math.prod(strided(size, arch.steps[0])) * kernel * arch.channels * arch.widths.stem
    area = arch.stem_sides(size)
    for stage, blocks in enumerate(arch.widths.inner):
        for block, inner in enumerate(blocks):
            if inner:
                total += block_macs(arch, stage, block, area)
            area = strided(area, arch.stride(stage, block))
    return total + arch.widths.streams[-1] * arch.classes


def strided(size: Size, stride: int) -> tuple[int, int]:
    """Return height and width of a padded layer's output: the input's divided by the stride, rounded up."""
    height, width = sides(size)
    return -(-height // stride), -(-width // stride)


def block_macs(arch: Architecture, stage: int, block: int, size: Size) -> int:
    """Count multiply-accumulates of one block with an input of a size in pixels."""
    stride, width_in = arch.stride(stage, block), arch.width_in(stage, block)
    inner, width_out = arch.widths.inner[stage][block], arch.widths.streams[stage]
    out, area = math.prod(strided(size, stride)), math.prod(sides(size))
    projection = width_in * width_out * out if arch.projects(stage, block) else 0
    if arch.unit == "basic":
        (w,) = inner
        return 9 * (width_in * w + w * width_out) * out + projection
    first, second = inner
    return width_in * first * area + (9 * first * second + second * width_out) * out + projection


def _check(arch: Architecture) -> None:
    widths = arch.widths
    counts = (widths.stem, *widths.streams, *(w for stage in widths.inner for inner in stage for w in inner))
    if min(counts) < 1 or len(widths.streams) != len(widths.inner):
        raise ModelError(
            f"widths do not fit together: {widths}; counts of at least 1 are expected",
            hint="build the model again from its checkpoint",
        )
    if not all(1 <= step <= MOST_STEP for step in arch.steps) or (arch.stem == "cifar" and arch.steps[1] > 1):
        raise ModelError(
            f"stem_strides are {arch.steps}; 1 to {MOST_STEP} are expected, without a pool the second is 1",
            hint="build the model again from its checkpoint",
        )
    per_block = 1 if arch.unit == "basic" else 2
    for stage, blocks in enumerate(widths.inner):
        for block, inner in enumerate(blocks):
            where = f"layer{stage + 1}.{block}"
            if not inner and not arch.keeps_shape(stage, block):
                raise ModelError(
                    f"{where} cannot be dropped: its shortcut is not the identity",
                    hint="drop only blocks with an identity shortcut",
                )
            if inner and len(inner) != per_block:
                raise ModelError(
                    f"{where} has {len(inner)} inner widths; {per_block} are expected for a {arch.unit} unit",
                    hint="give the widths of a network with the same unit",
                )
            grows = widths.streams[stage] >= arch.width_in(stage, block)
            pads = arch.shortcut in ("A", "B") and not arch.projects(stage, block)
            changes = widths.streams[stage] != arch.width_in(stage, block)
            if pads and (not grows or (changes and (arch.shortcut == "B" or block > 0))):
                raise ModelError(
                    f"{where}: {arch.width_in(stage, block)} channels cannot be added to "
                    f"{widths.streams[stage]} through its shortcut",
                    hint="prune the stem and the first stage to the same channels",
                )
