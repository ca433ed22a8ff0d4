"""One streaming pass over the calibration images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir

from quantize.placement import candidates, never_negative
from quantize.statistics import PROBE_IMAGES, PROBE_PIXELS, Gathered, Statistics, Thinned, check_finite
from toolkit.core.errors import DataError
from toolkit.core.quant import FloatArray
from toolkit.core.threads import ordered_map
from toolkit.graph import io
from toolkit.graph.reference import Reference

PART_PIXELS = 2**16  # images run at once, where the graph lets us choose: 16 at 64 px, 1 at 224 px
GROUP = 8  # parts whose results are taken up together: numpy costs as much for one image as for some
SAMPLE_SIDE = 4  # positions of an image's sample: about 4 x 4 of every map


def collect(
    model: Path, batches: Iterable[FloatArray], each: Callable[[FloatArray], object] = lambda _: None
) -> Statistics:
    """Run calibration images through a float graph and keep statistics of its activations.

    Extremes are reduced inside the graph, by pooling operations, so that what leaves it is
    small: the pass costs little more than the inference alone.

    Args:
        model: A float ONNX classifier.
        batches: Preprocessed images (N, C, H, W), in batches.
        each: Gets the largest magnitude of every image in each of T tensors, (N, T), image after image.

    Raises:
        ModelError: The graph is not a float classifier.
        QuantizationError: An activation is NaN or infinite.
        DataError: There is no image.
    """
    reference, watched, size = _watching(model)
    gathered = {name: Gathered(name) for name in watched}
    probe: Thinned | None = None
    images = 0
    counts: deque[int] = deque()  # images of the parts that are on their way

    def parts() -> Iterator[FloatArray]:
        nonlocal probe, images
        for batch in batches:
            probe = probe or Thinned(max(PROBE_PIXELS // int(np.prod(batch.shape[2:])), PROBE_IMAGES))
            probe.add(batch)
            images += len(batch)
            check_finite(reference.input, batch)  # maxima may lose a NaN; it comes from nowhere else but inf
            for part, count in _parts(batch, size):
                counts.append(count)
                yield part

    with closing(ordered_map(reference.run, parts(), chunk=1)) as results:
        for group in iter(lambda: list(islice(results, GROUP)), []):
            values = map(np.concatenate, zip(*group, strict=True))
            own = np.concatenate([np.arange(len(result[0])) < counts.popleft() for result in group])
            largest = []
            for name, tensor in watched.items():
                low, high, sample = tensor.read([next(values) for _ in tensor.outputs])
                gathered[name].add(low, high, sample)
                largest.append(np.maximum(-low, high).reshape(len(own), -1).max(1))
            each(np.stack(largest, 1)[own])
    if probe is None:
        raise DataError("there is no calibration image", hint="check select.source and select.images")
    return Statistics(images, {name: seen.result() for name, seen in gathered.items()}, probe.rows())


def _watching(model: Path) -> tuple[Reference, dict[str, _Watched], int | None]:
    """The graph with what reduces its activations, and the batch that it takes (None: any)."""
    classifier = io.read_classifier(model)
    graph = classifier.model
    watched = {name: _Watched(graph.graph, name) for name in candidates(graph)}
    outputs = [output for tensor in watched.values() for output in tensor.outputs]
    return Reference(graph, outputs), watched, classifier.batch


class _Watched:
    """A tensor with the nodes that reduce it inside the graph."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self._name = name
        value = next(v for v in _values(graph) if v.name == name)
        self._flat = value.shape is None or len(value.shape) != 4
        self._never_negative = never_negative(value)
        self.outputs: list[str] = []
        if self._flat:
            self._output(graph, value)
            return
        height, width = (d if isinstance(d, int) else 1 for d in value.shape[2:])  # type: ignore[index]
        strides = [max(-(-side // SAMPLE_SIDE), 1) for side in (height, width)]
        self._reduce(graph, "GlobalMaxPool", value, "highest")
        self._reduce(graph, "MaxPool", value, "sample", kernel_shape=[1, 1], strides=strides)
        if not self._never_negative:
            negated = self._reduce(graph, "Neg", value, "negated", output=False)
            self._reduce(graph, "GlobalMaxPool", negated, "lowest")

    def read(self, values: list[FloatArray]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Low and high (N, C) and sample (rows, C) from the outputs."""
        if self._flat:
            rows = values[0].reshape(-1, values[0].shape[-1])
            return rows, rows, rows
        high = values[0][:, :, 0, 0]
        sample = values[1].transpose(0, 2, 3, 1).reshape(-1, high.shape[1])
        low = np.zeros_like(high) if self._never_negative else -values[2][:, :, 0, 0]
        return low, high, sample

    def _reduce(
        self,
        graph: ir.Graph,
        kind: str,
        value: ir.Value,
        what: str,
        *,
        output: bool = True,
        **attributes: list[int],
    ) -> ir.Value:
        node = ir.node(kind, [value], attributes=attributes or None, name=f"{self._name}/{what}")
        node.outputs[0].name = f"{self._name}/{what}"
        graph.append(node)
        if output:
            self._output(graph, node.outputs[0])
        return node.outputs[0]

    def _output(self, graph: ir.Graph, value: ir.Value) -> None:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        if value not in graph.outputs:
            graph.outputs.append(value)
        self.outputs.append(str(value.name))


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _parts(batch: FloatArray, size: int | None) -> list[tuple[FloatArray, int]]:
    """A batch as a graph takes it: by a static graph's size, else by so many that memory stays small.

    A static graph's last part is filled up with the batch's own images; beside each part, how many are not.
    """
    if size is None:
        most = max(PART_PIXELS // int(np.prod(batch.shape[2:])), 1)
        parts = [batch[i : i + most] for i in range(0, len(batch), most)]
        return [(part, len(part)) for part in parts]
    count = -(-len(batch) // size)
    filled = np.resize(batch, (count * size, *batch.shape[1:]))
    starts = range(0, count * size, size)
    return [(filled[start : start + size], min(size, len(batch) - start)) for start in starts]
