"""The activations of a float graph: extremes and a sample of each, reduced where they are made.

A calibration is mostly this inference, and what it finds need not be exact: eight bits choose a range as well
as float32. So it runs in bfloat16 on a CPU with instructions for that, in half the time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeship.quantization.placement import never_negative, stand
from edgeship.quantization.statistics import FloatPrecision, Raw, float32
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.openvino import core, reason, sdk
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.threads import default_workers
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.io import Classifier

SAMPLE_SIDE = 4  # positions of an image's sample: about 4 x 4 of every map


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor with C channels on N images.

    Attributes:
        low: Lowest value of every channel, (N, C); of rows (..., C) every value, here and below.
        high: Highest value of every channel, (N, C).
        sample: Values at positions spread evenly over the images, (rows, C); of bfloat16 its bits, as uint16.
    """

    low: FloatArray
    high: FloatArray
    sample: Raw


@dataclass(frozen=True, slots=True)
class Run:
    """What came of some images: they themselves, and the results as they are in memory."""

    images: FloatArray
    results: list[Raw]


class FloatPass:
    """Runs a float graph on all cores, one thread each; call it from so many threads.

    Args:
        graph: A float classifier.
        names: Tensors to look at.
        shape: Of the images that are run at once, (N, C, H, W).
        exact: Compute in float32, however fast bfloat16 is.

    Attributes:
        size: Images that are run at once.
        precision: What it computes in.

    Raises:
        ModelError: OpenVINO refuses the graph.
    """

    def __init__(
        self, graph: Classifier, names: Sequence[str], shape: Sequence[int], *, exact: bool = False
    ) -> None:
        self.size = shape[0]
        self.precision: FloatPrecision = "f32" if exact else fastest_float()
        values = {str(value.name): value for value in _values(graph.model.graph)}
        self._watched = [values[name] for name in names]
        self._input = graph.model.graph.inputs[0]
        self._normalization = graph.normalization
        self._joined = _Joined()
        self._requests = threading.local()
        try:
            self._compiled = self._compile(graph, list(shape))
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO refuses the graph: {reason(error)}",
                hint="check it with onnx.checker, and export it again",
            ) from error

    def run(self, images: FloatArray, count: int) -> Run:
        """Run images of the shape that was told; only the first `count` are looked at."""
        if not hasattr(self._requests, "own"):
            self._requests.own = self._compiled.create_infer_request()
        self._requests.own.infer([images], share_inputs=True)
        results = [self._raw(tensor) for tensor in self._requests.own.output_tensors]
        return Run(images[:count], [each[: len(each) * count // len(images)].copy() for each in results])

    def seen(self, runs: Sequence[Run]) -> list[Seen]:
        """What runs saw of the tensors, in the order of their names."""
        together = zip(*(run.results for run in runs), strict=True)
        results = [np.concatenate(parts).reshape(-1, parts[0].shape[-1]) for parts in together]
        found = []
        for value in self._watched:
            exact = self._exactly(value, runs)
            if exact is not None:
                found.append(_of_images(exact))
            else:
                places = self._joined.places[str(value.name)]
                found.append(_of_tensor([results[index][:, channels] for index, channels in places]))
        return found

    def _exactly(self, value: ir.Value, runs: Sequence[Run]) -> FloatArray | None:
        """The images, or these as the graph normalizes them, in float32: they are quantized as they are."""
        normalization = self._normalization
        if value is self._input:
            return np.concatenate([run.images for run in runs])
        if normalization is not None and value.name == normalization.output:
            return normalization.apply(np.concatenate([run.images for run in runs]))
        return None

    def _raw(self, tensor: Any) -> Raw:
        data: Raw = tensor.data
        return data if self.precision == "f32" else data.view(np.uint16)  # it says float16

    def _compile(self, graph: Classifier, shape: list[int]) -> Any:
        made = [value for value in self._watched if value is not self._input]
        # not the file, which may differ; OpenVINO gives the input of a Dropout the Dropout's name
        network = core().read_model(ir.to_proto(_without_dropout(graph.model)).SerializeToString())
        results = network.add_outputs([str(stand(value, {"Dropout"}).name) for value in made])
        network.reshape(shape)
        for value, result in zip(made, results, strict=True):
            tensor = result.get_node().input_value(0)
            self._joined.add(str(value.name), _reduced(value, tensor))
        threads = {"INFERENCE_NUM_THREADS": default_workers(), "NUM_STREAMS": default_workers()}
        return core().compile_model(
            sdk().Model(self._joined.results(self.precision), network.get_parameters(), "activations"),
            "CPU",
            {"INFERENCE_PRECISION_HINT": self.precision, **threads},
        )


class _Joined:
    """Tensors that are alike but in their channels, in one result (..., channels): hundreds would cost time.

    Attributes:
        places: Name -> for each tensor that was added under it: the result, and the channels there.
    """

    def __init__(self) -> None:
        self.places: dict[str, list[tuple[int, slice]]] = {}
        self._tensors: dict[tuple[int, ...], list[Any]] = {}

    def add(self, name: str, tensors: Sequence[Any]) -> None:
        """Add tensors (N, C, H, W) or (..., C)."""
        self.places[name] = []
        for tensor in tensors:
            shape = list(tensor.get_shape())
            axis = _channel_axis(shape)
            channels = shape[axis]
            shape[axis] = 0
            alike = self._tensors.setdefault(tuple(shape), [])
            first = sum(other.get_shape()[axis] for other in alike)
            alike.append(tensor)
            place = list(self._tensors).index(tuple(shape)), slice(first, first + channels)
            self.places[name].append(place)

    def results(self, precision: FloatPrecision) -> list[Any]:
        """In what the graph computes in: reductions that gave float32 would be computed in it."""
        ops = sdk().opset15
        found = []
        for shape, alike in self._tensors.items():
            joined = ops.concat(alike, _channel_axis(shape))
            last = ops.transpose(joined, [0, 2, 3, 1]) if len(shape) == 4 else joined
            found.append(ops.convert(last, precision))
        return found


def _without_dropout(model: ir.Model) -> ir.Model:
    """Return a copy in which readers of a Dropout read its input: OpenVINO gives that the Dropout's name."""
    changed = io.copy(model)
    for node in list(changed.graph):
        if node.op_type == "Dropout" and node.inputs[0] is not None and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            changed.graph.remove(node, safe=True)
    return changed


def fastest_float() -> FloatPrecision:
    """What this CPU computes convolutions fastest in."""
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _reduced(value: ir.Value, tensor: Any) -> list[Any]:
    """OpenVINO's operations for a tensor, in the order in which `_of_tensor` takes their results."""
    shape = list(tensor.get_shape())  # known here, where ONNX may not infer it (as after a Loop)
    if len(shape) != 4:
        return [tensor]
    ops = sdk().opset15

    def most(side: Sequence[int], step: Sequence[int]) -> Any:
        """Pooled: without overlap faster than the same as a reduction."""
        return ops.max_pool(tensor, step, [1, 1], [0, 0], [0, 0], side).output(0)

    lowest = [] if never_negative(value) else [ops.reduce_min(tensor, [2, 3], keep_dims=True).output(0)]
    return [most([1, 1], _strides(shape)), most(shape[2:], [1, 1]), *lowest]


def _of_tensor(results: Sequence[Raw]) -> Seen:
    """A tensor by what its operations gave, (rows, C) each."""
    sample, *extremes = results
    high, *lowest = (float32(each) for each in extremes or results)
    return Seen(lowest[0] if lowest else np.zeros_like(high) if extremes else high, high, sample)


def _of_images(images: FloatArray) -> Seen:
    """The images themselves: exact, for they are quantized as they are."""
    down, across = _strides(images.shape)
    sample = images[:, :, ::down, ::across].transpose(0, 2, 3, 1)
    return Seen(images.min((2, 3)), images.max((2, 3)), sample.reshape(-1, images.shape[1]))


def _channel_axis(shape: Sequence[int]) -> int:
    return 1 if len(shape) == 4 else len(shape) - 1


def _strides(shape: Sequence[int]) -> list[int]:
    """Steps between the positions of a sample of a map, (N, C, H, W)."""
    return [max(-(-side // SAMPLE_SIDE), 1) for side in list(shape)[2:]]


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
