"""Access to the inputs and attributes of an ONNX node, with defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir
from torch import Tensor


class UnsupportedAttributeError(Exception):
    """Raised for an attribute or input of a node without a PyTorch implementation."""


class Call:
    """Inputs and attributes of a node.

    Args:
        node: The node.
        inputs: Its inputs in order, None where one is absent.
        literal: Use shapes and axes of the graph unchanged: the first axis is no batch, or has the graph's
            batch size. Otherwise the first axis is a batch of any size.
    """

    def __init__(self, node: ir.Node, inputs: list[Tensor | None], *, literal: bool = True) -> None:
        self.node = node
        self.literal = literal
        self._inputs = inputs

    def __getitem__(self, index: int) -> Tensor:
        value = self.get(index)
        assert value is not None, f"{self.node.name}: input {index} is absent"
        return value

    def get(self, index: int) -> Tensor | None:
        """Return an input, or None if absent."""
        return self._inputs[index] if index < len(self._inputs) else None

    def all(self) -> list[Tensor]:
        """Return the inputs that are present."""
        return [value for value in self._inputs if value is not None]

    def ints(self, name: str, default: list[int]) -> list[int]:
        """Return an attribute of integers."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else [int(v) for v in attribute.as_ints()]

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        return int(self.node.attributes.get_int(name, default) or 0)

    def number(self, name: str, default: float) -> float:
        """Return a float attribute."""
        value = self.node.attributes.get_float(name, default)
        return default if value is None else float(value)

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        return self.node.attributes.get_string(name, default) or default

    def constant(self, index: int) -> list[int]:
        """Return the integers of an input such as shapes, axes and pads."""
        return [int(v) for v in self[index].flatten().tolist()]

    def is_constant(self, index: int) -> bool:
        """Return True if an input is an initializer."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return value is not None and value.const_value is not None

    def axes(self, index: int = 1) -> list[int]:
        """Return the nonnegative axes from an input or attribute; empty if absent."""
        axes = self.constant(index) if self.get(index) is not None else self.ints("axes", [])
        return [axis % self[0].ndim for axis in axes]


Operation: TypeAlias = Callable[[Call], "Tensor | tuple[Tensor, ...]"]
