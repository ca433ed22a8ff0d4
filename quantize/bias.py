"""Bias correction: the mean of every channel stays what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quantize.network import Network, parts, side_by_side
from quantize.placement import is_weighted
from quantize.simulate import dequantized, fake_quantize, quantized
from toolkit.core.memory import give_back
from toolkit.core.progress import track
from toolkit.core.quant import FloatArray, QParams

Rounding = Callable[[ir.Node, str, Sequence[Callable[[], Tensor]]], Tensor]  # node, weights, its inputs

TRIMMED = 10  # one image in so many is left out at either end


def corrections(
    network: Network,
    probe: FloatArray,
    activations: Mapping[str, QParams],
    weights: Mapping[str, QParams],
    choose: Rounding | None = None,
) -> dict[str, FloatArray]:
    """What to add to the bias of every convolution and Gemm, so that its output keeps its channel means.

    The float network runs first, and only its means are kept. Then the quantized one runs layer by layer; a
    layer is corrected before the next one is run, so that each corrects only what is left of the errors
    before it.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W), all in memory at once.
        activations: Quantized tensors.
        weights: Quantized initializers.
        choose: Rounds the weights of a layer; without it they go to the nearest integers.

    Returns:
        Node name -> correction for each of its output channels.

    Source:
        Nagel et al. 2019, arXiv:1906.04721, sec. 4.2, empirical and sequential; the trimmed mean is ours.
    """
    images = parts(probe)
    exact = _exact_means(network, images)
    running = [_Part(network, part, activations) for part in images]
    found: dict[str, FloatArray] = {}
    unread = dict(network.reads)
    for node in track(network.nodes, "correcting biases" if choose is None else "fitting weights"):
        rounded = _rounded_weight(network, node, weights, choose, running)
        read = [str(value.name) for value in node.inputs if value is not None]
        for name in read:
            unread[name] -= 1
        done = [name for name in read if not unread[name]]
        if not _has_bias(node):  # memory: a part's input goes before the next part's result comes
            for _ in side_by_side(lambda part: part.through(node, rounded, done), running):  # noqa: B023
                pass
            continue
        means = list(side_by_side(lambda part: part.run(node, rounded), running))  # noqa: B023 (used at once)
        shift = _typical(exact[str(node.outputs[0].name)] - torch.cat(means))
        found[str(node.name)] = np.array(shift.numpy())
        for _ in side_by_side(lambda part: part.correct(node, shift, done), running):  # noqa: B023
            pass
    del running
    give_back()
    return found


def _exact_means(network: Network, images: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean of every image and channel of what is corrected, in the float network: name -> (N, C)."""
    corrected = {str(node.outputs[0].name) for node in network.nodes if _has_bias(node)}

    @torch.inference_mode()
    def run(part: Tensor) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def look(name: str, value: Tensor) -> Tensor:
            if name in corrected:
                seen[name] = _means(value)
            return value

        network(part, look)
        return seen

    found = list(side_by_side(run, images))
    give_back()
    return {name: torch.cat([seen[name] for seen in found]) for name in corrected}


def _means(values: Tensor) -> Tensor:
    """Means of (N, C, ...) over all but images and channels, (N, C)."""
    return values.mean(tuple(range(2, values.ndim))) if values.ndim > 2 else values.clone()


class _Part:
    """Some images on their way through the quantized network; what is quantized is kept as integers."""

    def __init__(self, network: Network, images: Tensor, activations: Mapping[str, QParams]) -> None:
        self._network, self._activations = network, activations
        self._values = {network.input: self._kept(network.input, images)}

    @torch.inference_mode()
    def run(self, node: ir.Node, rounded: dict[str, Tensor]) -> Tensor:
        """Run a node, with its weights rounded; the mean of every image and channel."""
        read = {str(value.name) for value in node.inputs if value is not None} & self._values.keys()
        result = self._network.apply(node, {name: self._value(name) for name in read} | rounded)
        self._values[str(node.outputs[0].name)] = result
        return _means(result) if _has_bias(node) else torch.empty(0)

    def through(self, node: ir.Node, rounded: dict[str, Tensor], done: Iterable[str]) -> None:
        """Run a node that nothing corrects, quantize its result, forget what is done."""
        self.run(node, rounded)
        self.correct(node, None, done)

    @torch.inference_mode()
    def correct(self, node: ir.Node, shift: Tensor | None, done: Iterable[str]) -> None:
        """Add what its layer is corrected by to the result of a node, quantize it, forget what is done."""
        name = str(node.outputs[0].name)
        result = self._values[name]
        if shift is not None:
            result = result.add_(shift.reshape(-1, *[1] * (result.ndim - 2)))
        self._values[name] = self._kept(name, result)
        for each in done:
            self._values.pop(each, None)

    def read(self, name: str) -> Tensor:
        """A tensor that was made and is not forgotten."""
        return self._value(name)

    def _kept(self, name: str, values: Tensor) -> Tensor:
        qparams = self._activations.get(name)
        return values if qparams is None else quantized(values, qparams)

    def _value(self, name: str) -> Tensor:
        qparams = self._activations.get(name)
        return self._values[name] if qparams is None else dequantized(self._values[name], qparams)


def _has_bias(node: ir.Node) -> bool:
    """Whether a weighted layer has, or may be given, a bias."""
    return is_weighted(node) and node.op_type != "MatMul"


def _typical(error: Tensor) -> Tensor:
    """Mean error of every channel (C,) of (N, C), without the tenth of images at either end.

    An image whose outlier is clipped errs far from all others; correcting for it would harm them.
    """
    cut = len(error) // TRIMMED
    return error.sort(0).values[cut : len(error) - cut].mean(0)


def _rounded_weight(
    network: Network,
    node: ir.Node,
    weights: Mapping[str, QParams],
    choose: Rounding | None,
    running: Iterable[_Part],
) -> dict[str, Tensor]:
    """The weight of a node on its grid, if it is quantized."""
    name = str(node.inputs[1].name) if is_weighted(node) and node.inputs[1] is not None else ""
    if name not in weights:
        return {}
    if choose is None:
        return {name: fake_quantize(network.constants[name], weights[name])}
    source = str(node.inputs[0].name)  # type: ignore[union-attr]
    return {name: choose(node, name, [partial(part.read, source) for part in running])}
