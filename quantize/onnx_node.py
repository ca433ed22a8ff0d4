"""Nodes without a PyTorch counterpart: ONNX Runtime computes them, and gradients are estimated.

The values are those of the runtime. Its Jacobian is not known; the ranges of earlier tensors need only
how much an error there moves the logits. So the gradient of an input is that of the output spread over it:
random signs of the same relative size. Errors before the node are then weighed by the mean squared error of
what the node reads, as if the section of the network before it ended there.

Source:
    Reconstruction of a section's own output: Nagel et al. 2020 (AdaRound), arXiv:2004.10568, sec. 3.2.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from edgeship.toolkit.core.errors import ModelError

_IR_VERSION = 10  # at most: what the oldest supported ONNX Runtime reads


def read_names(node: ir.Node) -> list[str]:
    """Names of the tensors that a node reads, those that its subgraphs (of If, Loop, Scan) read included."""
    names = [str(value.name) for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            names += _outer_names(attribute.as_graph())
    return list(dict.fromkeys(names))


def _outer_names(graph: ir.Graph) -> list[str]:
    """Tensors of the outer graph that a subgraph reads."""
    inner = {str(value.name) for value in graph.inputs} | set(graph.initializers)
    inner |= {str(value.name) for node in graph for value in node.outputs}
    read = [name for node in graph for name in read_names(node)]
    read += [str(value.name) for value in graph.outputs]
    return [name for name in read if name not in inner]


class OnnxNode:
    """A node as a graph of its own in ONNX Runtime; threads may share it.

    Args:
        node: The node.
        model: The graph it is part of.
    """

    def __init__(self, node: ir.Node, model: ir.Model) -> None:
        self.names = read_names(node)
        self._node, self._model = node, model
        self._session: Any = None
        self._lock = threading.Lock()
        self._outputs = [str(value.name) for value in node.outputs if value.name]

    def __call__(self, inputs: Sequence[Tensor], *, estimate: bool = True) -> tuple[Tensor, ...]:
        """The outputs of the node for inputs in the order of `names`.

        Args:
            inputs: Values of the tensors `names`.
            estimate: Whether the outputs have estimated gradients; else they have none.

        Raises:
            ModelError: ONNX Runtime cannot compute it.
        """
        if estimate and torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
            return tuple(_Estimated.apply(self, *inputs))  # type: ignore[no-untyped-call]
        return self.run(inputs)

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, without gradients."""
        with self._lock:
            if self._session is None:
                self._session = self._opened(inputs)
        types = {each.name: each.type for each in self._session.get_inputs()}
        given = {name: _array(value, types[name]) for name, value in zip(self.names, inputs, strict=True)}
        try:
            results = self._session.run(self._outputs, given)
        except Exception as error:  # ONNX Runtime raises bare exceptions of its own
            raise self._refused(error) from error
        if not all(isinstance(each, np.ndarray) and each.dtype.kind in "biuf" for each in results):
            raise self._refused(TypeError("its outputs are no tensors of numbers"))
        return tuple(torch.from_numpy(np.array(each)) for each in results)

    def _opened(self, inputs: Sequence[Tensor]) -> Any:
        import onnxruntime

        values = {
            str(value.name): value
            for node in self._model.graph
            for value in (*node.inputs, *node.outputs)
            if value is not None
        }
        values |= {str(value.name): value for value in self._model.graph.inputs}
        graph = onnx.helper.make_graph(
            [ir.to_proto(self._node)],
            "node",
            [
                onnx.helper.make_tensor_value_info(name, _element(values.get(name), tensor), None)
                for name, tensor in zip(self.names, inputs, strict=True)
            ],
            [onnx.helper.make_empty_tensor_value_info(name) for name in self._outputs],
        )
        opsets = [onnx.helper.make_opsetid(*each) for each in self._model.graph.opset_imports.items()]
        alone = onnx.helper.make_model(
            graph, opset_imports=opsets, ir_version=min(self._model.ir_version or _IR_VERSION, _IR_VERSION)
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            return onnxruntime.InferenceSession(
                alone.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # as above
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ModelError:
        return ModelError(
            f"operator {self._node.op_type} (node '{self._node.name}') cannot be run by itself: "
            f"{str(error).splitlines()[0]}",
            hint="quantize.effort = fast does not need it",
        )


class _Estimated(torch.autograd.Function):
    """Runs an `OnnxNode`; estimates the gradients of its inputs."""

    @staticmethod
    def forward(ctx: Any, node: OnnxNode, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = node.run([value.detach() for value in inputs])
        ctx.mark_non_differentiable(*(value for value in outputs if not value.is_floating_point()))
        ctx.shapes = [(value.shape, value.dtype) for value in inputs]
        ctx.lengths = [_length(value) for value in inputs], [_length(value) for value in outputs]
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        read, given = ctx.lengths
        pairs = zip(gradients, given, strict=True)
        effect = sum(_length(each) * size for each, size in pairs if each is not None)
        estimates: list[Tensor | None] = []
        for place, (shape, dtype) in enumerate(ctx.shapes):
            if not ctx.needs_input_grad[place + 1] or read[place] == 0:
                estimates.append(None)
                continue
            generator = torch.Generator().manual_seed(place)
            signs = torch.randint(0, 2, shape, generator=generator).to(dtype) * 2 - 1
            count = max(signs.numel(), 1)
            estimates.append(signs * (effect / read[place] / count**0.5))
        return None, *estimates


def _length(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.float())) if values.is_floating_point() else 0.0


def _element(value: ir.Value | None, tensor: Tensor) -> int:
    """The ONNX element type of a tensor: as the graph has it where that is known."""
    if value is not None and value.dtype is not None:
        return int(value.dtype)
    kind = np.dtype(np.float32) if tensor.is_floating_point() else tensor.numpy().dtype
    return int(ir.DataType.from_numpy(kind))


def _array(value: Tensor, kind: str) -> np.ndarray[Any, Any]:
    """A tensor as the runtime takes it; `kind` is as in "tensor(float)"."""
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    array = np.ascontiguousarray(
        (value.detach().float() if value.is_floating_point() else value.detach()).numpy()
    )
    return array.astype(types[kind], copy=False) if kind in types else array
