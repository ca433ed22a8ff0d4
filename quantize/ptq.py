"""The steps from statistics to a Q/DQ graph, in their order."""

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
from edgeship.quantization.clipping import logit_aware_clipping, observed
from edgeship.quantization.equalize import equalize
from edgeship.quantization.fitting import fit_layers
from edgeship.quantization.integer_bias import roomy
from edgeship.quantization.options import QuantizeOptions
from edgeship.quantization.placement import Placement, add_float_bypass, duplicate_shared_weights, place
from edgeship.quantization.qparams import weight_qparams
from edgeship.quantization.quantized_model import Quantized
from edgeship.quantization.runtime_check import Runtime, check
from edgeship.quantization.statistics import Statistics, TensorStatistics
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.errors import ModelError, QuantizationError
from edgeship.toolkit.core.memory import release_freed_memory
from edgeship.toolkit.core.quant import FloatArray, QParams, QuantScheme
from edgeship.toolkit.graph import io

RANGE_PIXELS = {  # probe images for clip points: 128 or 512 at 64 px, 10 or 41 at 224 px
    "balanced": 2**19,
    "max": 2**21,
}
EQUALIZATION = {"balanced": 0.6, "max": 0.65}  # strength: fitted weights lose less by it
BIAS_PIXELS = 2**18  # probe images for bias correction: 64 at 64 px, 8 at 224 px
LEARNING_PIXELS = 2**21  # probe images for effort max: 512 at 64 px, 41 at 224 px
SENSITIVITY_PIXELS = 2**16  # probe images for the cost of every layer: 16 at 64 px, 8 at 224 px
CHECK_PIXELS = 2**15  # probe images that the runtime is compared on: 8 at 64 px, 4 at 224 px
CHECK_IMAGES = 4  # of them, at least
SEARCH_PIXELS = 2**17  # probe images that choose layers to leave in float: 32 at 64 px, 8 at 224 px


