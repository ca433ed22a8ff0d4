"""2:4 sparsity: whether it can pay, and how to apply it to convolutions with their errors repaired."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.tensors import Size
from edgeship.toolkit.models.resnet import Architecture, ResNet, block_macs, macs
from edgeship.toolkit.prune.layer_refit import Site
from edgeship.toolkit.prune.least_squares import factor
from edgeship.toolkit.prune.reconstruction import Targets, entered, following, shortcut, trace
from edgeship.toolkit.prune.second_moments import System, at
from edgeship.toolkit.prune.width_search import block_sides

GROUP, KEPT = 4, 2  # of four neighbouring input channels at one tap, two stay
LEAST_CHANNELS = 256  # narrower convolutions were never seen to gain
LEAST_PART = 0.25  # of the multiply-accumulates, before it is worth a look
RIDGE = 1e-2


@dataclass(frozen=True, slots=True)
class SparsityAdvice:
    """Whether 2:4 sparsity can pay.

    Attributes:
        worthwhile: Whether to measure it at all.
        eligible_part: Part of the multiply-accumulates in convolutions that could gain.
        reason: In words.
    """

    worthwhile: bool
    eligible_part: float
    reason: str


def advise(arch: Architecture, *, size: Size, sparse_kernels: bool) -> SparsityAdvice:
    """Estimate from the shapes whether 2:4 sparsity can pay.

    Args:
        arch: The network.
        size: Height and width of the input, in pixels.
        sparse_kernels: Whether the target has kernels for it: of ours only TensorRT has.

    Source:
        NVIDIA/TensorRT issue 4065 (gains only from 256 channels), issue 2310 (usually under 15 % for a
        CNN), issue 4694 (INT8 graphs with explicit Q/DQ take no sparse kernels on Jetson, JetPack 6.1.2).
    """
    eligible = 0
    sides = block_sides(arch, size)
    for stage, blocks in enumerate(arch.widths.inner):
        for block, inner in enumerate(blocks):
            channels = (arch.width_in(stage, block), *inner)
            if inner and min(channels) >= LEAST_CHANNELS and all(c % 16 == 0 for c in channels):
                eligible += block_macs(arch, stage, block, sides[stage, block])
    part = eligible / macs(arch, size)
    if not sparse_kernels:
        return SparsityAdvice(False, part, "the target has no kernels for 2:4 sparsity")
    if part < LEAST_PART:
        return SparsityAdvice(
            False,
            part,
            f"only {part:.0%} of the work lies in convolutions of {LEAST_CHANNELS} channels and more",
        )
    return SparsityAdvice(
        True,
        part,
        f"{part:.0%} of the work could gain; INT8 graphs with Q/DQ took no sparse kernels on JetPack 6.1: "
        "measure an engine with random 2:4 weights before anything else",
    )


@torch.no_grad()
def sparsify(model: ResNet, images: Iterable[FloatArray], *, seed: int = 0) -> ResNet:
    """A copy whose block convolutions are 2:4 sparse, the other weights refitted.

    The groups are four neighbouring input channels at the same tap, as TensorRT reads them; per output,
    weights leave in the order of their OBS cost, and those that stay make up for them.

    Args:
        model: Left as it is; convolutions whose input channels are no multiple of 4 stay dense.
        images: Batches (N, C, H, W), preprocessed.
        seed: Of the sampled positions.

    Source:
        Pool and Yu 2021, arXiv:2104.08378, sec. 3; Frantar and Alistarh 2022, arXiv:2208.11580, sec. 3.
    """
    generator = torch.Generator().manual_seed(seed)
    sparse = copy.deepcopy(model).eval()
    stream = entered(sparse, map(torch.from_numpy, images))
    for _, _, _, block in track(list(sparse.blocks()), "2:4 sparsity"):
        targets = Targets(block, None, generator)
        onward = stream.map(targets.see)
        for i in range(1, block.depth + 1):
            conv, bn = block.conv(i), following(block, i)
            if conv.in_channels % GROUP:
                continue
            places = targets.places[i - 1]
            site = Site(conv, bn, targets.affines[i - 1], targets.wanted[i - 1], places, relu=False)
            if i == block.depth and not block.plain:
                pairs = zip(stream, places, strict=True)
                site.added = [at(shortcut(block, x, trace(block, x).inputs[0]), p) for x, p in pairs]
            inputs = stream.map(lambda x, block=block, i=i: trace(block, x).inputs[i - 1])  # type: ignore[misc]
            fit, check = site.moments(inputs)
            system = (fit + check).system(intercept=bn is not None)
            weight = prune_two_of_four(conv, system)
            conv.weight.data = weight.float()
            if bn is not None:
                rest = system.mean_t - system.mean_x @ weight.flatten(1).T
                bn.running_mean = targets.affines[i - 1].mean - rest.float()
        stream = onward
    return sparse


def prune_two_of_four(conv: nn.Conv2d, system: System) -> Tensor:
    """Weights (outputs, inputs, kh, kw) of a convolution, 2:4 sparse, float64.

    Columns are worked through tap by tap, channel by channel. In every group of four, each output
    gives up the two that cost it least; what that costs is made up by the columns still to come.

    Args:
        conv: The convolution; its inputs are a multiple of 4.
        system: Its normal equations.

    Source:
        Frantar and Alistarh 2023, arXiv:2301.00774, sec. 3.3, with groups across channels, not taps.
    """
    outputs, inputs, height, width = conv.weight.shape
    taps = height * width
    order = torch.arange(inputs * taps).reshape(inputs, taps).T.flatten()  # (tap, channel)
    amount = RIDGE * system.gram.diagonal().mean().clamp_min(1e-12)
    prior = conv.weight.flatten(1).T.double()
    inverse = torch.cholesky_inverse(factor(system.gram, amount))
    weight = (inverse @ (system.cross + amount * prior))[order].T.clone()
    upper = torch.linalg.cholesky(inverse[order][:, order], upper=True)
    pivots = upper.diagonal()
    for start in range(0, inputs * taps, GROUP):
        group = slice(start, start + GROUP)
        cost = (weight[:, group] / pivots[group]).square()
        gone = torch.zeros_like(cost, dtype=torch.bool).scatter_(1, cost.argsort(1)[:, : GROUP - KEPT], True)
        for k in range(GROUP):
            at_k = start + k
            lost = torch.where(gone[:, k], weight[:, at_k], 0.0) / pivots[at_k]
            weight[:, at_k:] -= torch.outer(lost, upper[at_k, at_k:])
        weight[:, group][gone] = 0.0
    restored = torch.empty_like(weight)
    restored[:, order] = weight
    return restored.reshape(outputs, inputs, height, width)
