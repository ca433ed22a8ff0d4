"""A float graph as a PyTorch function: every tensor can be looked at, changed, and differentiated by."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeship.quantization.node_call import Call, UnsupportedAttributeError
from edgeship.quantization.onnx_node import OnnxNode, read_names
from edgeship.quantization.torch_ops import NATIVE, OPERATIONS, key
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.threads import check_stop, default_workers, ordered_map
from edgeship.toolkit.graph import io

Change = Callable[[str, Tensor], Tensor]
Item = TypeVar("Item")
Result = TypeVar("Result")


_HINT = "quantize.effort = fast does not need it"
_NUMBERS = "biuf"  # kinds of NumPy types that PyTorch has
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


@dataclass(frozen=True, slots=True)
class Execution:
    """How the nodes of a graph are run, beyond the default.

    Attributes:
        one_image: The graph mixes the batch with other axes: each image is run by itself, as the graph
            is written.
        by_runtime: Names of nodes that ONNX Runtime runs (see `onnx_node`), beside operators that have no
            PyTorch counterpart here.
    """

    one_image: bool = False
    by_runtime: frozenset[str] = frozenset()


DEFAULT = Execution()


class TorchExecutor:
    """Runs the operations of a graph one by one.

    Attributes:
        model: The graph.
        constants: Initializer name -> tensor; put another tensor there to change a weight.
        reads: Tensor name -> how often the nodes read it.
        estimated: Nodes that ONNX Runtime runs: their gradients are estimates.

    Args:
        model: A float graph.
        dtype: What to compute in.
        execution: How its nodes are run; see `agreement.execution`.
    """

    def __init__(
        self, model: ir.Model, dtype: torch.dtype = torch.float32, execution: Execution = DEFAULT
    ) -> None:
        self.model = model
        self.execution = execution
        self._dtype = dtype
        arrays = {
            name: io.constant(value)
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self.constants = {
            name: self._typed(channels_last(_tensor(array)))
            for name, array in arrays.items()
            if array.dtype.kind in _NUMBERS
        }
        self.nodes = list(model.graph)
        self.estimated = [
            node
            for node in self.nodes
            if key(node) not in OPERATIONS or str(node.name) in execution.by_runtime
        ]
        self._runtime = {str(node.name): OnnxNode(node, model) for node in self.estimated}
        self.input = str(model.graph.inputs[0].name)
        self.output = str(model.graph.outputs[0].name)
        self.inputs = {str(node.name): read_names(node) for node in self.nodes}
        self.reads = Counter(name for node in self.nodes for name in self.inputs[str(node.name)])
        self._last_use = {
            name: index for index, node in enumerate(self.nodes) for name in self.inputs[str(node.name)]
        }
        self._with_batch = _with_batch(self.input, self.nodes, self.inputs)

    def __call__(
        self,
        images: Tensor,
        change: Change | None = None,
        constants: Mapping[str, Tensor] | None = None,
        *,
        estimate: bool = True,
    ) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W).

        Args:
            images: Preprocessed images.
            change: Called with the name and value of the input and of every result; what it returns
                is what later operations read.
            constants: Initializer name -> tensor that is read in its place.
            estimate: Whether gradients through what ONNX Runtime runs are estimates; else they end there.
        """
        if self.execution.one_image and len(images) > 1:
            return torch.cat(
                [self(image, change, constants, estimate=estimate) for image in torch.split(images, 1)]
            )
        images = self._typed(channels_last(images))
        values = {self.input: change(self.input, images) if change else images, **(constants or {})}
        for index, node in enumerate(self.nodes):
            for name, result in self.apply(node, values, estimate=estimate).items():
                values[name] = change(name, result) if change else result
            for name in self.inputs[str(node.name)]:  # memory: drop what nobody reads any more
                if self._last_use[name] == index and name != self.output:
                    values.pop(name, None)
        return values[self.output]

    def parts(self, images: FloatArray) -> tuple[Tensor, ...]:
        """Images (N, C, H, W) in parts that are run at once."""
        return torch.split(torch.from_numpy(images), 1) if self.execution.one_image else parts(images)

    def _typed(self, values: Tensor) -> Tensor:
        return values.to(self._dtype) if values.is_floating_point() else values

    def apply(
        self, node: ir.Node, values: Mapping[str, Tensor], *, estimate: bool = True
    ) -> dict[str, Tensor]:
        """Output name -> result of one node, its inputs taken from `values` or the constants.

        Raises:
            ModelError: It cannot be computed; the message names operator and node.
        """
        check_stop()

        def read(name: str) -> Tensor:
            return values[name] if name in values else self.constants[name]

        if (runtime := self._runtime.get(str(node.name))) is not None:
            results = runtime([read(name) for name in runtime.names], estimate=estimate)
            names = [str(value.name) for value in node.outputs if value.name]
            return {name: self._typed(each) for name, each in zip(names, results, strict=True)}
        inputs = [None if value is None else read(str(value.name)) for value in node.inputs]
        native = self._dtype == torch.float32 or node.op_type in NATIVE
        if not native:
            inputs = [v if v is None or not v.is_floating_point() else v.float() for v in inputs]
        first = node.inputs[0] if node.inputs else None
        literal = self.execution.one_image or first is None or str(first.name) not in self._with_batch
        try:
            result = OPERATIONS[key(node)](Call(node, inputs, literal=literal))
        except (RuntimeError, IndexError, TypeError, ValueError, UnsupportedAttributeError) as error:
            raise ModelError(
                f"operator {node.op_type} (node '{node.name}') cannot be differentiated here: "
                f"{str(error).splitlines()[0]}",
                hint=_HINT,
            ) from error
        results = result if isinstance(result, tuple) else (result,)
        outputs = zip(node.outputs, results, strict=False)  # optional ones may be absent
        return {str(value.name): self._typed(each) for value, each in outputs if value.name}


def _with_batch(image: str, nodes: Iterable[ir.Node], inputs: Mapping[str, list[str]]) -> frozenset[str]:
    """Tensors whose first axis holds the images: all that are computed of the images, but shapes."""
    names = {image}
    for node in nodes:
        if node.op_type not in {"Shape", "Size"} and not names.isdisjoint(inputs[str(node.name)]):
            names.update(str(value.name) for value in node.outputs)
    return frozenset(names)


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """An array's own memory, or a copy where it may not be written to, which PyTorch minds."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def channels_last(values: Tensor) -> Tensor:
    """The same values in the memory order that convolutions are fastest with on CPUs."""
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values
