"""GPTQ: round weights input by input; later weights compensate the rounding errors of earlier ones.

The inputs of a layer are correlated, so that neighbouring weights compensate each other's errors; this needs
the inputs' second moments only. All inputs of a layer in one block take seconds to minutes; blocks of a
kernel's taps and a few channels take little time and keep most of the gain. The inputs are those of the float
network: input rounding changes second moments by less than 0.1 %, and without it the layers are independent.

Source:
    Frantar et al. 2022 (GPTQ), arXiv:2210.17323; Frantar and Alistarh 2022 (OBQ), arXiv:2208.11580; blocks
    of inputs, and moments about the mean, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeship.quantization import bias
from edgeship.quantization.fake_quant import dequantized, fake_quantize
from edgeship.quantization.overflow import clip_pairs
from edgeship.quantization.placement import is_weighted
from edgeship.quantization.second_moments import BlockedLayer, collect_moments, in_blocks
from edgeship.quantization.torch_executor import TorchExecutor, channels_last, one_thread, side_by_side
from edgeship.toolkit.core.memory import release_freed_memory
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray, PairOrder, QParams
from edgeship.toolkit.core.threads import check_stop
from edgeship.toolkit.graph.query import weight_axis

ROWS = 2**15  # positions for the second moments, with all inputs in one block
NEAR = 144  # inputs of a small block: a 3x3 kernel of 16 channels
NEAR_ROWS = 2**10  # positions for the second moments of small blocks
DAMPING = 0.01  # fraction of the mean second moment: regularizes estimates from few images
LARGEST = 4608**2  # second moments of one layer: 85 MB; a 3x3 kernel of 512 channels
AT_ONCE = 2**26  # second moments of one pass over a group of images: memory
BLOCK = 16  # inputs between updates of all later weights (lazy batch updates)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Layer to round by GPTQ."""

    name: str
    weight: Tensor
    qparams: QParams
    blocked: BlockedLayer
    pairs: PairOrder | None

    @property
    def size(self) -> int:
        """Elements of the layer's second moments."""
        return self.blocked.blocks * self.blocked.width**2


@dataclass(frozen=True, slots=True)
class GptqResult:
    """GPTQ weights and the output means of the float network.

    Attributes:
        weights: Initializer name -> values on their grid.
        means: See `second_moments.LayerMoments`.
    """

    weights: dict[str, Tensor]
    means: dict[str, Tensor]


def fit_layers(
    network: TorchExecutor,
    probe: FloatArray,
    activations: Mapping[str, QParams],
    weights: Mapping[str, QParams],
    block_inputs: int | None = NEAR,
    pairs: PairOrder | None = None,
    *,
    biases: bool = True,
    nearest: bool = False,
) -> tuple[dict[str, Tensor], dict[str, FloatArray]]:
    """Round weights by GPTQ, then correct biases for the remaining mean errors.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W).
        activations: Quantized tensors.
        weights: Quantized initializers.
        block_inputs: See `gptq_weights`.
        pairs: See `gptq_weights`.
        biases: Correct biases; without, the weights compensate mean errors too.
        nearest: Round weights to nearest instead of by GPTQ.

    Returns:
        Initializer name -> values on their grid; node name -> correction of its bias.
    """
    with one_thread():  # serial work between parallel sections
        result = gptq_weights(network, probe, weights, block_inputs, pairs, biases=biases, nearest=nearest)
        if not biases:
            return result.weights, {}
        return result.weights, bias.corrections(network, probe, activations, result.weights, result.means)


def gptq_weights(
    network: TorchExecutor,
    probe: FloatArray,
    weights: Mapping[str, QParams],
    block_inputs: int | None = None,
    pairs: PairOrder | None = None,
    *,
    biases: bool = True,
    nearest: bool = False,
) -> GptqResult:
    """Round weights by GPTQ on the inputs of their layers.

    Weights of grouped convolutions, and weights that several layers share, are rounded to nearest.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W).
        weights: Quantized initializers.
        block_inputs: Approximate inputs in a block: the taps of a kernel, then neighbouring channels. Time
            grows with its square; None: all.
        pairs: Weights that share an int16 sum (see `overflow`); None: exact accumulation.
        biases: Bias correction compensates mean errors; without, the weights do.
        nearest: Round all weights to nearest; only channel means are collected.
    """
    images, rounded, means = network.parts(probe), {}, {}
    layers = [] if nearest else _layers(network, weights, block_inputs, pairs)
    rows = ROWS if block_inputs is None else NEAR_ROWS
    report_progress("fitting weights", 0, len(layers))
    for portion in _portions(layers):
        result = collect_moments(network, images, [layer.blocked for layer in portion], rows, biases=biases)
        means = result.means
        for layer, values in zip(
            portion, side_by_side(_fit, _with_moments(portion, result.moments)), strict=True
        ):
            rounded[layer.name] = values
            report_progress("fitting weights", len(rounded), len(layers))
        release_freed_memory()
    for name in weights.keys() - rounded.keys():
        rounded[name] = fake_quantize(network.constants[name], weights[name])
    return GptqResult(rounded, means)


