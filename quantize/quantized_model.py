"""A graph on its way to INT8."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgeship.quantization import qdq
from edgeship.quantization.placement import Placement, duplicate_shared_weights, place
from edgeship.quantization.statistics import Statistics
from edgeship.quantization.torch_executor import DEFAULT, Execution
from edgeship.toolkit.core.quant import FloatArray, QParams, QuantScheme
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.dialect import drop_identities


@dataclass(slots=True)
class Quantized:
    """A graph that is being quantized.

    Attributes:
        source: The float graph with the channel scales of `model`.
        scheme: What the target wants.
        exact: `source`, in which layers that stay in float have weights of their own.
        model: The graph whose weights are quantized: `exact`, or with fitted weights, on their grid.
        statistics: Statistics of that graph.
        placement: What is quantized.
        activations: Tensor name -> parameters.
        weights: Initializer name -> parameters.
        biases: Node name -> correction.
        warnings: What the reader of the report must know.
        learned: Whether scales and weights were learned together: then nothing of it is fitted anew.
        execution: How PyTorch runs `exact` and `model`.
        observer: Rule that chose the ranges.
        weight_rounding: gptq or nearest.
    """

    source: ir.Model
    scheme: QuantScheme
    exact: ir.Model
    model: ir.Model
    statistics: Statistics
    placement: Placement
    activations: dict[str, QParams]
    weights: dict[str, QParams]
    biases: dict[str, FloatArray]
    warnings: list[str]
    learned: bool = False
    execution: Execution = DEFAULT
    observer: str = "mse"
    weight_rounding: str = "nearest"

    def graph(self) -> ir.Model:
        """The graph with its Q/DQ pairs."""
        store_integers = self.scheme.store_integers
        made = qdq.insert(
            self.model, self.activations, self.weights, self.biases, store_integers=store_integers
        )
        drop_identities(made)  # of `placement.fork`
        return made

    def placed(self, layers: Collection[str]) -> Placement:
        """What would be quantized with more layers in float."""
        exact = self.placement.float_layers.union(layers)
        kept = self.placement.float_tensors
        seen = self.statistics
        return place(self.source, self.scheme, exact, seen.largest, seen.lowest, kept)

    def value(self, tensor: str) -> ir.Value:
        """A tensor of the float graph, by name."""
        made = (value for node in self.exact.graph for value in node.outputs)
        return next(value for value in (*self.exact.graph.inputs, *made) if value.name == tensor)

    def without(self, tensors: Collection[str]) -> Quantized:
        """The same with some tensors in float."""
        kept = {name: q for name, q in self.activations.items() if name not in tensors}
        placement = replace(
            self.placement,
            activations={name: self.placement.activations[name] for name in kept},
            float_tensors=self.placement.float_tensors.union(tensors),
        )
        return replace(self, placement=placement, activations=kept)

    def leaving(self, layers: Collection[str]) -> Quantized:
        """The same with more layers in float; what the others use stays as it is."""
        placement = self.placed(layers)
        exact = model = duplicate_shared_weights(self.source, placement)
        if self.model is not self.exact:  # fitted weights
            model = io.copy(exact)
            for name in placement.weights:
                fitted = io.constant(self.model.graph.initializers[name])
                io.set_constant(model.graph.initializers[name], fitted)
        return replace(
            self,
            exact=exact,
            model=model,
            placement=placement,
            activations={name: self.activations[name] for name in placement.activations},
            weights={name: self.weights[name] for name in placement.weights},
            biases={name: shift for name, shift in self.biases.items() if name not in layers},
        )
