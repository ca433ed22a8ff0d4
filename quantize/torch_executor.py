"""Differentiable execution of a float ONNX graph in PyTorch, with hooks on every tensor."""

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
from edgeship.quantization.torch_ops import NATIVE, OPERATIONS
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.threads import check_stop, default_workers, ordered_map
from edgeship.toolkit.graph import edit

Change = Callable[[str, Tensor], Tensor]
Item = TypeVar("Item")
Result = TypeVar("Result")


_HINT = "set quantize.effort=fast"
_NUMBERS = "biuf"  # NumPy type kinds with a PyTorch counterpart
_lock = threading.Lock()
_thread_counts: list[int] = []  # for each entered `one_thread`: PyTorch threads before the first
PART_PIXELS = 2**16  # pixels of one part: 16 images at 64 px, 1 at 224 px; larger tensors leave the caches


def parts(images: FloatArray) -> tuple[Tensor, ...]:
    """Split images (N, C, H, W) into parts that run at once."""
    size = max(PART_PIXELS // int(np.prod(images.shape[2:])), 1)
    return torch.split(torch.from_numpy(images), size)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """Apply a PyTorch function to every item, one single-threaded worker per core; yield results in order.

    Parallel items avoid the synchronization of threads within each operation.
    """
    with one_thread() as workers, closing(ordered_map(work, items, workers=workers, chunk=1)) as results:
        yield from results


@contextmanager
def one_thread() -> Iterator[int]:
    """Set PyTorch to one thread per operation; yield the number of workers for `side_by_side`."""
    with _lock:
        _thread_counts.append(_thread_counts[0] if _thread_counts else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield min(_thread_counts[0], default_workers())
    finally:
        with _lock:
            before = _thread_counts.pop()
            if not _thread_counts:
                torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Execution:
    """Execution settings of a graph.

    Attributes:
        one_image: Run one image at a time: the graph mixes the batch with other axes.
        by_runtime: Names of nodes to run in ONNX Runtime (see `onnx_node`), in addition to operators without
            a PyTorch implementation.
    """

    one_image: bool = False
    by_runtime: frozenset[str] = frozenset()


DEFAULT = Execution()


class TorchExecutor:
    """Interpreter of a graph in PyTorch, node by node.

    Attributes:
        model: The graph.
        constants: Initializer name -> tensor; replace an entry to change a weight.
        reads: Tensor name -> number of uses as a node input.
        estimated: Nodes in ONNX Runtime, with estimated gradients.

    Args:
        model: A float graph.
        dtype: Floating-point type of the computation.
        execution: Execution settings; see `agreement.matching_executor`.
    """

    def __init__(
        self, model: ir.Model, dtype: torch.dtype = torch.float32, execution: Execution = DEFAULT
    ) -> None:
        self.model = model
        self.execution = execution
        self._dtype = dtype
        arrays = {
            name: edit.constant(value)
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
            if node.op_type not in OPERATIONS or str(node.name) in execution.by_runtime
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
        """Return the logits (N, classes) of images (N, C, H, W).

        Args:
            images: Preprocessed images.
            change: Hook called with the name and value of the input and every result; its return value
                replaces the tensor.
            constants: Initializer name -> replacement.
            estimate: Estimate gradients through ONNX Runtime nodes; else gradients end there.
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
            for name in self.inputs[str(node.name)]:  # memory: free tensors after their last use
                if self._last_use[name] == index and name != self.output:
                    values.pop(name, None)
        return values[self.output]

    def parts(self, images: FloatArray) -> tuple[Tensor, ...]:
        """Split images (N, C, H, W) into parts that run at once."""
        return torch.split(torch.from_numpy(images), 1) if self.execution.one_image else parts(images)

    def _typed(self, values: Tensor) -> Tensor:
        return values.to(self._dtype) if values.is_floating_point() else values

    def apply(
        self, node: ir.Node, values: Mapping[str, Tensor], *, estimate: bool = True
    ) -> dict[str, Tensor]:
        """Run one node on inputs from `values` or the constants; return output name -> result.

        Raises:
            ModelError: The node cannot be computed; the message names operator and node.
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
            result = OPERATIONS[node.op_type](Call(node, inputs, literal=literal))
        except (RuntimeError, IndexError, TypeError, ValueError, UnsupportedAttributeError) as error:
            raise ModelError(
                f"operator {node.op_type} (node '{node.name}') cannot be computed in PyTorch: "
                f"{str(error).splitlines()[0]}",
                hint=_HINT,
            ) from error
        results = result if isinstance(result, tuple) else (result,)
        outputs = zip(node.outputs, results, strict=False)  # optional ones may be absent
        return {str(value.name): self._typed(each) for value, each in outputs if value.name}


def _with_batch(image: str, nodes: Iterable[ir.Node], inputs: Mapping[str, list[str]]) -> frozenset[str]:
    """Return the tensors whose first axis is the batch: all results of the images except shapes."""
    names = {image}
    for node in nodes:
        if node.op_type not in {"Shape", "Size"} and not names.isdisjoint(inputs[str(node.name)]):
            names.update(str(value.name) for value in node.outputs)
    return frozenset(names)


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Convert an array to a tensor; copy it only if read-only, which PyTorch warns about."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def channels_last(values: Tensor) -> Tensor:
    """Convert a 4-D tensor to channels-last memory, the fastest for convolutions on CPUs."""
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values
