"""A float graph as a PyTorch function: every tensor can be looked at, changed, and differentiated by."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quantize.operations import OPERATIONS, Call
from toolkit.core.errors import ModelError
from toolkit.core.quant import FloatArray
from toolkit.core.threads import default_workers, ordered_map
from toolkit.graph import io

Change = Callable[[str, Tensor], Tensor]
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
            return OPERATIONS[node.op_type](Call(node, inputs))
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
