"""Collect extremes and a sample of each activation by OpenVINO inference, reduced in the graph.

Inference dominates the time of a calibration, and bfloat16 is precise enough to choose a range: on a CPU with
bfloat16 instructions the pass runs in it, in half the time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeship.quantization.placement import insertion_point
from edgeship.quantization.statistics import FloatPrecision, Raw, float32
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.openvino import core, reason, sdk
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.threads import default_workers
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.io import Classifier
from edgeship.toolkit.graph.signs import never_negative

SAMPLE_SIDE = 4  # sampled positions per image and map: about 4 x 4


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Extremes and samples of a tensor with C channels on N images.

    Attributes:
        low: Lowest value of every channel, (N, C); for tensors (..., C) every value, here and below.
        high: Highest value of every channel, (N, C).
        sample: Values at positions spread evenly over the images, (rows, C); uint16 bit patterns if bfloat16.
    """

    low: FloatArray
    high: FloatArray
    sample: Raw


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """Images of one inference and the raw output arrays."""

    images: FloatArray
    results: list[Raw]


class ActivationCollector:
    """Float inference with one single-threaded stream per core; call `run` from as many threads.

    Args:
        graph: A float classifier.
        names: Tensors to collect.
        shape: Shape of the images of one inference, (N, C, H, W).
        exact: Compute in float32 even if the CPU has bfloat16 instructions.

    Attributes:
        size: Images per inference.
        precision: Precision of the inference.

    Raises:
        ModelError: OpenVINO cannot compile the graph.
    """

    def __init__(
        self, graph: Classifier, names: Sequence[str], shape: Sequence[int], *, exact: bool = False
    ) -> None:
        self.size = shape[0]
        self.precision: FloatPrecision = "f32" if exact else fastest_float()
        values = {str(value.name): value for value in _values(graph.model.graph)}
        self._tensors = [values[name] for name in names]
        self._input = graph.model.graph.inputs[0]
        self._normalization = graph.normalization
        self._outputs = _MergedOutputs()
        self._requests = threading.local()
        try:
            self._compiled = self._compile(graph, list(shape))
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO cannot compile the graph: {reason(error)}",
                hint="check the file with onnx.checker, and export it again",
            ) from error

    def run(self, images: FloatArray, count: int) -> InferenceResult:
        """Run images of the compiled shape; keep the results of the first `count`."""
        if not hasattr(self._requests, "own"):
            self._requests.own = self._compiled.create_infer_request()
        self._requests.own.infer([images], share_inputs=True)
        results = [self._raw(tensor) for tensor in self._requests.own.output_tensors]
        return InferenceResult(
            images[:count], [each[: len(each) * count // len(images)].copy() for each in results]
        )

    def statistics(self, runs: Sequence[InferenceResult]) -> list[BatchStatistics]:
        """Return the statistics of the tensors over some inferences, in the order of `names`."""
        by_output = zip(*(run.results for run in runs), strict=True)
        results = [np.concatenate(parts).reshape(-1, parts[0].shape[-1]) for parts in by_output]
        statistics = []
        for value in self._tensors:
            images = self._input_images(value, runs)
            if images is not None:
                statistics.append(_image_statistics(images))
            else:
                places = self._outputs.places[str(value.name)]
                statistics.append(
                    _tensor_statistics([results[index][:, channels] for index, channels in places])
                )
        return statistics

    def _input_images(self, value: ir.Value, runs: Sequence[InferenceResult]) -> FloatArray | None:
        """Return the float32 images if the tensor is the graph input or its normalized form, else None."""
        normalization = self._normalization
        if value is self._input:
            return np.concatenate([run.images for run in runs])
        if normalization is not None and value.name == normalization.output:
            return normalization.apply(np.concatenate([run.images for run in runs]))
        return None

    def _raw(self, tensor: Any) -> Raw:
        data: Raw = tensor.data
        return data if self.precision == "f32" else data.view(np.uint16)  # OpenVINO types bfloat16 as float16

    def _compile(self, graph: Classifier, shape: list[int]) -> Any:
        computed = [value for value in self._tensors if value is not self._input]
        # the model in memory, which may differ from the file
        network = core().read_model(ir.to_proto(_without_dropout(graph.model)).SerializeToString())
        results = network.add_outputs([str(insertion_point(value, {"Dropout"}).name) for value in computed])
        network.reshape(shape)
        for value, result in zip(computed, results, strict=True):
            tensor = result.get_node().input_value(0)
            self._outputs.add(str(value.name), _reductions(value, tensor))
        threads = {"INFERENCE_NUM_THREADS": default_workers(), "NUM_STREAMS": default_workers()}
        return core().compile_model(
            sdk().Model(self._outputs.results(self.precision), network.get_parameters(), "activations"),
            "CPU",
            {"INFERENCE_PRECISION_HINT": self.precision, **threads},
        )


class _MergedOutputs:
    """Tensors of equal shape up to channels, concatenated to one output: hundreds of outputs cost time.

    Attributes:
        places: Name -> (output index, channels) of each tensor added under it.
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
        """Build the outputs in the inference precision: OpenVINO computes reductions in their output type."""
        ops = sdk().opset15
        outputs = []
        for shape, alike in self._tensors.items():
            merged = ops.concat(alike, _channel_axis(shape))
            last = ops.transpose(merged, [0, 2, 3, 1]) if len(shape) == 4 else merged
            outputs.append(ops.convert(last, precision))
        return outputs


def _without_dropout(model: ir.Model) -> ir.Model:
    """Return a copy without Dropout: OpenVINO renames the input of a Dropout to its output."""
    changed = io.copy(model)
    for node in list(changed.graph):
        if node.op_type == "Dropout" and node.inputs[0] is not None and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            changed.graph.remove(node, safe=True)
    return changed


def fastest_float() -> FloatPrecision:
    """Return the fastest float precision of convolutions on this CPU."""
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _reductions(value: ir.Value, tensor: Any) -> list[Any]:
    """Build the OpenVINO reductions of a tensor, in the order of `_tensor_statistics`."""
    shape = list(tensor.get_shape())  # OpenVINO infers shapes that ONNX may not (after a Loop)
    if len(shape) != 4:
        return [tensor]
    ops = sdk().opset15

    def pooled_max(side: Sequence[int], step: Sequence[int]) -> Any:
        """Max pool without overlap: faster than a reduction."""
        return ops.max_pool(tensor, step, [1, 1], [0, 0], [0, 0], side).output(0)

    lowest = [] if never_negative(value) else [ops.reduce_min(tensor, [2, 3], keep_dims=True).output(0)]
    return [pooled_max([1, 1], _strides(shape)), pooled_max(shape[2:], [1, 1]), *lowest]


def _tensor_statistics(results: Sequence[Raw]) -> BatchStatistics:
    """Return the statistics of a tensor from the results of its reductions, (rows, C) each."""
    sample, *extremes = results
    high, *lowest = (float32(each) for each in extremes or results)
    return BatchStatistics(lowest[0] if lowest else np.zeros_like(high) if extremes else high, high, sample)


def _image_statistics(images: FloatArray) -> BatchStatistics:
    """Return the exact statistics of the input images."""
    down, across = _strides(images.shape)
    sample = images[:, :, ::down, ::across].transpose(0, 2, 3, 1)
    return BatchStatistics(images.min((2, 3)), images.max((2, 3)), sample.reshape(-1, images.shape[1]))


def _channel_axis(shape: Sequence[int]) -> int:
    return 1 if len(shape) == 4 else len(shape) - 1


def _strides(shape: Sequence[int]) -> list[int]:
    """Return the steps between sampled positions of a map (N, C, H, W)."""
    return [max(-(-side // SAMPLE_SIDE), 1) for side in list(shape)[2:]]


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