def write(
    model: Path | io.Classifier,
    statistics: Statistics,
    scheme: QuantScheme,
    options: QuantizeOptions,
    out: Path,
    goal: mixed_precision.AccuracyConstraint | None = None,
    runtime: Runtime | None = None,
) -> dict[str, Any]:
    """Quantize a graph and write it; see `quantize.quantize`."""
    classifier = io.read_classifier(model)
    found = prepare(classifier.model, statistics, scheme, options)
    checked = reached = None
    if runtime is not None:
        images = spread(statistics.probe, CHECK_PIXELS, least=CHECK_IMAGES)
        found, checked = check(found, classifier.model, runtime, images)
    if goal is not None:
        probe = spread(statistics.probe, SEARCH_PIXELS)
        found, reached = mixed_precision.search_float_layers(
            found, goal, probe, options, lambda trial: corrected(trial, options)
        )
    io.save_as_given(found.graph(), classifier, out)
    if runtime is not None and goal is not None and reached and reached["layers"]:
        repaired, checked = check(found, classifier.model, runtime, images)
        if repaired is not found:
            found = repaired
            io.save_as_given(found.graph(), classifier, out)
            verdict = goal.judge(out)
            reached |= {"reached": verdict.value, "met": verdict.met}
    costs = _sensitivity(found, options) if options.sensitivity else None
    return {
        "scheme": scheme.name,
        "effort": options.effort,
        "observer": found.observer,
        "weight_rounding": found.weight_rounding,
        "bias_correction": bool(found.biases),
        "int8_sums": _sums(scheme),
        "head_room_channels": _head_room(found),
        "activations": {
            name: {
                "dtype": q.spec.stored,
                "scale": q.scale[0],
                "zero_point": q.zero_point[0] + q.spec.offset,
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
        "runtime_check": checked,
        "mixed": reached,
        "sensitivity": costs,
        "warnings": [*classifier.notes, *found.warnings],
    }


def _sums(scheme: QuantScheme) -> str | None:
    """How the processor that the graph is for adds products: "exact" or in "pairs"; None: it is no CPU."""
    if scheme.pairs is None:
        return None
    return "pairs" if scheme.pair_sums else "exact"


def _head_room(found: Quantized) -> int | None:
    """Output channels whose weights leave head room, for with all 8 bits pairs of them could saturate."""
    pairs = found.scheme.saturating_pairs
    if pairs is None:
        return None
    return sum(overflow.saturating(found.exact, _nearest(found.exact, found.placement), pairs).values())


def _nearest(model: ir.Model, placement: Placement) -> dict[str, QParams]:
    """Scales of all weights from their largest magnitudes."""
    return {
        name: weight_qparams(io.constant(model.graph.initializers[name]).astype(np.float32), spec)
        for name, spec in placement.weights.items()
    }


def _sensitivity(found: Quantized, options: QuantizeOptions) -> dict[str, Any] | None:
    """What each layer costs; None, and a warning, where the graph cannot be run by parts."""
    probe = spread(found.statistics.probe, SENSITIVITY_PIXELS)
    try:
        rows = sensitivity.analyse(found, found.exact, probe, quantizers=False, options=options)
        return {"images": len(probe), **sensitivity.to_json(rows)}
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
    release_freed_memory()  # what the float pass left
    if options.effort != "max":
        return _chosen(model, statistics, scheme, options)[0]
    balanced = replace(options, effort="balanced")
    plain = _chosen(model, statistics, scheme, balanced)[0]
    float_adds = scheme.add_inputs != "all"  # integer Adds stay
    found, network = _chosen(model, statistics, replace(scheme, float_adds=float_adds), options)
    return plain if network is None else _learned(plain, found, network, balanced)


def _chosen(
    model: ir.Model, statistics: Statistics, scheme: QuantScheme, options: QuantizeOptions
) -> tuple[Quantized, TorchExecutor | None]:
    """The parameters without learning, and the float network where the effort needs one."""
    source = model
    if options.effort != "fast":
        source, statistics = equalize(model, statistics, EQUALIZATION[options.effort])
    source = add_float_bypass(source, scheme)
    placement = place(source, scheme, options.float_layers, statistics.largest, statistics.lowest)
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
    model = duplicate_shared_weights(source, placement)
    network = None
    if options.effort != "fast":
        try:
            network = agreement.agreeing(model, statistics.probe[:2])
            warnings += agreement.note(network.estimated)
        except ModelError as error:
            warnings.append(f"effort 'fast' was used: {error}")
    weights = _nearest(model, placement)
    if (pairs := scheme.saturating_pairs) is not None:
        weights = overflow.reduce_range(model, weights, pairs)
    observer = options.observer
    if observer == "logits" and network is None:
        observer = "mse"  # gradients of the logits need the network
    if network is not None and observer == "logits":
        images = spread(statistics.probe, RANGE_PIXELS[options.effort])
        rough = (
            network
            if statistics.precision == "f32"
            else TorchExecutor(model, torch.bfloat16, network.execution)
        )
        activations = logit_aware_clipping(rough, images, placement.activations, statistics.tensors)
        del rough  # memory
    else:
        activations = {
            name: observed(statistics.tensors[name], spec, observer)
            for name, spec in placement.activations.items()
        }
    if scheme.integer_bias:
        weights = roomy(model, activations, weights)
    warnings += outliers.underused_ranges(activations, statistics.tensors)
    found = Quantized(source, scheme, model, model, statistics, placement, activations, weights, {}, warnings)
    found.observer = observer
    if network is not None:
        found.execution = network.execution
    if network is not None and options.effort == "balanced":
        found = corrected(found, options, network)
    return found, network


def corrected(found: Quantized, options: QuantizeOptions, network: TorchExecutor | None = None) -> Quantized:
    """Return the graph with rounded weights and corrected biases; unchanged if learned or fast.

    Without bias correction GPTQ weights compensate errors of the mean too.
    """
    if found.learned or options.effort == "fast":
        return found
    nearest = options.weight_rounding == "nearest"
    if nearest and not options.bias_correction:
        return found
    probe = spread(found.statistics.probe, BIAS_PIXELS)
    network = network or TorchExecutor(found.exact, execution=found.execution)
    pairs = found.scheme.saturating_pairs
    correct = options.bias_correction
    weights, biases = fit_layers(
        network, probe, found.activations, found.weights, pairs=pairs, biases=correct, nearest=nearest
    )
    return replace(_with_weights(found, weights), biases=biases, weight_rounding=options.weight_rounding)


def _learned(
    plain: Quantized, found: Quantized, network: TorchExecutor, options: QuantizeOptions
) -> Quantized:
    """Learn weights and scales; what was there without stays where images that did not teach prefer it."""
    teachers, judges = learned_scales.split(spread(found.statistics.probe, LEARNING_PIXELS))
    # what judges is not what taught, for either of the two
    fair = corrected(replace(plain, statistics=replace(plain.statistics, probe=teachers)), options)
    weights = learned_scales.on_grid(TorchExecutor(fair.model), fair.weights)
    exact = TorchExecutor(fair.exact, execution=fair.execution)
    before = learned_scales.root_kl(exact, judges, fair.activations, weights, fair.biases)
    del fair, weights, exact  # memory: three copies of the weights
    correct, pairs = options.bias_correction, found.scheme.saturating_pairs
    nearest = options.weight_rounding == "nearest"
    best = learned_scales.improve(
        network,
        teachers,
        judges,
        found.activations,
        found.weights,
        correct=correct,
        pairs=pairs,
        nearest=nearest,
    )
    if not best.disturbance < before:  # nor is NaN better
        plain.warnings.append(
            f"learned rounding was dropped: root KL {best.disturbance:.2e} on held-out images, "
            f"{before:.2e} without it"
        )
        return plain
    return replace(
        _with_weights(found, best.weights),
        activations=best.activations,
        biases=best.biases,
        learned=True,
        weight_rounding=options.weight_rounding,
    )


def _with_weights(found: Quantized, fitted: Mapping[str, Tensor]) -> Quantized:
    """The same with these weights, on their grid."""
    model = io.copy(found.exact)
    for name, values in fitted.items():
        io.set_constant(model.graph.initializers[name], values.contiguous().numpy())
    return replace(found, model=model)


def spread(probe: FloatArray, pixels: int, least: int = 8) -> FloatArray:
    """Images spread evenly over the probe, `least` or so many that they have about that many pixels."""
    count = min(max(pixels // int(np.prod(probe.shape[2:])), least), len(probe))
    chosen: FloatArray = probe[np.linspace(0, len(probe) - 1, count).round().astype(int)]
    return chosen