def _layers(
    network: TorchExecutor,
    weights: Mapping[str, QParams],
    block_inputs: int | None,
    pairs: PairOrder | None,
) -> list[_Layer]:
    """Return the layers that GPTQ applies to."""
    layers = []
    for node in network.nodes:
        name = str(node.inputs[1].name) if is_weighted(node) and node.inputs[1] is not None else ""
        grouped = node.attributes.get_int("group", 1) > 1
        if name not in weights or network.reads[name] > 1 or grouped:
            continue
        weight = network.constants[name]
        shape = tuple(weight.transpose(0, weight_axis(node)).shape)
        taps = weight[0, 0].numel()
        channels = shape[1] if block_inputs is None else min(max(block_inputs // taps, 1), shape[1])
        channels = min(channels, _most_channels(shape[1], taps))
        layers.append(_Layer(name, weight, weights[name], BlockedLayer(node, shape, channels), pairs))
    return layers


def _most_channels(channels: int, taps: int) -> int:
    """Return the largest number of input channels in a block, with blocks of equal size.

    Time grows with the cube and memory with the square of the inputs: 25,088 inputs need 2.5 GB for each copy
    of their second moments. A layer is limited to LARGEST elements: up to 4,608 inputs are one block; above,
    blocks get narrower as their number grows.
    """
    inputs = channels * taps
    most = max(LARGEST // inputs // taps, 1)
    return -(-channels // -(-channels // most))


def _portions(layers: Sequence[_Layer]) -> list[list[_Layer]]:
    """Group layers by the memory of their second moments; at least one group, for the means."""
    portions: list[list[_Layer]] = [[]]
    for layer in layers:
        if portions[-1] and sum(each.size for each in portions[-1]) + layer.size > AT_ONCE:
            portions.append([])
        portions[-1].append(layer)
    return portions


def _with_moments(layers: Sequence[_Layer], moments: list[Tensor]) -> Iterator[tuple[_Layer, Tensor]]:
    """Yield each layer with its moments and drop the reference to them: memory."""
    for layer in layers:
        yield layer, moments.pop(0)


def _fit(pair: tuple[_Layer, Tensor]) -> Tensor:
    """Return the GPTQ weights of a layer."""
    layer, moments = pair
    axis, shape = weight_axis(layer.blocked.node), layer.blocked.shape
    rows = layer.weight.transpose(0, axis).reshape(shape[0], -1)
    scale, limit = torch.tensor(layer.qparams.scale), layer.qparams.spec.quant_max
    steps = gptq_round(in_blocks(rows, layer.blocked.width), moments, scale, limit)
    whole = steps.transpose(0, 1).reshape(shape[0], -1)[:, : rows.shape[1]].reshape(shape)
    if layer.pairs is not None:
        whole = clip_pairs(whole, layer.pairs)
    return channels_last(dequantized(whole.transpose(0, axis), layer.qparams))


def gptq_round(weight: Tensor, moments: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Round weights (B, O, K) to integers (B, O, K) with small change of the outputs.

    Args:
        weight: B independent blocks of inputs; one row for every output.
        moments: Second moments of the inputs of every block, (B, K, K).
        scale: Step of every row, (O,).
        limit: Largest magnitude of an integer.
    """
    moments = moments.clone()
    diagonal = moments.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean()
    if mean <= 0.0:  # constant inputs, up to rounding errors
        return (weight / scale[:, None]).round().clamp_(-limit, limit).to(torch.int8)
    diagonal.add_(DAMPING * mean)
    return _rounded(weight, *_compensation(moments), scale, limit)


def _compensation(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounding order of inputs (B, K) and the error shares of later inputs (B, K, K)."""
    # largest first: the most later inputs compensate it
    order = moments.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    backwards = order.flip(1)
    moments = moments.gather(1, backwards[:, :, None].expand_as(moments))
    moments = moments.gather(2, backwards[:, None].expand_as(moments))
    # the inverse of the Cholesky factor L of the reversed moments, reversed, is U in inverse = U^T U
    lower = torch.linalg.cholesky(moments)
    identity = torch.eye(lower.shape[1], dtype=lower.dtype)
    factor = torch.linalg.solve_triangular(lower, identity, upper=False).flip(1, 2)
    return order, factor / factor.diagonal(dim1=1, dim2=2)[:, :, None]


def _rounded(weight: Tensor, order: Tensor, shares: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Round weights (B, O, K) one input after another."""
    left = (weight / scale[:, None]).transpose(1, 2)  # (B, K, O)
    places = order[:, :, None].expand_as(left)
    left = left.gather(1, places)  # turns into integers input by input
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
