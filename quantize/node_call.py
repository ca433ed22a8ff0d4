"""Inputs and attributes of one ONNX node, read with their defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir
from torch import Tensor


class UnsupportedAttributeError(Exception):
    """An attribute or input of a node for which there is no PyTorch counterpart here."""


class Call:
    """Inputs and attributes of a node.

    Args:
        node: The node.
        inputs: Its inputs in order, None where one is absent.
        literal: The first axis is no batch, or the batch is the one of the graph: shapes and axes are
            taken as they are written. Otherwise the first axis holds the images, however many there are.
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
        """An input, or None where it is absent."""
        return self._inputs[index] if index < len(self._inputs) else None

    def all(self) -> list[Tensor]:
        """The inputs that are there."""
        return [value for value in self._inputs if value is not None]

    def ints(self, name: str, default: list[int]) -> list[int]:
        """An attribute of integers."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else [int(v) for v in attribute.as_ints()]

    def integer(self, name: str, default: int) -> int:
        """An attribute of one integer."""
        return int(self.node.attributes.get_int(name, default) or 0)

    def number(self, name: str, default: float) -> float:
        """An attribute of one float."""
        value = self.node.attributes.get_float(name, default)
        return default if value is None else float(value)

    def text(self, name: str, default: str) -> str:
        """An attribute of text."""
        return self.node.attributes.get_string(name, default) or default

    def constant(self, index: int) -> list[int]:
        """The integers of an input: of shapes, axes and pads."""
        return [int(v) for v in self[index].flatten().tolist()]

    def is_constant(self, index: int) -> bool:
        """Whether an input is an initializer."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return value is not None and value.const_value is not None

    def axes(self, index: int = 1) -> list[int]:
        """Axes by input or attribute, counted from the front; none given: an empty list."""
        given = self.constant(index) if self.get(index) is not None else self.ints("axes", [])
        return [axis % self[0].ndim for axis in given]


Operation: TypeAlias = Callable[[Call], "Tensor | tuple[Tensor, ...]"]
