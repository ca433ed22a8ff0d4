"""Normalization of pixels that a graph does itself: mean and standard deviation found in its first nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph.fold import channel_permutation

Doubles = npt.NDArray[np.float64]
PASSED = frozenset({"Identity", "Cast", "Dropout"})
MAX_NODES = 16  # that one normalization is made of
PIXEL_MAX = 255.0


@dataclass(frozen=True, slots=True)
class InputNormalization:
    """What a graph does to pixels before its first layer.

    Attributes:
        mean: Per-channel mean that is subtracted, of pixels in [0, 1].
        std: Per-channel standard deviation by which is divided, of pixels in [0, 1].
        scale: The largest value of the pixels that the graph takes: 1 or 255.
        nodes: Names of the nodes that do it; empty where the input's type alone says that it takes pixels.
        output: Name of the tensor that holds (pixels / scale - mean) / std; empty if it is no such tensor
            exactly (a mean image has another mean at every position), or if there are no nodes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: Literal[1, 255]
    nodes: tuple[str, ...]
    output: str

    @property
    def raw(self) -> Preprocess:
        """Preprocessing that hands the graph raw pixels in its range."""
        channels = len(self.mean)
        return Preprocess(mean=(0.0,) * channels, std=(1.0 / self.scale,) * channels)

    def apply(self, images: FloatArray) -> FloatArray:
        """Return what `output` is for images (N, C, H, W) as the graph takes them, in float32."""
        mean, std = (np.array(each)[:, None, None] for each in (self.mean, self.std))
        result: FloatArray = ((images / np.float64(self.scale) - mean) / std).astype(np.float32)
        return result


def find_input_normalization(model: ir.Model, *, are_pixels: bool = False) -> InputNormalization | None:
    """Find out what a graph subtracts from its images, and divides them by, before the first layer.

    Products, sums and BatchNormalization with constants are followed from the input on. What they do
    together, (x - mean) / std, is a normalization of pixels where the constants are those of pixels: a mean
    of 0.2 to 0.8 with a deviation of 0.1 to 1 (pixels in 0..1), a mean above 5 (0..255), or a division by
    100 to 300 alone (0..255). Other factors (e.g. a change from one normalization to another, as in
    torchvision's GoogLeNet) are none.

    Args:
        model: A float graph that takes (N, C, H, W), constants as initializers.
        are_pixels: Whether the input of the file is uint8: pixels in 0..255, whatever the constants.

    Returns:
        None: The graph takes images that are normalized already, as far as its constants show.
    """
    image = next(value for value in model.graph.inputs if value.name not in model.graph.initializers)
    channels = image.shape[1] if image.shape is not None and len(image.shape) == 4 else None
    if not isinstance(channels, int):
        return None
    gain, shift, nodes = np.ones(channels), np.zeros(channels), []
    read = np.arange(channels)  # which channel of the image each channel of the tensor is
    value, is_exact = image, True
    for _ in range(MAX_NODES):
        uses = value.uses()
        node = next(iter(uses)).node if len(uses) == 1 else None
        if node is None:
            break
        order = channel_permutation(node) if node.inputs[0] is value else None
        step = _step(node, value, channels)
        if order is not None:
            gain, shift, read = gain[order], shift[order], read[order]
        elif step is not None:
            gain, shift = step(gain, shift)
            is_exact &= not _varies(node)
        else:
            break
        if node.op_type not in PASSED:
            nodes.append(str(node.name))
        value = node.outputs[0]
    gain, shift = gain[np.argsort(read)], shift[np.argsort(read)]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, std = -shift / gain, 1 / gain
    scale = _range_of(mean, std) if np.isfinite([mean, std]).all() else None
    if are_pixels:
        scale = 255
        mean, std = (mean, std) if np.isfinite([mean, std]).all() else (np.zeros(channels), np.ones(channels))
    if scale is None:
        return None
    return InputNormalization(
        tuple((mean / scale).tolist()),
        tuple((std / scale).tolist()),
        scale,
        tuple(nodes),
        str(value.name) if nodes and is_exact and (read == np.arange(channels)).all() else "",
    )


def _range_of(mean: Doubles, std: Doubles) -> Literal[1, 255] | None:
    """The largest pixel value for which these are mean and deviation, if they are those of pixels."""
    if (std <= 0).any():
        return None
    if (mean >= 0.2).all() and (mean <= 0.8).all() and (std >= 0.1).all() and (std <= 1).all():
        return 1
    centred = (np.abs(mean) < 1e-3 * std).all() and (std >= 100).all()
    subtracted = (mean > 5).all() and (mean < PIXEL_MAX).all()
    return 255 if (centred or subtracted) and (std <= 300).all() else None


Step = Callable[[Doubles, Doubles], tuple[Doubles, Doubles]]


def _step(node: ir.Node, value: ir.Value, channels: int) -> Step | None:
    """What a node does to gain and shift of each channel; None if it is more than that."""
    if node.op_type in PASSED:
        return lambda gain, shift: (gain, shift)
    if node.op_type == "BatchNormalization":
        arrays = [_array(each) for each in node.inputs[1:]]
        if node.inputs[0] is not value or len(arrays) != 4 or any(array is None for array in arrays):
            return None
        gamma, beta, mean, variance = (array.reshape(-1) for array in arrays if array is not None)
        factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return lambda gain, shift: (gain * factor, (shift - mean) * factor + beta)
    if node.op_type not in {"Add", "Sub", "Mul", "Div"} or len(node.inputs) != 2:
        return None
    is_first = node.inputs[0] is value
    mean_image = node.op_type in {"Add", "Sub"}  # of Caffe: another mean at every position
    other = _by_channel(_array(node.inputs[1 if is_first else 0]), channels, averaged=mean_image)
    if other is None or (node.op_type == "Div" and not is_first):
        return None
    if node.op_type == "Add":
        return lambda gain, shift: (gain, shift + other)
    if node.op_type == "Mul":
        return lambda gain, shift: (gain * other, shift * other)
    if node.op_type == "Div":
        return lambda gain, shift: (gain / other, shift / other)
    sign = 1.0 if is_first else -1.0
    return lambda gain, shift: (sign * gain, sign * (shift - other))


def _varies(node: ir.Node) -> bool:
    """Whether a constant of a node has other numbers at other positions of (N, C, H, W)."""
    if node.op_type == "BatchNormalization":
        return False
    arrays = [array for array in map(_array, node.inputs) if array is not None and array.ndim > 1]
    return any(np.ptp(array, axis=(array.ndim - 2, array.ndim - 1)).any() for array in arrays)


def _array(value: ir.Value | None) -> Doubles | None:
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy()).astype(np.float64)


def _by_channel(array: Doubles | None, channels: int, *, averaged: bool) -> Doubles | None:
    """One number a channel of a constant: the same at every position of (N, C, H, W), or `averaged`."""
    if array is None or array.ndim > 4:
        return None
    full = array.reshape((1,) * (4 - array.ndim) + array.shape)
    if full.shape[0] != 1 or full.shape[1] not in (1, channels):
        return None
    flat = full[0].reshape(full.shape[1], -1)
    if not averaged and (flat != flat[:, :1]).any():
        return None
    return np.broadcast_to(flat.mean(1), channels).copy()
