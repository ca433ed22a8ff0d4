"""FP8 (E4M3) Q/DQ graphs: one scale for each activation and one for each output channel of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeship.quantization import qdq
from edgeship.quantization.placement import duplicate_shared_weights, place
from edgeship.quantization.qparams import choose_qparams, weight_qparams
from edgeship.quantization.statistics import Statistics
from edgeship.toolkit.core.errors import QuantizationError
from edgeship.toolkit.core.quant import QuantScheme, QuantSpec, Range
from edgeship.toolkit.graph import edit, io
from edgeship.toolkit.graph.opset import raise_opset

ACTIVATION = QuantSpec("float8e4m3fn", symmetric=True)


def write(
    model: Path | io.Classifier, statistics: Statistics, scheme: QuantScheme, out: Path
) -> dict[str, Any]:
    """Quantize a graph to FP8 and write it: weights stored in FP8, everything else in float, opset 19.

    The scales map the largest magnitude of a tensor to 448, the largest number of E4M3: its steps grow with
    the value, so a smaller range gains nothing.

    Args:
        model: A float graph.
        statistics: Statistics of its activations, the same as for INT8.
        scheme: Placement of the target's Q/DQ pairs.
        out: File of the graph.

    Returns:
        The summary, as that of `quantization.quantize`.

    Raises:
        QuantizationError: The statistics are of another graph.

    Source:
        Micikevicius et al. 2022, arXiv:2209.05433, table 1 (E4M3: 448 without infinities).
    """
    classifier = io.read_classifier(model)
    placement = place(classifier.model, scheme, (), statistics.largest, statistics.lowest)
    missing = [name for name in placement.activations if name not in statistics.tensors]
    if missing:
        raise QuantizationError(
            f"no statistics of '{missing[0]}'", hint="run calibration again on the graph to be quantized"
        )
    source = duplicate_shared_weights(classifier.model, placement)
    activations = {
        name: choose_qparams(
            Range((-statistics.tensors[name].largest,), (statistics.tensors[name].largest,)), ACTIVATION
        )
        for name in placement.activations
    }
    weights = {
        name: weight_qparams(
            edit.constant(source.graph.initializers[name]).astype(np.float32),
            replace(ACTIVATION, axis=spec.axis),
        )
        for name, spec in placement.weights.items()
    }
    graph = qdq.insert(source, activations, weights, {}, store_integers=True)
    raise_opset(graph)
    io.save_with_ending(graph, classifier, out)
    return {
        "scheme": f"{scheme.name}-fp8",
        "activations": {},
        "weights": {},
        "warnings": list(classifier.notes),
    }
