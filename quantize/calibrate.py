"""Calibration: one streaming pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from edgeship.quantization.activation_collector import ActivationCollector, InferenceResult
from edgeship.quantization.convergence import Convergence
from edgeship.quantization.placement import quantizable_tensors
from edgeship.quantization.statistics import (
    PROBE_IMAGES,
    PROBE_PIXELS,
    EvenSample,
    Statistics,
    StatisticsAccumulator,
    check_finite,
)
from edgeship.toolkit.core.errors import DataError, QuantizationError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.threads import ordered_map
from edgeship.toolkit.graph import io

PART_PIXELS = 2**16  # pixels per inference, if the batch is dynamic: 16 at 64 px, 1 at 224 px
GROUP = 16  # inferences per update of the statistics: amortizes the overhead of numpy


def collect(
    model: Path | io.Classifier,
    batches: Iterable[FloatArray],
    each: Callable[[FloatArray], object] = lambda _: None,
    *,
    exact: bool = False,
    early_stop: bool = False,
) -> Statistics:
    """Run calibration images through a float graph and accumulate statistics of its activations.

    Extremes are reduced inside the graph, so that its outputs are small and the pass takes little more time
    than the inference.

    Args:
        model: A float ONNX classifier, or the result of `read_classifier`.
        batches: Preprocessed images (N, C, H, W), in batches.
        each: Callback with the largest magnitude of each image and tensor, (N, T), in image order.
        exact: Compute in float32; else in bfloat16 if the CPU has instructions for it, which changes
            extremes by less than 1 %.
        early_stop: End the pass when the statistics have converged (see `convergence`); the images are in
            random order.

    Raises:
        ModelError: The graph is not a float classifier.
        QuantizationError: An activation is NaN or infinite.
        DataError: There is no image.
    """
    classifier = io.read_classifier(model)
    names = quantizable_tensors(classifier.model)
    accumulators = {name: StatisticsAccumulator(name) for name in names}
    images = 0
    collector: ActivationCollector | None = None
    probe: EvenSample | None = None
    convergence = Convergence()

    def parts() -> Iterator[tuple[FloatArray, int]]:
        nonlocal probe, collector
        for batch in batches:
            if collector is None or probe is None:
                pixels = int(np.prod(batch.shape[2:]))
                size = classifier.batch or min(max(PART_PIXELS // pixels, 1), len(batch))
                collector = ActivationCollector(classifier, names, (size, *batch.shape[1:]), exact=exact)
                probe = EvenSample(max(PROBE_PIXELS // pixels, PROBE_IMAGES))
            check_finite(classifier.input, batch)  # maxima may drop a NaN
            yield from _parts(batch, collector.size)

    def run(part: tuple[FloatArray, int]) -> InferenceResult:
        assert collector is not None
        return collector.run(*part)

    with closing(ordered_map(run, parts(), chunk=1)) as results:
        for runs in iter(lambda: list(islice(results, GROUP)), []):
            assert collector is not None and probe is not None
            count = sum(len(each.images) for each in runs)
            images += count
            for each_run in runs:
                probe.add(each_run.images)
            largest = []
            for name, batch in zip(names, collector.statistics(runs), strict=True):
                if len(batch.low) % count:
                    raise QuantizationError(
                        f"activation '{name}' has {len(batch.low)} rows, not {count}: the graph mixes images",
                        hint="export the graph with a batch of 1",
                    )
                accumulators[name].add(batch.low, batch.high, batch.sample)
                largest.append(np.maximum(-batch.low, batch.high).reshape(count, -1).max(1))
            peaks = np.stack(largest, 1)
            each(peaks)
            convergence.add(peaks)
            if early_stop and convergence.reached(int(np.prod(runs[0].images.shape[2:]))):
                break
    if collector is None or probe is None:
        raise DataError("no calibration image, expected at least 1", hint="set select.images=300")
    tensors = {name: accumulator.result() for name, accumulator in accumulators.items()}
    if collector.precision == "bf16":
        normalized = classifier.normalization.output if classifier.normalization is not None else ""
        unrounded = {classifier.input, normalized}
        tensors |= {name: tensor.dithered() for name, tensor in tensors.items() if name not in unrounded}
    return Statistics(images, tensors, probe.rows(), collector.precision)


def _parts(batch: FloatArray, size: int) -> list[tuple[FloatArray, int]]:
    """Split a batch into parts of one size, padded by repetition; return each with its number of images."""
    count = -(-len(batch) // size)
    padded = np.resize(batch, (count * size, *batch.shape[1:])) if len(batch) % size else batch
    starts = range(0, count * size, size)
    return [(padded[start : start + size], min(size, len(batch) - start)) for start in starts]
