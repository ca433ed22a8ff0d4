"""Who makes and who reads each tensor of an ONNX graph."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core.errors import ModelError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
COMMUTING = ("MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity")
AVERAGING = ("AveragePool", "GlobalAveragePool")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Index:
    """A read-only view of a graph; constants are initializers and Constant nodes.

    Attributes:
        model: The ONNX model.
        nodes: Its nodes, in order.
        opset: Version of the standard operators.
    """

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model = model
        self.nodes = list(model.graph.node)
        self.opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)
        self._producer = {name: node for node in self.nodes for name in node.output}
        self._consumers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._consumers[name].append(node)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._tensors[node.output[0]] = attribute.t
        self._to_array = numpy_helper.to_array
        self.outputs = {item.name for item in model.graph.output}

    def producer(self, tensor: str) -> Any | None:
        """The node that makes a tensor; None for inputs and initializers."""
        return self._producer.get(tensor)

    def consumers(self, tensor: str) -> list[Any]:
        """The nodes that read a tensor."""
        return self._consumers.get(tensor, [])

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor has a value in the file."""
        return tensor in self._tensors

    def constant(self, tensor: str) -> npt.NDArray[Any] | None:
        """Value of a constant; None where it is computed."""
        return self._to_array(self._tensors[tensor]) if tensor in self._tensors else None

    def element_type(self, tensor: str) -> str:
        """Element type of a constant ("int8"); empty where it is computed."""
        value = self.constant(tensor)
        return "" if value is None else str(value.dtype)

    def source(self, dequantize: Any) -> str:
        """The tensor that a DequantizeLinear stands for: what its QuantizeLinear reads, or its own input."""
        before = self.producer(dequantize.input[0])
        return str(
            before.input[0] if before is not None and before.op_type == QUANTIZE else dequantize.input[0]
        )

    def weights(self, tensor: str) -> bool:
        """Whether a tensor is a constant, or a constant behind Q and DQ."""
        node = self.producer(tensor)
        if node is not None and node.op_type in (QUANTIZE, DEQUANTIZE):
            return self.weights(node.input[0])
        return self.is_constant(tensor)

    def never_negative(self, tensor: str) -> bool:
        """Whether a tensor comes from a ReLU through operators that keep the sign."""
        node = self.producer(tensor)
        while node is not None and node.op_type in (*COMMUTING, *AVERAGING, QUANTIZE, DEQUANTIZE):
            node = self.producer(node.input[0])
        return node is not None and node.op_type == "Relu"

    def dequantized(self, tensor: str) -> bool:
        """Whether a tensor comes straight out of a DequantizeLinear."""
        node = self.producer(tensor)
        return node is not None and node.op_type == DEQUANTIZE

    def quantized(self, tensor: str) -> bool:
        """Whether a tensor holds dequantized integers: DQ moves forward through what only moves values."""
        node = self.producer(tensor)
        while node is not None and node.op_type in COMMUTING:
            node = self.producer(node.input[0])
        return node is not None and node.op_type == DEQUANTIZE


def load(path: Path) -> Any:
    """Read an ONNX file.

    Raises:
        ModelError: It cannot be read, or is no valid ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)  # so that every node below has the inputs it must have
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"{path} is not an ONNX model", hint="it was cut off or is something else"
        ) from error
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{path} is not a valid ONNX model: {reason}", hint="export it again; it may have been cut off"
        ) from error
    for tensor in model.graph.initializer:
        try:
            onnx.numpy_helper.to_array(tensor)
        except Exception as error:  # numpy and onnx raise many kinds for sizes that contradict the data
            raise ModelError(
                f"{path}: weight '{tensor.name}' is damaged: {str(error).splitlines()[0]}",
                hint="export it again; it may have been cut off",
            ) from error
    return model


def takes_pixels(model: Any) -> bool:
    """Whether images go in as uint8."""
    from onnx import TensorProto

    return bool(model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8)


def attribute(node: Any, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def has_attribute(node: Any, name: str) -> bool:
    """Whether a node states an attribute."""
    return any(item.name == name for item in node.attribute)


def label(node: Any) -> str:
    """What a person finds the node by: its name, else that of its first output."""
    return str(node.name or node.output[0])


def fresh_name(model: Any, wanted: str) -> str:
    """Return a name that no tensor of a graph has: the one that is asked for, or it with a number behind."""
    graph = model.graph
    taken = {name for node in graph.node for name in node.output}
    taken |= {item.name for item in (*graph.initializer, *graph.input)}
    numbered = (f"{wanted}_{number}" for number in count(1))
    return next(name for name in chain((wanted,), numbered) if name not in taken)


def finite_positive(values: npt.NDArray[Any]) -> bool:
    """Whether every value can be a scale."""
    return bool(values.size and np.isfinite(values).all() and (values > 0).all())
