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

from quantize.placement import never_negative
from quantize.statistics import FloatPrecision
from toolkit.core.errors import ModelError
from toolkit.core.openvino import core, reason, sdk
from toolkit.core.quant import FloatArray
from toolkit.core.threads import default_workers
from toolkit.graph import io

SAMPLE_SIDE = 4  # positions of an image's sample: about 4 x 4 of every map


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor with C channels on N images.

    Attributes:
        low: Lowest value of every channel, (N, C); of rows (..., C) every value, here and below.
        high: Highest value of every channel, (N, C).
        sample: Values at positions spread evenly over the images, (rows, C).
    """

    low: FloatArray
    high: FloatArray
    sample: FloatArray

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """What was seen of the images of all parts."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def first(self, images: int, *, of: int) -> Seen:
        """What was seen of the first images alone."""
        return Seen(
            *(getattr(self, name)[: len(getattr(self, name)) // of * images] for name in self.__slots__)
        )


class FloatPass:
    """Runs a float graph on all cores, one thread each; call it from so many threads.

    Args:
        model: The graph, its shapes inferred.
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
        self, model: ir.Model, names: Sequence[str], shape: Sequence[int], *, exact: bool = False
    ) -> None:
        self.size = shape[0]
        self.precision: FloatPrecision = "f32" if exact else fastest_float()
        values = {str(value.name): value for value in _values(model.graph)}
        self._input = model.graph.inputs[0]
        self._watched: list[tuple[ir.Value, list[_Place]]] = []
        self._requests = threading.local()
        try:
            self._compiled = self._compile(model, [values[name] for name in names], list(shape))
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO refuses the graph: {reason(error)}",
                hint="check it with onnx.checker, and export it again",
            ) from error

    def run(self, images: FloatArray) -> list[Seen]:
        """The tensors on images of the shape that was told, in the order of their names."""
        if not hasattr(self._requests, "own"):
            self._requests.own = self._compiled.create_infer_request()
        self._requests.own.infer([images], share_inputs=True)
        results = [self._array(tensor) for tensor in self._requests.own.output_tensors]

        def taken(place: _Place) -> FloatArray:
            return results[place.result][..., place.channels]

        return [
            _of_images(images) if value is self._input else _of_tensor(value, [taken(p) for p in places])
            for value, places in self._watched
        ]

    def _compile(self, model: ir.Model, values: Sequence[ir.Value], shape: list[int]) -> Any:
        made = [value for value in values if value is not self._input]
        network = core().read_model(_with_outputs(model, made))
        network.reshape(shape)
        joined = _Joined()
        for value in values:
            places = []
            if value is not self._input:
                tensor = network.output(str(value.name)).get_node().input_value(0)
                places = [joined.add(each) for each in _reduced(value, tensor)]
            self._watched.append((value, places))
        threads = {"INFERENCE_NUM_THREADS": default_workers(), "NUM_STREAMS": default_workers()}
        return core().compile_model(
            sdk().Model(joined.results(self.precision), network.get_parameters(), "activations"),
            "CPU",
            {"INFERENCE_PRECISION_HINT": self.precision, **threads},
        )

    def _array(self, tensor: Any) -> FloatArray:
        """A copy of a result, which the next images overwrite."""
        if self.precision == "f32":
            return np.array(tensor.data)
        bits: np.ndarray[Any, np.dtype[np.uint32]] = tensor.data.view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies among the results: in which, and in which of its channels."""

    result: int
    channels: slice


class _Joined:
    """Tensors (..., C) that are alike but in C, side by side in one result: hundreds would cost time each."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[int, ...], list[Any]] = {}

    def add(self, tensor: Any) -> _Place:
        *rest, channels = tensor.get_shape()
        alike = self._tensors.setdefault(tuple(rest), [])
        first = sum(other.get_shape()[-1] for other in alike)
        alike.append(tensor)
        return _Place(list(self._tensors).index(tuple(rest)), slice(first, first + channels))

    def results(self, precision: FloatPrecision) -> list[Any]:
        """In what the graph computes in: reductions that gave float32 would be computed in it."""
        ops = sdk().opset15
        return [ops.convert(ops.concat(alike, axis=-1), precision) for alike in self._tensors.values()]


def fastest_float() -> FloatPrecision:
    """What this CPU computes convolutions fastest in."""
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def widened(bits: np.ndarray[Any, Any]) -> FloatArray:
    """bfloat16, given as uint16, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _with_outputs(model: ir.Model, values: Sequence[ir.Value]) -> bytes:
    """The graph, giving these tensors."""
    changed = io.copy(model)
    wanted = {str(value.name) for value in values}
    changed.graph.outputs[:] = [value for value in _values(changed.graph) if value.name in wanted]
    for value in changed.graph.outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return bytes(ir.to_proto(changed).SerializeToString())


def _reduced(value: ir.Value, tensor: Any) -> list[Any]:
    """OpenVINO's operations for a tensor, in the order in which `_of_tensor` takes their results."""
    if not _is_map(value):
        return [tensor]
    ops = sdk().opset15
    sample = ops.max_pool(tensor, _strides(tensor.get_shape()), [1, 1], [0, 0], [0, 0], [1, 1]).output(0)
    sample = ops.transpose(sample, [0, 2, 3, 1]).output(0)
    lowest = [] if never_negative(value) else [ops.reduce_min(tensor, [2, 3]).output(0)]
    return [sample, ops.reduce_max(tensor, [2, 3]).output(0), *lowest]


def _of_tensor(value: ir.Value, results: Sequence[FloatArray]) -> Seen:
    """A tensor by what its operations gave."""
    sample = results[0].reshape(-1, results[0].shape[-1])
    if not _is_map(value):
        return Seen(sample, sample, sample)
    high = results[1]
    return Seen(np.zeros_like(high) if never_negative(value) else results[2], high, sample)


def _of_images(images: FloatArray) -> Seen:
    """The images themselves: exact, for they are quantized as they are."""
    down, across = _strides(images.shape)
    sample = images[:, :, ::down, ::across].transpose(0, 2, 3, 1)
    return Seen(images.min((2, 3)), images.max((2, 3)), sample.reshape(-1, images.shape[1]))


def _strides(shape: Sequence[int]) -> list[int]:
    """Steps between the positions of a sample of a map, (N, C, H, W)."""
    return [max(-(-side // SAMPLE_SIDE), 1) for side in list(shape)[2:]]


def _is_map(value: ir.Value) -> bool:
    """Whether a tensor is (N, C, H, W)."""
    return value.shape is not None and len(value.shape) == 4


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
