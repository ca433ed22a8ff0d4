"""INT8 post-training quantization: statistics, placement, parameters, Q/DQ graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeship.quantization.options import QuantizeOptions

if TYPE_CHECKING:
    from edgeship.quantization.mixed_precision import AccuracyConstraint
    from edgeship.quantization.runtime_check import Runtime
    from edgeship.quantization.statistics import Statistics
    from edgeship.toolkit.core.quant import QuantScheme
    from edgeship.toolkit.graph.io import Classifier

__all__ = ["QuantizeOptions", "quantize"]


def quantize(
    model: Path | Classifier,
    statistics: Statistics,
    scheme: QuantScheme,
    options: QuantizeOptions,
    out: Path,
    goal: AccuracyConstraint | None = None,
    runtime: Runtime | None = None,
) -> dict[str, Any]:
    """Write a float graph as a Q/DQ graph by a target's scheme.

    Args:
        model: The float ONNX classifier that the statistics are of, or what `read_classifier` gave of it.
        statistics: What `edgeship.quantization.calibrate.collect` gave.
        scheme: What the target wants.
        options: Observer and effort.
        out: The Q/DQ graph; it appears complete or not at all.
        goal: What must be met by leaving layers in float, as cheaply as can be; None: nothing.
        runtime: What runs the graph, to be compared with exact arithmetic; None: it does not run here.

    Returns:
        What was done, for the report: {scheme, effort, observer, weight_rounding, bias_correction, int8_sums,
        head_room_channels, activations, weights, float_layers, runtime_check, mixed, sensitivity, warnings}.

    Raises:
        ModelError: The graph is not a float classifier.
        QuantizationError: A tensor cannot be quantized.
    """
    from edgeship.quantization.ptq import write

    return write(model, statistics, scheme, options, out, goal, runtime)
