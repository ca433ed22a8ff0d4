"""Run nodes without a PyTorch implementation in ONNX Runtime, with estimated gradients.

The Jacobian of such a node is unknown, but clip points of earlier tensors require only the magnitude of the
effect of an error on the logits. The gradient of an input is therefore estimated as random signs with the
relative magnitude of the output's gradient: earlier errors are weighted by the mean squared error at the
node's inputs, as if the section of the network before the node ended there.

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

_IR_VERSION = 10  # maximum that the oldest supported ONNX Runtime loads


def read_names(node: ir.Node) -> list[str]:
    """Return the tensors that a node reads, those in subgraphs (If, Loop, Scan) included."""
    names = [str(value.name) for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            names += _outer_names(attribute.as_graph())
    return list(dict.fromkeys(names))


def _outer_names(graph: ir.Graph) -> list[str]:
    """Return the tensors of the outer graph that a subgraph reads."""
    inner = {str(value.name) for value in graph.inputs} | set(graph.initializers)
    inner |= {str(value.name) for node in graph for value in node.outputs}
    names = [name for node in graph for name in read_names(node)]
    names += [str(value.name) for value in graph.outputs]
    return [name for name in names if name not in inner]


class OnnxNode:
    """Thread-safe ONNX Runtime session for a single node.

    Args:
        node: The node.
        model: The graph of the node.
    """

    def __init__(self, node: ir.Node, model: ir.Model) -> None:
        self.names = read_names(node)
        self._node, self._model = node, model
        self._session: Any = None
        self._lock = threading.Lock()
        self._outputs = [str(value.name) for value in node.outputs if value.name]

    def __call__(self, inputs: Sequence[Tensor], *, estimate: bool = True) -> tuple[Tensor, ...]:
        """Compute the outputs of the node.

        Args:
            inputs: Values of the tensors `names`, in their order.
            estimate: Estimate gradients of the outputs; else they have none.

        Raises:
            ModelError: ONNX Runtime cannot run the node.
        """
        if estimate and torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
            return tuple(_Estimated.apply(self, *inputs))  # type: ignore[no-untyped-call]
        return self.run(inputs)

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the outputs without gradients."""
        with self._lock:
            if self._session is None:
                self._session = self._create_session(inputs)
        types = {each.name: each.type for each in self._session.get_inputs()}
        feeds = {name: _array(value, types[name]) for name, value in zip(self.names, inputs, strict=True)}
        try:
            results = self._session.run(self._outputs, feeds)
        except Exception as error:  # ONNX Runtime raises its own exception types
            raise self._error(error) from error
        if not all(isinstance(each, np.ndarray) and each.dtype.kind in "biuf" for each in results):
            raise self._error(TypeError("its outputs are not numeric tensors"))
        return tuple(torch.from_numpy(np.array(each)) for each in results)

    def _create_session(self, inputs: Sequence[Tensor]) -> Any:
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
        single = onnx.helper.make_model(
            graph, opset_imports=opsets, ir_version=min(self._model.ir_version or _IR_VERSION, _IR_VERSION)
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            return onnxruntime.InferenceSession(
                single.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # as above
            raise self._error(error) from error

    def _error(self, error: Exception) -> ModelError:
        return ModelError(
            f"operator {self._node.op_type} (node '{self._node.name}') cannot run alone in ONNX Runtime: "
            f"{str(error).splitlines()[0]}",
            hint="set quantize.effort=fast",
        )


class _Estimated(torch.autograd.Function):
    """Autograd function of an `OnnxNode` with estimated input gradients."""

    @staticmethod
    def forward(ctx: Any, node: OnnxNode, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = node.run([value.detach() for value in inputs])
        ctx.mark_non_differentiable(*(value for value in outputs if not value.is_floating_point()))
        ctx.shapes = [(value.shape, value.dtype) for value in inputs]
        ctx.norms = [_norm(value) for value in inputs], [_norm(value) for value in outputs]
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        input_norms, output_norms = ctx.norms
        pairs = zip(gradients, output_norms, strict=True)
        effect = sum(_norm(each) * size for each, size in pairs if each is not None)
        estimates: list[Tensor | None] = []
        for place, (shape, dtype) in enumerate(ctx.shapes):
            if not ctx.needs_input_grad[place + 1] or input_norms[place] == 0:
                estimates.append(None)
                continue
            generator = torch.Generator().manual_seed(place)
            signs = torch.randint(0, 2, shape, generator=generator).to(dtype) * 2 - 1
            count = max(signs.numel(), 1)
            estimates.append(signs * (effect / input_norms[place] / count**0.5))
        return None, *estimates


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.float())) if values.is_floating_point() else 0.0


def _element(value: ir.Value | None, tensor: Tensor) -> int:
    """Return the ONNX element type of a tensor, from the graph if typed there."""
    if value is not None and value.dtype is not None:
        return int(value.dtype)
    kind = np.dtype(np.float32) if tensor.is_floating_point() else tensor.numpy().dtype
    return int(ir.DataType.from_numpy(kind))


def _array(value: Tensor, kind: str) -> np.ndarray[Any, Any]:
    """Convert a tensor to an array of an ONNX Runtime type such as "tensor(float)"."""
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    array = np.ascontiguousarray(
        (value.detach().float() if value.is_floating_point() else value.detach()).numpy()
    )
    return array.astype(types[kind], copy=False) if kind in types else array
