"""Detection of pixel normalization (mean and standard deviation) in the first nodes of a graph."""

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
MAX_NODES = 16  # of one normalization
PIXEL_MAX = 255.0


@dataclass(frozen=True, slots=True)
class InputNormalization:
    """Normalization of pixels before the first layer of a graph.

    Attributes:
        mean: Per-channel mean of pixels in [0, 1].
        std: Per-channel standard deviation of pixels in [0, 1].
        scale: Largest value of the graph's input pixels: 1 or 255.
        nodes: Names of its nodes; empty if only the input type (uint8) shows raw pixels.
        output: Name of the tensor (pixels / scale - mean) / std; empty if no tensor equals it (a mean
            image varies by position), or without nodes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: Literal[1, 255]
    nodes: tuple[str, ...]
    output: str

    @property
    def raw(self) -> Preprocess:
        """Return the preprocessing to raw pixels in the graph's range."""
        channels = len(self.mean)
        return Preprocess(mean=(0.0,) * channels, std=(1.0 / self.scale,) * channels)

    def apply(self, images: FloatArray) -> FloatArray:
        """Compute `output` in float32 for input images (N, C, H, W)."""
        mean, std = (np.array(each)[:, None, None] for each in (self.mean, self.std))
        result: FloatArray = ((images / np.float64(self.scale) - mean) / std).astype(np.float32)
        return result


def find_input_normalization(model: ir.Model, *, are_pixels: bool = False) -> InputNormalization | None:
    """Find the mean and standard deviation that a graph applies to its images before the first layer.

    Products, sums and BatchNormalization with constants are followed from the input and combined to
    (x - mean) / std. It is a normalization of pixels if the mean is 0.2 to 0.8 and the deviation 0.1 to 1
    (pixels in 0..1), the mean is above 5 (0..255), or the mean is 0 and the deviation 100 to 300 (0..255).
    Other constants (e.g. a change between normalizations, as in torchvision's GoogLeNet) are not.

    Args:
        model: A float graph with input (N, C, H, W), constants as initializers.
        are_pixels: Whether the input of the file is uint8: pixels in 0..255 for any constants.

    Returns:
        The normalization; None if the constants show none (normalized input images).
    """
    image = next(value for value in model.graph.inputs if value.name not in model.graph.initializers)
    channels = image.shape[1] if image.shape is not None and len(image.shape) == 4 else None
    if not isinstance(channels, int):
        return None
    gain: Doubles = np.ones(channels)
    shift: Doubles = np.zeros(channels)
    nodes = []
    channel_map: npt.NDArray[np.int64] = np.arange(channels)  # channel of the tensor -> channel of the image
    value, is_exact = image, True
    for _ in range(MAX_NODES):
        uses = value.uses()
        node = next(iter(uses)).node if len(uses) == 1 else None
        if node is None:
            break
        order = channel_permutation(node) if node.inputs[0] is value else None
        step = _affine_step(node, value, channels)
        if order is not None:
            gain, shift, channel_map = gain[order], shift[order], channel_map[order]
        elif step is not None:
            gain, shift = step(gain, shift)
            is_exact &= not _varies_by_position(node)
        else:
            break
        if node.op_type not in PASSED:
            nodes.append(str(node.name))
        value = node.outputs[0]
    gain, shift = gain[np.argsort(channel_map)], shift[np.argsort(channel_map)]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, std = -shift / gain, 1 / gain
    scale = _pixel_range(mean, std) if np.isfinite([mean, std]).all() else None
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
        str(value.name) if nodes and is_exact and (channel_map == np.arange(channels)).all() else "",
    )


def _pixel_range(mean: Doubles, std: Doubles) -> Literal[1, 255] | None:
    """Return the largest pixel value that fits mean and deviation; None if they are not of pixels."""
    if (std <= 0).any():
        return None
    if (mean >= 0.2).all() and (mean <= 0.8).all() and (std >= 0.1).all() and (std <= 1).all():
        return 1
    centred = (np.abs(mean) < 1e-3 * std).all() and (std >= 100).all()
    subtracted = (mean > 5).all() and (mean < PIXEL_MAX).all()
    return 255 if (centred or subtracted) and (std <= 300).all() else None


Step = Callable[[Doubles, Doubles], tuple[Doubles, Doubles]]


def _affine_step(node: ir.Node, value: ir.Value, channels: int) -> Step | None:
    """Return a node's update of gain and shift per channel; None if it is not affine per channel."""
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
    mean_image = node.op_type in {"Add", "Sub"}  # of Caffe: varies by position
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


def _varies_by_position(node: ir.Node) -> bool:
    """Return True if a constant of a node varies over the positions of (N, C, H, W)."""
    if node.op_type == "BatchNormalization":
        return False
    arrays = [array for array in map(_array, node.inputs) if array is not None and array.ndim > 1]
    return any(np.ptp(array, axis=(array.ndim - 2, array.ndim - 1)).any() for array in arrays)


def _array(value: ir.Value | None) -> Doubles | None:
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy()).astype(np.float64)


def _by_channel(array: Doubles | None, channels: int, *, averaged: bool) -> Doubles | None:
    """Return one value per channel of a constant (N, C, H, W), the same at every position or `averaged`."""
    if array is None or array.ndim > 4:
        return None
    full = array.reshape((1,) * (4 - array.ndim) + array.shape)
    if full.shape[0] != 1 or full.shape[1] not in (1, channels):
        return None
    flat = full[0].reshape(full.shape[1], -1)
    if not averaged and (flat != flat[:, :1]).any():
        return None
    return np.broadcast_to(flat.mean(1), channels).copy()
