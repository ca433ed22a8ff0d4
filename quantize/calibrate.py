"""One streaming pass over the calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from edgeship.quantization.activation_collector import FloatPass, Run
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

PART_PIXELS = 2**16  # images run at once, where the graph lets us choose: 16 at 64 px, 1 at 224 px
GROUP = 16  # parts whose results are taken up together: numpy costs as much for one image as for some


def collect(
    model: Path | io.Classifier,
    batches: Iterable[FloatArray],
    each: Callable[[FloatArray], object] = lambda _: None,
    *,
    exact: bool = False,
) -> Statistics:
    """Run calibration images through a float graph and keep statistics of its activations.

    Extremes are reduced where they are made, so that what leaves the graph is small: the pass costs little
    more than the inference alone.

    Args:
        model: A float ONNX classifier, or what `read_classifier` gave of it.
        batches: Preprocessed images (N, C, H, W), in batches.
        each: Gets the largest magnitude of every image in each of T tensors, (N, T), image after image.
        exact: Compute in float32; else in bfloat16 where the CPU has instructions for it, which moves
            extremes by less than one in a hundred.

    Raises:
        ModelError: The graph is not a float classifier.
        QuantizationError: An activation is NaN or infinite.
        DataError: There is no image.
    """
    classifier = io.read_classifier(model)
    names = quantizable_tensors(classifier.model)
    gathered = {name: StatisticsAccumulator(name) for name in names}
    images = 0
    passing: FloatPass | None = None
    probe: EvenSample | None = None

    def parts() -> Iterator[tuple[FloatArray, int]]:
        nonlocal probe, passing, images
        for batch in batches:
            if passing is None or probe is None:
                pixels = int(np.prod(batch.shape[2:]))
                size = classifier.batch or min(max(PART_PIXELS // pixels, 1), len(batch))
                passing = FloatPass(classifier, names, (size, *batch.shape[1:]), exact=exact)
                probe = EvenSample(max(PROBE_PIXELS // pixels, PROBE_IMAGES))
            probe.add(batch)
            images += len(batch)
            check_finite(classifier.input, batch)  # maxima may lose a NaN; it comes from nowhere else but inf
            yield from _parts(batch, passing.size)

    def run(part: tuple[FloatArray, int]) -> Run:
        assert passing is not None
        return passing.run(*part)

    with closing(ordered_map(run, parts(), chunk=1)) as results:
        for runs in iter(lambda: list(islice(results, GROUP)), []):
            assert passing is not None
            count = sum(len(each.images) for each in runs)
            largest = []
            for name, seen in zip(names, passing.seen(runs), strict=True):
                if len(seen.low) % count:
                    raise QuantizationError(
                        f"activation '{name}' is no tensor of {count} images: the network mixes images",
                        hint="export it with a batch of 1",
                    )
                gathered[name].add(seen.low, seen.high, seen.sample)
                largest.append(np.maximum(-seen.low, seen.high).reshape(count, -1).max(1))
            each(np.stack(largest, 1))
    if passing is None or probe is None:
        raise DataError("there is no calibration image", hint="check select.source and select.images")
    tensors = {name: seen.result() for name, seen in gathered.items()}
    if passing.precision == "bf16":
        normalized = classifier.normalization.output if classifier.normalization is not None else ""
        unrounded = {classifier.input, normalized}
        tensors |= {name: seen.dithered() for name, seen in tensors.items() if name not in unrounded}
    return Statistics(images, tensors, probe.rows(), passing.precision)


def _parts(batch: FloatArray, size: int) -> list[tuple[FloatArray, int]]:
    """A batch in parts of one size, the last one filled up with the batch's own images; how many count."""
    count = -(-len(batch) // size)
    filled = np.resize(batch, (count * size, *batch.shape[1:])) if len(batch) % size else batch
    starts = range(0, count * size, size)
    return [(filled[start : start + size], min(size, len(batch) - start)) for start in starts]
