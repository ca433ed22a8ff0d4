"""Weights rounded one input at a time, the later ones making up for the errors of the earlier.

A layer's output is a sum over its inputs, and neighbouring inputs are alike: what one weight loses by
rounding, its neighbours can give back. For the integers this asks for the inputs' second moments alone.
All inputs of a layer together take seconds to minutes; a kernel's taps and a few channels at a time take
next to none, and keep most of the gain. The inputs are those of the float network: their rounding errors
move second moments by less than one in a thousand, and without them no layer waits for another.

Source:
    Frantar et al. 2022 (GPTQ), arXiv:2210.17323; Frantar and Alistarh 2022 (OBQ), arXiv:2208.11580; blocks
    of inputs, and moments about the mean, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeship.quantization.fake_quant import dequantized, fake_quantize
from edgeship.quantization.overflow import clipped
from edgeship.quantization.placement import is_weighted, weight_axis
from edgeship.quantization.second_moments import Reader, in_blocks, observe
from edgeship.quantization.torch_executor import TorchExecutor, channels_last, side_by_side
from edgeship.toolkit.core.memory import release_freed_memory
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray, PairOrder, QParams
from edgeship.toolkit.core.threads import check_stop

ROWS = 2**15  # positions that a layer's second moments are taken over, where all inputs are fitted together
NEAR = 144  # inputs that next to no time is enough for: a 3x3 kernel's of 16 channels
NEAR_ROWS = 2**10  # positions for these
DAMPING = 0.01  # of the mean second moment: few images do not tell all of them
LARGEST = 4608**2  # numbers among the second moments of one layer: 85 MB; a 3x3 kernel's of 512 channels
AT_ONCE = 2**26  # numbers among the second moments of one pass over a group of images: memory
BLOCK = 16  # inputs between updates of all later weights


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights that are fitted."""

    name: str
    weight: Tensor
    qparams: QParams
    reader: Reader
    pairs: PairOrder | None

    @property
    def size(self) -> int:
        """Numbers among its second moments."""
        return self.reader.blocks * self.reader.width**2


@dataclass(frozen=True, slots=True)
class Fitted:
    """Weights that were fitted.

    Attributes:
        weights: Initializer name -> values on their grid.
        means: Of what the layers gave in the float network, as `moments.Observed` has them.
    """

    weights: dict[str, Tensor]
    means: dict[str, Tensor]


def gptq_weights(
    network: TorchExecutor,
    probe: FloatArray,
    weights: Mapping[str, QParams],
    together: int | None = None,
    pairs: PairOrder | None = None,
    *,
    biases: bool = True,
    nearest: bool = False,
) -> Fitted:
    """Round weights to fit what their layers read.

    Those of grouped convolutions, and those that several layers share, go to the nearest integers.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W).
        weights: Quantized initializers.
        together: About so many inputs of an output are fitted together: the taps of a kernel first, then of
            neighbouring channels. Time grows with its square; None: all.
        pairs: Which weights share a sum that must not saturate (see `saturation`); None: none do.
        biases: Whether bias correction makes up for errors of the mean: else the weights do.
        nearest: Round all weights to the nearest integers; only the means are observed.
    """
    images, found, means = network.parts(probe), {}, {}
    layers = [] if nearest else _layers(network, weights, together, pairs)
    rows = ROWS if together is None else NEAR_ROWS
    report_progress("fitting weights", 0, len(layers))
    for some in _portions(layers):
        observed = observe(network, images, [layer.reader for layer in some], rows, biases=biases)
        means = observed.means
        for layer, values in zip(some, side_by_side(_fit, _pairs(some, observed.moments)), strict=True):
            found[layer.name] = values
            report_progress("fitting weights", len(found), len(layers))
        release_freed_memory()
    for name in weights.keys() - found.keys():
        found[name] = fake_quantize(network.constants[name], weights[name])
    return Fitted(found, means)


