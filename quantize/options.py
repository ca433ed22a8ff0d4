"""Options of quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeship.toolkit.core import plugins
from edgeship.toolkit.core.options import option


def _observers() -> tuple[str, ...]:
    return ("logits", *plugins.names("edgeship.quantization.observers"))


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Post-training quantization: from activation statistics to Q/DQ graphs.

    Effort fast: the observer only; balanced: equalization, logit-aware clipping, GPTQ in small blocks, bias
    correction; max: GPTQ over all inputs and learned scales, in minutes, and float residual Adds, which
    increase latency (4 % on OpenVINO; not measured on TensorRT; none on ONNX Runtime).
    """

    observer: str = option(
        "logits",
        "Activation ranges: logits (least error of the logits; effort fast: mse), mse, minmax, percentile or "
        "entropy.",
        known=_observers,
    )
    effort: Literal["fast", "balanced", "max"] = option(
        "balanced", "fast (seconds), balanced, or max (minutes: scales learned, residual Adds in float)."
    )
    weight_rounding: Literal["gptq", "nearest"] = option(
        "gptq", "gptq (second moments of the inputs; nearest with effort fast) or nearest."
    )
    bias_correction: bool = option(
        True, "Correct biases by the mean error of their layer; without, GPTQ weights include it."
    )
    sensitivity: bool = option(
        False, "Measure the quantization error of each layer; seconds to minutes more."
    )
    overflow_fix: Literal["auto", "exact", "pairs"] = option(
        "auto",
        "INT8 accumulation of the target CPU: exact (VNNI), pairs (int16, may overflow), auto "
        "(this machine).",
        renamed_from="int8_sums",
    )
    float_layers: tuple[str, ...] = option((), "Layers that stay in float, by the graph's node names.")
    max_validation_drop_pp: float | None = option(
        None,
        "Largest top-1 drop of INT8 on the validation images, in percentage points; met by layers in float.",
        least=0.0,
        renamed_from="max_drop_pp",
        flag="--max-drop",
        former_flags=("--max-validation-drop-pp",),
    )
    min_agreement: float | None = option(
        None, "Minimum top-1 agreement with FP32 (no labels needed).", least=0.0, most=1.0
    )
    validation_images: int = option(
        1000,
        "Number of validation images, none of them for calibration, that check these limits.",
        least=1,
        renamed_from="judge_images",
    )

    @property
    def limited(self) -> bool:
        """Return True if INT8 has an accuracy limit."""
        return self.max_validation_drop_pp is not None or self.min_agreement is not None
