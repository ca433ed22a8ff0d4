"""Options of quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeship.toolkit.core.parallel import Backend


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Method and effort of post-training quantization.

    Attributes:
        observer: Rule for activation ranges: logits (least error of the logits; mse with effort fast), mse,
            minmax, percentile or entropy.
        effort: fast: observer only; balanced: equalization, logit-aware clipping, GPTQ in small blocks, bias
            correction; max: GPTQ over all inputs and learned scales, in minutes, and float residual Adds,
            which increase latency (4 % on OpenVINO; not measured on TensorRT; none on ONNX Runtime).
        weight_rounding: gptq (by second moments of the inputs; nearest with effort fast) or nearest.
        bias_correction: Biases absorb the mean error of their layer; without, the GPTQ weights do.
        sensitivity: Measure the sensitivity of each layer: seconds to minutes more.
        workers: Parallel batches of the sensitivity analysis; more than 1 is faster only on other machines.
        backend: Backend of the workers, see `edgeship.toolkit.core.parallel`.
        float_layers: Names of convolutions and fully connected layers to leave in float.
    """

    observer: str = "logits"
    effort: Literal["fast", "balanced", "max"] = "balanced"
    weight_rounding: Literal["gptq", "nearest"] = "gptq"
    bias_correction: bool = True
    sensitivity: bool = False
    float_layers: tuple[str, ...] = ()
    workers: int = 1
    backend: Backend = "threading"
