"""State of a graph during INT8 quantization."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgeship.quantization import qdq
from edgeship.quantization.placement import Placement, duplicate_shared_weights, place
from edgeship.quantization.statistics import Statistics
from edgeship.quantization.torch_executor import DEFAULT, Execution
from edgeship.toolkit.core.quant import FloatArray, QParams, QuantScheme
from edgeship.toolkit.graph import edit, io, shift
from edgeship.toolkit.graph.dialect import drop_identities


@dataclass(slots=True)
class Quantized:
    """Float graph with its placement, quantization parameters and corrections.

    Attributes:
        source: The float graph with the channel scales of `model`.
        scheme: Quantization scheme of the target.
        exact: `source` with separate copies of weights that float and quantized layers share.
        model: `exact`, or `exact` with GPTQ weights on their grid.
        statistics: Statistics of `source`.
        placement: Quantized tensors.
        activations: Tensor name -> parameters.
        weights: Initializer name -> parameters.
        biases: Node name -> correction.
        warnings: Warnings for the report.
        learned: Scales were learned: weights and biases are not fitted again.
        execution: Execution settings of `exact` and `model` in PyTorch.
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
        """Return the Q/DQ graph."""
        store_integers = self.scheme.store_integers
        graph = qdq.insert(
            self.model, self.activations, self.weights, self.biases, store_integers=store_integers
        )
        shift.absorb(graph)
        drop_identities(graph)  # from `placement.add_float_bypass`
        return graph

    def place_with_float_layers(self, layers: Collection[str]) -> Placement:
        """Return the placement with more layers in float."""
        float_layers = self.placement.float_layers.union(layers)
        largest, lowest = self.statistics.largest, self.statistics.lowest
        float_tensors = self.placement.float_tensors
        return place(self.source, self.scheme, float_layers, largest, lowest, float_tensors)

    def value(self, tensor: str) -> ir.Value:
        """Return a tensor of the float graph by name."""
        outputs = (value for node in self.exact.graph for value in node.outputs)
        return next(value for value in (*self.exact.graph.inputs, *outputs) if value.name == tensor)

    def with_float_tensors(self, tensors: Collection[str]) -> Quantized:
        """Return a copy with some tensors in float."""
        activations = {name: q for name, q in self.activations.items() if name not in tensors}
        placement = replace(
            self.placement,
            activations={name: self.placement.activations[name] for name in activations},
            float_tensors=self.placement.float_tensors.union(tensors),
        )
        return replace(self, placement=placement, activations=activations)

    def with_float_layers(self, layers: Collection[str]) -> Quantized:
        """Return a copy with more layers in float; parameters of the other layers do not change."""
        placement = self.place_with_float_layers(layers)
        exact = model = duplicate_shared_weights(self.source, placement)
        if self.model is not self.exact:  # GPTQ weights
            model = io.copy(exact)
            for name in placement.weights:
                fitted = edit.constant(self.model.graph.initializers[name])
                edit.set_constant(model.graph.initializers[name], fitted)
        return replace(
            self,
            exact=exact,
            model=model,
            placement=placement,
            activations={name: self.activations[name] for name in placement.activations},
            weights={name: self.weights[name] for name in placement.weights},
            biases={name: shift for name, shift in self.biases.items() if name not in layers},
        )
