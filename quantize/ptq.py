"""INT8 post-training quantization (PTQ): the pipeline from statistics to a Q/DQ graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeship.quantization import agreement, learned_scales, mixed_precision, outliers, overflow, sensitivity
from edgeship.quantization.clipping import logit_aware_clipping, observer_qparams
from edgeship.quantization.equalize import equalize
from edgeship.quantization.gptq import fit_layers
from edgeship.quantization.integer_bias import widen_scales
from edgeship.quantization.options import QuantizeOptions
from edgeship.quantization.placement import Placement, add_float_bypass, duplicate_shared_weights, place
from edgeship.quantization.qparams import weight_qparams
from edgeship.quantization.quantized_model import Quantized
from edgeship.quantization.runtime_check import Runtime, check
from edgeship.quantization.statistics import Statistics, TensorStatistics
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.errors import ModelError, QuantizationError
from edgeship.toolkit.core.memory import release_freed_memory
from edgeship.toolkit.core.parallel import ONE, Workers
from edgeship.toolkit.core.quant import FloatArray, QParams, QuantScheme
from edgeship.toolkit.graph import edit, io

RANGE_PIXELS = {  # probe images for clip points: 128 or 512 at 64 px, 10 or 41 at 224 px
    "balanced": 2**19,
    "max": 2**21,
}
EQUALIZATION = {"balanced": 0.6, "max": 0.65}  # strength: GPTQ weights lose less by it
BIAS_PIXELS = 2**18  # probe images for bias correction: 64 at 64 px, 8 at 224 px
LEARNING_PIXELS = 2**21  # probe images for effort max: 512 at 64 px, 41 at 224 px
SENSITIVITY_PIXELS = 2**16  # probe images for the sensitivity of every layer: 16 at 64 px, 8 at 224 px
CHECK_PIXELS = 2**15  # probe images that the runtime is compared on: 8 at 64 px, 4 at 224 px
CHECK_IMAGES = 4  # minimum
SEARCH_PIXELS = 2**17  # probe images that rank the layers to leave in float: 32 at 64 px, 8 at 224 px


def write(
    model: Path | io.Classifier,
    statistics: Statistics,
    scheme: QuantScheme,
    options: QuantizeOptions,
    out: Path,
    goal: mixed_precision.AccuracyConstraint | None = None,
    runtime: Runtime | None = None,
    workers: Workers = ONE,
) -> dict[str, Any]:
    """Quantize a graph and write it; see `quantization.quantize`."""
    classifier = io.read_classifier(model)
    quantized = prepare(classifier.model, statistics, scheme, options)
    checked = reached = None
    if runtime is not None:
        images = spread(statistics.probe, CHECK_PIXELS, least=CHECK_IMAGES)
        quantized, checked = check(quantized, classifier.model, runtime, images)
    if goal is not None:
        probe = spread(statistics.probe, SEARCH_PIXELS)
        quantized, reached = mixed_precision.search_float_layers(
            quantized, goal, probe, workers, lambda trial: fit_weights(trial, options)
        )
    io.save_with_ending(quantized.graph(), classifier, out)
    if runtime is not None and goal is not None and reached and reached["layers"]:
        repaired, checked = check(quantized, classifier.model, runtime, images)
        if repaired is not quantized:
            quantized = repaired
            io.save_with_ending(quantized.graph(), classifier, out)
            verdict = goal.judge(out)
            reached |= {"reached": verdict.value, "met": verdict.met}
    costs = _sensitivity(quantized, workers) if options.sensitivity else None
    return {
        "scheme": scheme.name,
        "effort": options.effort,
        "observer": quantized.observer,
        "weight_rounding": quantized.weight_rounding,
        "bias_correction": bool(quantized.biases),
        "int8_sums": _accumulation(scheme),
        "head_room_channels": _reduced_channels(quantized),
        "activations": {
            name: {
                "dtype": q.spec.stored,
                "scale": q.scale[0],
                "zero_point": q.zero_point[0] + q.spec.offset,
                "low": quantized.statistics.tensors[name].lowest,
                "high": quantized.statistics.tensors[name].highest,
                "counts": _histogram(quantized.statistics.tensors[name]),
            }
            for name, q in quantized.activations.items()
        },
        "weights": {
            name: {
                "bits": q.spec.bits,
                "channels": len(q.scale),
                "smallest_scale": min(q.scale),
                "median_scale": float(np.median(q.scale)),
                "largest_scale": max(q.scale),
            }
            for name, q in quantized.weights.items()
        },
        "float_layers": sorted(quantized.placement.float_layers),
        "runtime_check": checked,
        "mixed": reached,
        "sensitivity": costs,
        "warnings": [*classifier.notes, *quantized.warnings],
    }


def _accumulation(scheme: QuantScheme) -> str | None:
    """Return the INT8 accumulation of the target CPU: "exact" or in int16 "pairs"; None: not a CPU."""
    if scheme.pairs is None:
        return None
    return "pairs" if scheme.pair_sums else "exact"


def _reduced_channels(quantized: Quantized) -> int | None:
    """Count the output channels with a reduced weight range: pairs of full 8-bit weights could overflow."""
    pairs = quantized.scheme.saturating_pairs
    if pairs is None:
        return None
    full_range = _max_qparams(quantized.exact, quantized.placement)
    return sum(overflow.saturating(quantized.exact, full_range, pairs).values())


def _max_qparams(model: ir.Model, placement: Placement) -> dict[str, QParams]:
    """Return the scales of all weights from their largest magnitudes."""
    return {
        name: weight_qparams(edit.constant(model.graph.initializers[name]).astype(np.float32), spec)
        for name, spec in placement.weights.items()
    }


def _sensitivity(quantized: Quantized, workers: Workers) -> dict[str, Any] | None:
    """Measure the sensitivity of each layer; None, and a warning, if a node cannot be run."""
    probe = spread(quantized.statistics.probe, SENSITIVITY_PIXELS)
    try:
        rows = sensitivity.analyse(quantized, quantized.exact, probe, quantizers=False, workers=workers)
        return {"images": len(probe), **sensitivity.to_json(rows)}
    except ModelError as error:
        quantized.warnings.append(f"no sensitivity: {error}")
        return None


def _histogram(tensor: TensorStatistics) -> list[int]:
    """Count the sampled values in 64 bins from the lowest to the highest value."""
    counts: list[int] = np.histogram(tensor.sample, 64, (tensor.lowest, tensor.highest))[0].tolist()
    return counts


def prepare(
    model: ir.Model, statistics: Statistics, scheme: QuantScheme, options: QuantizeOptions
) -> Quantized:
    """Choose the placement, quantization parameters, weights and bias corrections of a graph.

    Raises:
        QuantizationError: The statistics are of another graph, or a tensor cannot be quantized.
    """
    release_freed_memory()  # buffers of the calibration pass
    if options.effort != "max":
        return _without_learning(model, statistics, scheme, options)[0]
    balanced = replace(options, effort="balanced")
    baseline = _without_learning(model, statistics, scheme, balanced)[0]
    float_adds = scheme.add_inputs != "all"  # integer Adds stay
    start, network = _without_learning(model, statistics, replace(scheme, float_adds=float_adds), options)
    return baseline if network is None else _learned(baseline, start, network, balanced)


def _without_learning(
    model: ir.Model, statistics: Statistics, scheme: QuantScheme, options: QuantizeOptions
) -> tuple[Quantized, TorchExecutor | None]:
    """Quantize without learned scales; also return the float network unless the effort is "fast"."""
    source = model
    if options.effort != "fast":
        source, statistics = equalize(model, statistics, EQUALIZATION[options.effort])
    source = add_float_bypass(source, scheme)
    placement = place(source, scheme, options.float_layers, statistics.largest, statistics.lowest)
    missing = [name for name in placement.activations if name not in statistics.tensors]
    if missing:
        raise QuantizationError(
            f"no statistics of '{missing[0]}'", hint="run calibration again on the graph to be quantized"
        )
    warnings = [
        f"activation '{name}' is zero on every calibration image"
        for name in placement.activations
        if statistics.tensors[name].largest == 0.0
    ]
    model = duplicate_shared_weights(source, placement)
    network = None
    if options.effort != "fast":
        try:
            network = agreement.matching_executor(model, statistics.probe[:2])
            warnings += agreement.gradient_warnings(network.estimated)
        except ModelError as error:
            warnings.append(f"effort 'fast' was used: {error}")
    weights = _max_qparams(model, placement)
    if (pairs := scheme.saturating_pairs) is not None:
        weights = overflow.reduce_range(model, weights, pairs)
    observer = options.observer
    if observer == "logits" and network is None:
        observer = "mse"  # gradients of the logits need the network
    if network is not None and observer == "logits":
        images = spread(statistics.probe, RANGE_PIXELS[options.effort])
        search_network = (
            network
            if statistics.precision == "f32"
            else TorchExecutor(model, torch.bfloat16, network.execution)
        )
        activations = logit_aware_clipping(search_network, images, placement.activations, statistics.tensors)
        del search_network  # memory
    else:
        activations = {
            name: observer_qparams(statistics.tensors[name], spec, observer)
            for name, spec in placement.activations.items()
        }
    if scheme.integer_bias:
        weights = widen_scales(model, activations, weights)
    warnings += outliers.underused_ranges(activations, statistics.tensors)
    quantized = Quantized(
        source, scheme, model, model, statistics, placement, activations, weights, {}, warnings
    )
    quantized.observer = observer
    if network is not None:
        quantized.execution = network.execution
    if network is not None and options.effort == "balanced":
        quantized = fit_weights(quantized, options, network)
    return quantized, network


def fit_weights(
    quantized: Quantized, options: QuantizeOptions, network: TorchExecutor | None = None
) -> Quantized:
    """Apply GPTQ and, by option, bias correction; not to learned graphs nor with effort "fast"."""
    if quantized.learned or options.effort == "fast":
        return quantized
    nearest = options.weight_rounding == "nearest"
    if nearest and not options.bias_correction:
        return quantized
    probe = spread(quantized.statistics.probe, BIAS_PIXELS)
    network = network or TorchExecutor(quantized.exact, execution=quantized.execution)
    pairs = quantized.scheme.saturating_pairs
    correct = options.bias_correction
    weights, biases = fit_layers(
        network, probe, quantized.activations, quantized.weights, pairs=pairs, biases=correct, nearest=nearest
    )
    return replace(_with_weights(quantized, weights), biases=biases, weight_rounding=options.weight_rounding)


def _learned(
    baseline: Quantized, start: Quantized, network: TorchExecutor, options: QuantizeOptions
) -> Quantized:
    """Learn weights and scales; return `baseline` unless they lower the root KL on validation images."""
    train, validation = learned_scales.split(spread(start.statistics.probe, LEARNING_PIXELS))
    # a fair comparison: the baseline is fitted to the training images only, too
    refitted = fit_weights(replace(baseline, statistics=replace(baseline.statistics, probe=train)), options)
    weights = learned_scales.on_grid(TorchExecutor(refitted.model), refitted.weights)
    float_network = TorchExecutor(refitted.exact, execution=refitted.execution)
    before = learned_scales.root_kl(float_network, validation, refitted.activations, weights, refitted.biases)
    del refitted, weights, float_network  # memory: three copies of the weights
    correct, pairs = options.bias_correction, start.scheme.saturating_pairs
    best = learned_scales.improve(
        network,
        train,
        validation,
        start.activations,
        start.weights,
        correct=correct,
        pairs=pairs,
        nearest=options.weight_rounding == "nearest",
    )
    if not best.root_kl < before:  # also if it is NaN
        baseline.warnings.append(
            f"learned rounding was dropped: root KL {best.root_kl:.2e} on validation images, "
            f"{before:.2e} without it"
        )
        return baseline
    return replace(
        _with_weights(start, best.weights),
        activations=best.activations,
        biases=best.biases,
        learned=True,
        weight_rounding=options.weight_rounding,
    )


def _with_weights(quantized: Quantized, weights: Mapping[str, Tensor]) -> Quantized:
    """Replace the weights of a quantized graph; the values are on their grid."""
    model = io.copy(quantized.exact)
    for name, values in weights.items():
        edit.set_constant(model.graph.initializers[name], values.contiguous().numpy())
    return replace(quantized, model=model)


def spread(probe: FloatArray, pixels: int, least: int = 8) -> FloatArray:
    """Select images spread evenly over the probe: about `pixels` pixels in all, at least `least` images."""
    count = min(max(pixels // int(np.prod(probe.shape[2:])), least), len(probe))
    images: FloatArray = probe[np.linspace(0, len(probe) - 1, count).round().astype(int)]
    return images
