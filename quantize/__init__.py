"""INT8 post-training quantization (PTQ)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeship.quantization.options import QuantizeOptions
from edgeship.toolkit.core.parallel import ONE, Workers

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
    workers: Workers = ONE,
) -> dict[str, Any]:
    """Quantize a float graph to a Q/DQ graph by a target's scheme.

    Args:
        model: The calibrated float ONNX classifier, or the result of `read_classifier`.
        statistics: Calibration statistics from `edgeship.quantization.calibrate.collect`.
        scheme: Quantization scheme of the target.
        options: Method and effort.
        out: Path of the Q/DQ graph, written atomically.
        goal: Accuracy constraint, met by leaving layers in float at least cost; None: no constraint.
        runtime: Runtime to compare with exact arithmetic; None: the target does not run here.
        workers: Workers of the sensitivity analysis; more than one is faster only on other machines.

    Returns:
        Summary for the report: {scheme, effort, observer, weight_rounding, bias_correction, int8_sums,
        head_room_channels, activations, weights, float_layers, runtime_check, mixed, sensitivity, warnings}.

    Raises:
        ModelError: The graph is not a float classifier.
        QuantizationError: A tensor cannot be quantized.
    """
    from edgeship.quantization.ptq import write

    return write(model, statistics, scheme, options, out, goal, runtime, workers)
