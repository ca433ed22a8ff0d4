"""A graph on its way to INT8."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from quantize import qdq
from quantize.placement import Placement
from quantize.statistics import Statistics
from toolkit.core.quant import FloatArray, QParams


@dataclass(slots=True)
class Quantized:
    """A graph that is being quantized.

    Attributes:
        exact: The float graph with the channel scales of `model`.
        model: The graph whose weights are quantized: `exact`, or with learned weights.
        statistics: Statistics of that graph.
        placement: What is quantized.
        activations: Tensor name -> parameters.
        weights: Initializer name -> parameters.
        biases: Node name -> correction.
        warnings: What the reader of the report must know.
    """

    exact: ir.Model
    model: ir.Model
    statistics: Statistics
    placement: Placement
    activations: dict[str, QParams]
    weights: dict[str, QParams]
    biases: dict[str, FloatArray]
    warnings: list[str]

    def graph(self, *, store_integers: bool = False) -> ir.Model:
        """The graph with its Q/DQ pairs."""
        return qdq.insert(
            self.model, self.activations, self.weights, self.biases, store_integers=store_integers
        )
