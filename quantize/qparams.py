"""Quantization parameters: scale and zero point from a range."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core.errors import QuantizationError
from edgeship.toolkit.core.quant import QParams, QuantSpec, Range

MIN_SCALE = 2.0**-23  # float32 epsilon: avoids division by zero in all-zero (pruned) channels


def choose_qparams(observed: Range, spec: QuantSpec) -> QParams:
    """Choose scale and zero point to cover a range.

    A real x is stored as q = clip(round(x / scale) + zero_point) and dequantized as
    (q - zero_point) * scale. The range is widened to contain 0, so that padding and ReLU are exact.

    Args:
        observed: C lowest and C highest values, in the tensor's units; C = 1 is per-tensor.
        spec: Integer type, symmetry and axis.

    Returns:
        C scales (tensor units per integer step, > 0) and C zero points (integer steps).

    Raises:
        QuantizationError: A bound is NaN or infinite, or a low is above its high.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, eq. 1; Wu et al. 2020, arXiv:2004.09602, sec. 3.1.
    """
    if not (
        np.isfinite([observed.low, observed.high]).all() and np.less_equal(observed.low, observed.high).all()
    ):
        raise QuantizationError(
            f"unusable range: low {observed.low}, high {observed.high}; expected finite low <= high",
            hint="look for NaN: `edgeship inspect ranges MODEL IMAGES` shows the range of every tensor",
        )
    low, high = np.minimum(observed.low, 0.0), np.maximum(observed.high, 0.0)
    if spec.symmetric:
        largest = np.maximum(-low, high) if spec.dtype != "uint8" else high
        scale = np.maximum(largest / spec.quant_max, MIN_SCALE)
        zero_point = np.zeros_like(scale)
    else:
        scale = np.maximum((high - low) / (spec.quant_max - spec.quant_min), MIN_SCALE)
        zero_point = np.round(spec.quant_min - low / scale)
    return QParams(tuple(scale.tolist()), tuple(zero_point.astype(int).tolist()), spec)


def weight_qparams(weight: npt.NDArray[np.float32], spec: QuantSpec) -> QParams:
    """Choose the scales of a weight tensor, one per channel of `spec.axis`, from its largest magnitudes.

    Raises:
        QuantizationError: A weight is NaN or infinite.
    """
    axis = spec.axis or 0
    rest = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(rest)
    bound = tuple(largest.tolist())
    return choose_qparams(Range(tuple(-v for v in bound), bound), spec)


def stored_array(values: npt.NDArray[np.float32], qparams: QParams) -> npt.NDArray[Any]:
    """Quantize an array to the type in which it is stored."""
    if qparams.spec.dtype != "float8e4m3fn":
        return quantize_array(values, qparams).astype(qparams.spec.dtype)
    scale, _ = _along_axis(values, qparams)
    scaled = np.clip(values / scale.astype(np.float32), -qparams.spec.quant_max, qparams.spec.quant_max)
    return scaled.astype(ml_dtypes.float8_e4m3fn)


def quantize_array(values: npt.NDArray[np.float32], qparams: QParams) -> npt.NDArray[np.int32]:
    """Quantize an array; round half to even as ONNX QuantizeLinear."""
    scale, zero_point = (each.astype(np.float32) for each in _along_axis(values, qparams))
    steps = values / scale
    np.round(steps, out=steps)
    steps += zero_point
    np.clip(steps, qparams.spec.quant_min, qparams.spec.quant_max, out=steps)
    return steps.astype(np.int32)


def _along_axis(values: npt.NDArray[Any], qparams: QParams) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    shape = [1] * values.ndim
    if qparams.spec.axis is not None:
        shape[qparams.spec.axis] = -1
    return np.reshape(qparams.scale, shape), np.reshape(qparams.zero_point, shape)
