"""A float graph as a PyTorch function: every tensor can be looked at, changed, and differentiated by."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import reduce
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.placement import clip_bounds
from toolkit.core.errors import ModelError
from toolkit.core.quant import FloatArray
from toolkit.core.threads import default_workers, ordered_map
from toolkit.graph import io

Change = Callable[[str, Tensor], Tensor]
Operation = Callable[["_Call"], Tensor]
Item = TypeVar("Item")
Result = TypeVar("Result")


_HINT = "quantize.effort = fast does not need it"
_lock = threading.Lock()
_inside: list[int] = []  # for each `one_thread` that is entered: the threads of an operation before the first
PART_PIXELS = 2**16  # images of one part: 16 at 64 px, 1 at 224 px; larger tensors leave the caches


def parts(images: FloatArray) -> tuple[Tensor, ...]:
    """Images (N, C, H, W) in parts that are run at once."""
    size = max(PART_PIXELS // int(np.prod(images.shape[2:])), 1)
    return torch.split(torch.from_numpy(images), size)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """Apply a function that computes with torch to every item, one thread a core; the results in order.

    Threads that share every operation wait for each other all the time, and for whatever else the machine
    does; with items of their own they do not.
    """
    with one_thread() as workers, closing(ordered_map(work, items, workers=workers, chunk=1)) as results:
        yield from results


@contextmanager
def one_thread() -> Iterator[int]:
    """Operations do not share threads meanwhile; gives how many threads there are for `side_by_side`."""
    with _lock:
        _inside.append(_inside[0] if _inside else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield min(_inside[0], default_workers())
    finally:
        with _lock:
            before = _inside.pop()
            if not _inside:
                torch.set_num_threads(before)


class Network:
    """Runs the operations of a graph one by one.

    Attributes:
        model: The graph.
        constants: Initializer name -> tensor; put another tensor there to change a weight.
        reads: Tensor name -> how often the nodes read it.

    Args:
        model: A float graph.
        dtype: What to compute in.

    Raises:
        ModelError: An operation is not known here; the message names it.
    """

    def __init__(self, model: ir.Model, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self._dtype = dtype
        self.constants = {
            name: self._typed(channels_last(_tensor(io.constant(value))))
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self.nodes = list(model.graph)
        for node in self.nodes:
            if node.op_type not in OPERATIONS:
                raise ModelError(
                    f"operation {node.op_type} (node '{node.name}') cannot be differentiated here",
                    hint=_HINT,
                )
            if node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
                raise ModelError(
                    f"node '{node.name}' is padded by the size of its input, which is not known",
                    hint="export with a fixed image size",
                )
        self.input = str(model.graph.inputs[0].name)
        self.output = str(model.graph.outputs[0].name)
        self.reads = Counter(str(v.name) for node in self.nodes for v in node.inputs if v is not None)
        self._last_use = {
            str(value.name): index
            for index, node in enumerate(self.nodes)
            for value in node.inputs
            if value is not None
        }

    def __call__(
        self, images: Tensor, change: Change | None = None, constants: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W).

        Args:
            images: Preprocessed images.
            change: Called with the name and value of the input and of every result; what it returns
                is what later operations read.
            constants: Initializer name -> tensor that is read in its place.
        """
        images = self._typed(channels_last(images))
        values = {self.input: change(self.input, images) if change else images, **(constants or {})}
        for index, node in enumerate(self.nodes):
            name = str(node.outputs[0].name)
            result = self.apply(node, values)
            values[name] = change(name, result) if change else result
            for value in node.inputs:  # memory: drop what nobody reads any more
                if (
                    value is not None
                    and self._last_use[str(value.name)] == index
                    and value.name != self.output
                ):
                    values.pop(str(value.name), None)
        return values[self.output]

    def _typed(self, values: Tensor) -> Tensor:
        return values.to(self._dtype) if values.is_floating_point() else values

    def apply(self, node: ir.Node, values: dict[str, Tensor]) -> Tensor:
        """The result of one node, its inputs taken from `values` or the constants.

        Raises:
            ModelError: It cannot be computed for several images at once.
        """
        inputs = [
            None
            if v is None
            else values[str(v.name)]
            if str(v.name) in values
            else self.constants[str(v.name)]
            for v in node.inputs
        ]
        try:
            return OPERATIONS[node.op_type](_Call(node, inputs))
        except (RuntimeError, IndexError, TypeError) as error:
            raise ModelError(
                f"operation {node.op_type} (node '{node.name}') cannot be differentiated here: "
                f"{str(error).splitlines()[0]}",
                hint=_HINT,
            ) from error


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """An array's own memory, or a copy where it may not be written to, which PyTorch minds."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def channels_last(values: Tensor) -> Tensor:
    """The same values in the memory order that convolutions are fastest with on CPUs."""
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


class _Call:
    """Inputs and attributes of a node."""

    def __init__(self, node: ir.Node, inputs: list[Tensor | None]) -> None:
        self.node = node
        self._inputs = inputs

    def __getitem__(self, index: int) -> Tensor:
        found = self.get(index)
        assert found is not None, f"{self.node.name}: input {index} is absent"
        return found

    def get(self, index: int) -> Tensor | None:
        return self._inputs[index] if index < len(self._inputs) else None

    def all(self) -> list[Tensor]:
        return [value for value in self._inputs if value is not None]

    def ints(self, name: str, default: list[int]) -> list[int]:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else [int(v) for v in attribute.as_ints()]

    def integer(self, name: str, default: int) -> int:
        return int(self.node.attributes.get_int(name, default) or 0)

    def number(self, name: str, default: float) -> float:
        found = self.node.attributes.get_float(name, default)
        return default if found is None else float(found)

    def constant(self, index: int) -> list[int]:
        return [int(v) for v in self[index].flatten().tolist()]


def _padded(call: _Call, spatial: int, fill: float) -> tuple[Tensor, list[int]]:
    """The first input, padded where the padding is uneven, and the even padding that is left."""
    pads = call.ints("pads", [0] * 2 * spatial)
    before, after = pads[:spatial], pads[spatial:]
    if before == after:
        return call[0], before
    order = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return F.pad(call[0], order, value=fill), [0] * spatial


def _conv(call: _Call) -> Tensor:
    x, pads = _padded(call, 2, 0.0)
    strides, dilations = call.ints("strides", [1, 1]), call.ints("dilations", [1, 1])
    if call[1].shape[2:] == (1, 1):
        dilations = [2, 2]  # changes nothing, but has PyTorch take oneDNN on a single thread, twice as fast
    return F.conv2d(x, call[1], call.get(2), strides, pads, dilations, call.integer("group", 1))


def _gemm(call: _Call) -> Tensor:
    a = call[0].T if call.integer("transA", 0) else call[0]
    weight = call[1] if call.integer("transB", 0) else call[1].T
    product = F.linear(a, weight) * call.number("alpha", 1.0)
    bias = call.get(2)
    return product if bias is None else product + call.number("beta", 1.0) * bias


def _max_pool(call: _Call) -> Tensor:
    x, pads = _padded(call, 2, float("-inf"))
    kernel = call.ints("kernel_shape", [1, 1])
    ceil = bool(call.integer("ceil_mode", 0))
    return F.max_pool2d(x, kernel, call.ints("strides", [1, 1]), pads, call.ints("dilations", [1, 1]), ceil)


def _average_pool(call: _Call) -> Tensor:
    x, pads = _padded(call, 2, 0.0)
    include = bool(call.integer("count_include_pad", 0))
    ceil = bool(call.integer("ceil_mode", 0))
    kernel, strides = call.ints("kernel_shape", [1, 1]), call.ints("strides", [1, 1])
    found = F.avg_pool2d(x, kernel, strides, pads, ceil, include)
    if include or x is call[0]:
        return found
    inside, _ = _padded(_Call(call.node, [torch.ones_like(call[0][:1, :1])]), 2, 0.0)
    return found / F.avg_pool2d(inside, kernel, strides, pads, ceil, include)


def _batch_norm(call: _Call) -> Tensor:
    return F.batch_norm(call[0], call[3], call[4], call[1], call[2], False, 0.0, call.number("epsilon", 1e-5))


def _axes(call: _Call) -> list[int]:
    """What is reduced; none given means all, which would mix the images."""
    axes = call.constant(1) if call.get(1) is not None else call.ints("axes", [])
    if not axes or 0 in (axis % call[0].ndim for axis in axes):
        raise IndexError("it mixes images")
    return axes


def _clip(call: _Call) -> Tensor:
    low, high = clip_bounds(call.node)
    return call[0] if low is None and high is None else torch.clamp(call[0], low, high)


def _reshape(call: _Call) -> Tensor:
    shape = call.constant(1)
    if not call.integer("allowzero", 0):
        shape = [call[0].shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return call[0].reshape(len(call[0]), *(shape[1:] if len(shape) > 1 else shape))  # the batch is ours


def _squeeze(call: _Call) -> Tensor:
    axes = call.constant(1) if call.get(1) is not None else call.ints("axes", [])
    if not axes:  # all that are 1, but the batch, which may be 1 by chance
        axes = [axis for axis, size in enumerate(call[0].shape) if axis and size == 1]
    return call[0].squeeze(axes)


def _pad(call: _Call) -> Tensor:
    pads = call.constant(1) if call.get(1) is not None else call.ints("pads", [])
    half = len(pads) // 2
    fill = call.get(2)
    order = [p for pair in zip(reversed(pads[:half]), reversed(pads[half:]), strict=True) for p in pair]
    mode = PAD_MODES[call.node.attributes.get_string("mode", "constant") or "constant"]
    if mode == "constant":
        return F.pad(call[0], order, mode, 0.0 if fill is None else float(fill.item()))
    return F.pad(call[0], order[:4], mode)  # height and width; there is none of batch and channels


def _slice(call: _Call) -> Tensor:
    starts, ends = call.constant(1), call.constant(2)
    axes = call.constant(3) if call.get(3) is not None else list(range(len(starts)))
    steps = call.constant(4) if call.get(4) is not None else [1] * len(starts)
    found = call[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(*slice(start, end, step).indices(found.shape[axis]))
        found = found.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return found


def _prelu(call: _Call) -> Tensor:
    return torch.where(call[0] < 0, call[0] * call[1], call[0])


def _layer_norm(call: _Call) -> Tensor:
    axis = call.integer("axis", -1)
    shape = call[0].shape[axis:]
    return F.layer_norm(call[0], shape, call[1], call.get(2), call.number("epsilon", 1e-5))


PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
OPERATIONS: dict[str, Operation] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": lambda call: call[0] @ call[1],
    "Relu": lambda call: torch.relu(call[0]),
    "Clip": _clip,
    "Sigmoid": lambda call: torch.sigmoid(call[0]),
    "HardSigmoid": lambda call: torch.clamp(
        call[0] * call.number("alpha", 0.2) + call.number("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": lambda call: F.hardswish(call[0]),
    "LeakyRelu": lambda call: F.leaky_relu(call[0], call.number("alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": lambda call: F.elu(call[0], call.number("alpha", 1.0)),
    "Softplus": lambda call: F.softplus(call[0]),
    "Tanh": lambda call: torch.tanh(call[0]),
    "Erf": lambda call: torch.erf(call[0]),
    "Gelu": lambda call: F.gelu(
        call[0], approximate=call.node.attributes.get_string("approximate", "none") or "none"
    ),
    "Sqrt": lambda call: torch.sqrt(call[0]),
    "Pow": lambda call: call[0] ** call[1],
    "Softmax": lambda call: call[0].softmax(call.integer("axis", -1)),
    "LogSoftmax": lambda call: call[0].log_softmax(call.integer("axis", -1)),
    "LayerNormalization": _layer_norm,
    "Add": lambda call: call[0] + call[1],
    "Sub": lambda call: call[0] - call[1],
    "Mul": lambda call: call[0] * call[1],
    "Div": lambda call: call[0] / call[1],
    "Max": lambda call: reduce(torch.maximum, call.all()),
    "Min": lambda call: reduce(torch.minimum, call.all()),
    "Concat": lambda call: torch.cat(call.all(), call.integer("axis", 1)),
    "BatchNormalization": _batch_norm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda call: call[0].mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda call: call[0].amax((2, 3), keepdim=True),
    "ReduceMean": lambda call: call[0].mean(_axes(call), keepdim=bool(call.integer("keepdims", 1))),
    "ReduceSum": lambda call: call[0].sum(_axes(call), keepdim=bool(call.integer("keepdims", 1))),
    "Transpose": lambda call: call[0].permute(call.ints("perm", list(range(call[0].ndim))[::-1])),
    "Gather": lambda call: call[0].index_select(call.integer("axis", 0), call[1].reshape(-1)),
    "Flatten": lambda call: call[0].flatten(call.integer("axis", 1)),
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Identity": lambda call: call[0],
    "Dropout": lambda call: call[0],
    "Pad": _pad,
    "Slice": _slice,
}
