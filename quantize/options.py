"""What a user may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeship.toolkit.core.parallel import Backend


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How much work goes into a quantized graph.

    Attributes:
        observer: Rule for the ranges of activations: logits (least error of the logits; mse with effort
            fast), mse, minmax, percentile or entropy.
        effort: fast: an observer, nothing else; balanced: equalization, output-aware ranges, weights
            fitted to what neighbouring inputs share, and bias correction; max: weights fitted to all their
            inputs and scales learned on the logits, in minutes, and residual Adds in float, for which the
            engine takes longer (4 % on OpenVINO; not measured on TensorRT; ONNX Runtime adds integers).
        weight_rounding: gptq (by second moments of the inputs; nearest with effort fast) or nearest.
        bias_correction: Correct biases by the mean error of their layer; without, GPTQ weights include it.
        sensitivity: Whether to measure what each layer costs: seconds to minutes more.
        workers: Batches of images at a time where layers are measured; more than 1 only pays elsewhere.
        backend: Where the workers are, see `edgeship.toolkit.core.parallel`.
        float_layers: Names of convolutions and fully connected layers that stay in float.
    """

    observer: str = "logits"
    effort: Literal["fast", "balanced", "max"] = "balanced"
    weight_rounding: Literal["gptq", "nearest"] = "gptq"
    bias_correction: bool = True
    sensitivity: bool = False
    float_layers: tuple[str, ...] = ()
    workers: int = 1
    backend: Backend = "threading"