def _layers(
    network: TorchExecutor, weights: Mapping[str, QParams], together: int | None, pairs: PairOrder | None
) -> list[_Layer]:
    """The layers whose weights can be fitted."""
    found = []
    for node in network.nodes:
        name = str(node.inputs[1].name) if is_weighted(node) and node.inputs[1] is not None else ""
        grouped = (node.attributes.get_int("group", 1) or 1) > 1
        if name not in weights or network.reads[name] > 1 or grouped:
            continue
        weight = network.constants[name]
        shape = tuple(weight.transpose(0, weight_axis(node)).shape)
        taps = weight[0, 0].numel()
        channels = shape[1] if together is None else min(max(together // taps, 1), shape[1])
        channels = min(channels, _most_channels(shape[1], taps))
        found.append(_Layer(name, weight, weights[name], Reader(node, shape, channels), pairs))
    return found


def _most_channels(channels: int, taps: int) -> int:
    """Return how many input channels of a layer are fitted together at most, in blocks of one size.

    Time and memory would grow with the cube and the square of the inputs: 25,088 of them need 2.5 GB for each
    copy of their second moments. So these have LARGEST numbers at most: up to 4,608 inputs are fitted
    together, of more the blocks get narrower as there are more of them.
    """
    inputs = channels * taps
    most = max(LARGEST // inputs // taps, 1)
    return -(-channels // -(-channels // most))


def _portions(layers: Sequence[_Layer]) -> list[list[_Layer]]:
    """Layers whose second moments find room together; one portion at least, for the means."""
    found: list[list[_Layer]] = [[]]
    for layer in layers:
        if found[-1] and sum(each.size for each in found[-1]) + layer.size > AT_ONCE:
            found.append([])
        found[-1].append(layer)
    return found


def _pairs(layers: Sequence[_Layer], moments: list[Tensor]) -> Iterator[tuple[_Layer, Tensor]]:
    """Each layer with its moments, which nobody else holds any more: memory."""
    for layer in layers:
        yield layer, moments.pop(0)


def _fit(pair: tuple[_Layer, Tensor]) -> Tensor:
    """The weights of a layer on their grid."""
    layer, moments = pair
    axis, shape = weight_axis(layer.reader.node), layer.reader.shape
    rows = layer.weight.transpose(0, axis).reshape(shape[0], -1)
    scale, limit = torch.tensor(layer.qparams.scale), layer.qparams.spec.quant_max
    steps = gptq_round(in_blocks(rows, layer.reader.width), moments, scale, limit)
    whole = steps.transpose(0, 1).reshape(shape[0], -1)[:, : rows.shape[1]].reshape(shape)
    if layer.pairs is not None:
        whole = clipped(whole, layer.pairs)
    return channels_last(dequantized(whole.transpose(0, axis), layer.qparams))


def gptq_round(weight: Tensor, moments: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Integers (B, O, K) for weights (B, O, K), so that the outputs change little.

    Args:
        weight: B blocks of inputs that are fitted apart; one row for every output.
        moments: Second moments of the inputs of every block, (B, K, K).
        scale: Step of every row, (O,).
        limit: Largest magnitude of an integer.
    """
    moments = moments.clone()
    diagonal = moments.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean()
    if mean <= 0.0:  # inputs that never change, but for rounding errors
        return (weight / scale[:, None]).round().clamp_(-limit, limit).to(torch.int8)
    diagonal.add_(DAMPING * mean)
    return _fitted(weight, *_shares(moments), scale, limit)


def _shares(moments: Tensor) -> tuple[Tensor, Tensor]:
    """In what order inputs are rounded, (B, K); what each of the later ones takes of an error, (B, K, K)."""
    # what matters most has most that can make up for it
    order = moments.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    backwards = order.flip(1)
    moments = moments.gather(1, backwards[:, :, None].expand_as(moments))
    moments = moments.gather(2, backwards[:, None].expand_as(moments))
    # L of moments backwards, inverted and turned round, is the U of their inverse = U^T U
    lower = torch.linalg.cholesky(moments)
    identity = torch.eye(lower.shape[1], dtype=lower.dtype)
    factor = torch.linalg.solve_triangular(lower, identity, upper=False).flip(1, 2)
    return order, factor / factor.diagonal(dim1=1, dim2=2)[:, :, None]


def _fitted(weight: Tensor, order: Tensor, shares: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Integers for weights (B, O, K), one input after another."""
    left = (weight / scale[:, None]).transpose(1, 2)  # (B, K, O)
    places = order[:, :, None].expand_as(left)
    left = left.gather(1, places)  # integers step by step
    errors = torch.empty_like(left[:, :BLOCK])
    for start in range(0, left.shape[1], BLOCK):
        check_stop()
        now = left[:, start : start + BLOCK]
        end = start + now.shape[1]
        own = shares[:, start:end, start:end, None]
        for i in range(end - start):
            steps = now[:, i].round().clamp_(-limit, limit)
            torch.sub(now[:, i], steps, out=errors[:, i])
            now[:, i] = steps
            now[:, i + 1 :].addcmul_(own[:, i, i + 1 :], errors[:, i, None], value=-1)
        left[:, end:].baddbmm_(shares[:, start:end, end:].transpose(1, 2), errors[:, : end - start], alpha=-1)
    integers = left.to(torch.int8)
    return torch.empty_like(integers).scatter_(1, places, integers).transpose(1, 2)
