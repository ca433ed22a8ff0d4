"""The steps from statistics to a Q/DQ graph, in their order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from quantize import bias, mixed, outliers, rounding, saturation, sensitivity
from quantize.equalize import equalize
from quantize.network import Network
from quantize.options import QuantizeOptions
from quantize.placement import place, unshare
from quantize.qparams import weight_qparams
from quantize.quantized import Quantized
from quantize.ranges import observed, output_aware
from quantize.statistics import Statistics, TensorStatistics
from toolkit.core.errors import ModelError, QuantizationError
from toolkit.core.memory import give_back
from toolkit.core.quant import FloatArray, QuantScheme
from toolkit.graph import io

RANGE_PIXELS = 2**19  # probe images for clip points: 128 at 64 px, 10 at 224 px
BIAS_PIXELS = 2**19  # probe images for bias correction: 128 at 64 px, 10 at 224 px
SENSITIVITY_PIXELS = 2**16  # probe images for the cost of every layer: 16 at 64 px, 8 at 224 px
SEARCH_PIXELS = 2**17  # probe images that choose layers to leave in float: 32 at 64 px, 8 at 224 px


def write(
    model: Path,
    statistics: Statistics,
    scheme: QuantScheme,
    options: QuantizeOptions,
    out: Path,
    goal: mixed.Goal | None = None,
) -> dict[str, Any]:
    """Quantize a graph and write it; see `quantize.quantize`."""
    classifier = io.read_classifier(model)
    found = prepare(classifier.model, statistics, scheme, options)
    reached = None
    if goal is not None:
        probe = spread(statistics.probe, SEARCH_PIXELS)
        found, reached = mixed.reach(found, goal, probe, options, lambda trial: corrected(trial, options))
    io.save(found.graph(), out)
    costs = _sensitivity(found, options) if options.sensitivity else None
    return {
        "scheme": scheme.name,
        "effort": options.effort,
        "observer": options.observer,
        "activations": {
            name: {
                "dtype": q.spec.dtype,
                "scale": q.scale[0],
                "zero_point": q.zero_point[0],
                "low": float(found.statistics.tensors[name].low.min()),
                "high": float(found.statistics.tensors[name].high.max()),
                "counts": _histogram(found.statistics.tensors[name]),
            }
            for name, q in found.activations.items()
        },
        "weights": {
            name: {
                "bits": q.spec.bits,
                "channels": len(q.scale),
                "smallest_scale": min(q.scale),
                "median_scale": float(np.median(q.scale)),
                "largest_scale": max(q.scale),
            }
            for name, q in found.weights.items()
        },
        "float_layers": sorted(found.placement.float_layers),
        "mixed": reached,
        "sensitivity": costs,
        "warnings": found.warnings,
    }


def _sensitivity(found: Quantized, options: QuantizeOptions) -> dict[str, Any] | None:
    """What each layer costs; None, and a warning, where the graph cannot be run by parts."""
    probe = spread(found.statistics.probe, SENSITIVITY_PIXELS)
    try:
        rows = sensitivity.analyse(found, found.exact, probe, quantizers=False, options=options)
        return sensitivity.to_json(rows)
    except ModelError as error:
        found.warnings.append(f"no sensitivity: {error}")
        return None


def _histogram(seen: TensorStatistics) -> list[int]:
    """Counts of the sampled values in 64 bins from the lowest to the highest value."""
    bounds = (float(seen.low.min()), float(seen.high.max()))
    counts: list[int] = np.histogram(seen.sample, 64, bounds)[0].tolist()
    return counts


def prepare(
    model: ir.Model, statistics: Statistics, scheme: QuantScheme, options: QuantizeOptions
) -> Quantized:
    """Choose every parameter of a quantized graph.

    Raises:
        QuantizationError: The statistics are of another graph, or a tensor cannot be quantized.
    """
    give_back()  # what the float pass left
    placement = place(model, scheme, options.float_layers)
    missing = [name for name in placement.activations if name not in statistics.tensors]
    if missing:
        raise QuantizationError(
            f"no statistics of '{missing[0]}'", hint="calibrate the same graph that is quantized"
        )
    warnings = [
        f"activation '{name}' is zero on every calibration image"
        for name in placement.activations
        if statistics.tensors[name].largest == 0.0
    ]
    source, network = model, None
    if options.effort != "fast":
        source, statistics = equalize(model, statistics)
    model = unshare(source, placement)
    if options.effort != "fast":
        try:
            network = Network(model)
        except ModelError as error:
            warnings.append(f"effort 'fast' was used: {error}")
    weights = {
        name: weight_qparams(np.asarray(io.constant(model.graph.initializers[name]), np.float32), spec)
        for name, spec in placement.weights.items()
    }
    if scheme.pair_sums:
        weights = saturation.relieve(model, placement.activations, weights)
    if network is not None and options.observer == "mse":
        images = spread(statistics.probe, RANGE_PIXELS)
        activations = output_aware(network, images, placement.activations, statistics.tensors)
    else:
        activations = {
            name: observed(statistics.tensors[name], spec, options.observer)
            for name, spec in placement.activations.items()
        }
    warnings += outliers.coarse(activations, statistics.tensors)
    found = Quantized(source, scheme, model, model, statistics, placement, activations, weights, {}, warnings)
    if network is not None:
        found = corrected(found, options, network)
    if network is not None and options.effort == "max":
        _learn(found, network)
    return found


def corrected(found: Quantized, options: QuantizeOptions, network: Network | None = None) -> Quantized:
    """The same with the biases that fit what is quantized, unless they were learned or are not asked for."""
    learned = found.model is not found.exact
    if learned or not options.bias_correction or options.effort == "fast":
        return found
    probe = spread(found.statistics.probe, BIAS_PIXELS)
    network = network or Network(found.exact)
    return replace(found, biases=bias.corrections(network, probe, found.activations, found.weights))


def _learn(found: Quantized, network: Network) -> None:
    """Learn rounding, and keep it only if images it was not taught on are the better for it."""
    student = rounding.Student(network, found.activations, found.weights, found.biases)
    before, after = rounding.improve(student, found.statistics.probe)
    if after >= before:
        found.warnings.append(
            f"learned rounding was dropped: KL {after:.2e} on held-out images, {before:.2e} without it"
        )
        return
    found.activations, found.biases = student.qparams(), student.biases()
    found.model = io.copy(found.exact)
    student.write_weights(found.model)


def spread(probe: FloatArray, pixels: int) -> FloatArray:
    """Images spread evenly over the probe, so many that they have about that many pixels, 8 at least."""
    count = min(max(pixels // int(np.prod(probe.shape[2:])), 8), len(probe))
    chosen: FloatArray = probe[np.linspace(0, len(probe) - 1, count).round().astype(int)]
    return chosen
