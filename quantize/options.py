"""What a user may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeship.toolkit.core.parallel import Backend


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How much work goes into a quantized graph.

    Attributes:
        observer: Rule for the ranges of activations: mse, minmax, percentile or entropy. With `mse` and
            more than the least effort, the error is that of the logits.
        effort: fast: an observer, nothing else; balanced: equalization, output-aware ranges, weights
            fitted to what neighbouring inputs share, and bias correction; max: weights fitted to all their
            inputs and scales learned on the logits, in minutes, and residual Adds in float, for which the
            engine takes longer (4 % on OpenVINO; not measured on TensorRT; ONNX Runtime adds integers).
        bias_correction: Whether biases absorb the mean error of their layer; without, the fitted weights do.
        sensitivity: Whether to measure what each layer costs: seconds to minutes more.
        workers: Batches of images at a time where layers are measured; more than 1 only pays elsewhere.
        backend: Where the workers are, see `edgeship.toolkit.core.parallel`.
        float_layers: Names of convolutions and fully connected layers that stay in float.
    """

    observer: str = "mse"
    effort: Literal["fast", "balanced", "max"] = "balanced"
    bias_correction: bool = True
    sensitivity: bool = False
    float_layers: tuple[str, ...] = ()
    workers: int = 1
    backend: Backend = "threading"
