"""Mixed precision: meet an accuracy constraint with the cheapest layers in float.

Layers are ranked by gain (reduction of the KL divergence from the float network, on calibration images) per
cost on the target, measured again after every choice. The constraint is evaluated on whole graphs and other
images: the number of float layers doubles until it is met, then bisection; finally, superfluous layers return
to INT8.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edgeship.quantization.placement import is_weighted
from edgeship.quantization.quantized_model import Quantized
from edgeship.quantization.sensitivity import divergences
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.parallel import Workers
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.graph import io

RETURNED_TO_INT8 = 4  # float layers to try in INT8 again, at the end
LEAST_GAIN = 1e-9  # nats; layers without a gain come last, the cheapest first


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accuracy of a graph against the constraint.

    Attributes:
        value: The drop in percentage points, or the agreement as a fraction.
        met: True if the value meets the constraint.
    """

    value: float
    met: bool


@dataclass(frozen=True, slots=True)
class AccuracyConstraint:
    """Accuracy limit, its evaluation, and the cost of float layers.

    Attributes:
        name: Recipe key of the limit.
        limit: Its value.
        unit: Unit of the costs: "ms", or a substitute.
        costs: Function from the INT8 graph to the extra cost of each layer in float (> 0).
        judge: Function from a graph to its accuracy.
    """

    name: str
    limit: float
    unit: str
    costs: Callable[[Path], Mapping[str, float]]
    judge: Callable[[Path], Verdict]


def search_float_layers(
    quantized: Quantized,
    goal: AccuracyConstraint,
    probe: FloatArray,
    workers: Workers,
    correct: Callable[[Quantized], Quantized],
) -> tuple[Quantized, dict[str, Any]]:
    """Find the cheapest float layers that meet an accuracy constraint.

    Args:
        quantized: The quantized graph.
        goal: The constraint.
        probe: Calibration images (N, C, H, W) for the ranking of layers.
        workers: Workers of the sensitivity analysis.
        correct: Function that fits weights and biases again after layers became float.

    Returns:
        The graph, unchanged if the limit is missed with every layer in float; and a summary:
        {limit, value, met, int8, reached, layers: [{name, cost}], cost, unit, judged}.
    """
    with tempfile.TemporaryDirectory() as folder:
        search = _Search(quantized, goal, correct, Path(folder) / "graph.onnx")
        int8 = search.evaluate(())
        layers: tuple[str, ...] = ()
        missed = ""
        if not int8.met:
            try:
                layers = search.layers(probe, workers)
                all_float = search.evaluate(tuple(quantized_layers(quantized)))
                missed = f"even with every layer in float, which reaches {all_float.value:.6g}"
            except ModelError as error:
                missed = f"and no layer can be tried in float: {error}"
        reached = search.evaluate(layers)
    result = search.graph(layers)
    cost = sum(search.costs[name] for name in layers)
    limit = f"{goal.name} = {goal.limit:g}"
    if not reached.met:
        result.warnings.append(f"{limit} is missed by {reached.value:.6g} in INT8, {missed}")
    elif layers:
        result.warnings.append(
            f"{limit}: {', '.join(layers)} left in float for {cost:.3g} {goal.unit}; "
            f"{reached.value:.6g} instead of {int8.value:.6g}"
        )
    return result, {
        "limit": goal.name,
        "value": goal.limit,
        "met": reached.met,
        "int8": int8.value,
        "reached": reached.value,
        "layers": [{"name": name, "cost": search.costs[name]} for name in layers],
        "cost": cost,
        "unit": goal.unit,
        "judged": len(search.evaluated),
    }


class _Search:
    """Search over float layers, with memoized evaluations."""

    def __init__(
        self,
        quantized: Quantized,
        goal: AccuracyConstraint,
        correct: Callable[[Quantized], Quantized],
        file: Path,
    ) -> None:
        self._quantized, self._goal, self._correct, self._file = quantized, goal, correct, file
        self.evaluated: dict[frozenset[str], Verdict] = {}
        self.costs: Mapping[str, float] = {}

    def graph(self, layers: tuple[str, ...]) -> Quantized:
        """Return the graph with these layers in float."""
        return self._correct(self._quantized.with_float_layers(layers)) if layers else self._quantized

    def evaluate(self, layers: tuple[str, ...]) -> Verdict:
        """Evaluate the constraint on the graph with these layers in float."""
        key = frozenset(layers)
        if key not in self.evaluated:
            report_progress(f"trying {len(layers)} layers in float", len(self.evaluated), None)
            io.save(self.graph(layers).graph(), self._file)
            self.evaluated[key] = self._goal.judge(self._file)
        return self.evaluated[key]

    def layers(self, probe: FloatArray, workers: Workers) -> tuple[str, ...]:
        """Return the layers to leave in float; none if all of them miss the limit."""
        if not self.evaluate(tuple(quantized_layers(self._quantized))).met:
            return ()
        io.save(self._quantized.graph(), self._file)
        self.costs = self._goal.costs(self._file)
        order = by_gain(self._quantized, self.costs, probe, workers)
        chosen: list[str] = []
        missed, size = 0, 1  # the largest number that misses the limit, the next to try
        while not chosen or not self.evaluate(tuple(chosen)).met:
            missed = len(chosen)
            chosen += islice(order, size - missed)
            size *= 2
        met = len(chosen)
        while met - missed > 1:
            middle = (met + missed) // 2
            met, missed = (middle, missed) if self.evaluate(tuple(chosen[:middle])).met else (met, middle)
        return self._necessary(chosen[:met])

    def _necessary(self, layers: list[str]) -> tuple[str, ...]:
        """Drop layers that later choices made superfluous; try only the most expensive ones."""
        remaining = layers
        for name in sorted(layers[:-1], key=lambda name: -self.costs[name])[:RETURNED_TO_INT8]:
            rest = [other for other in remaining if other != name]
            if self.evaluate(tuple(rest)).met:
                remaining = rest
        return tuple(remaining)


def by_gain(
    quantized: Quantized, costs: Mapping[str, float], probe: FloatArray, workers: Workers
) -> Iterator[str]:
    """Yield layers by descending gain per cost in float.

    All layers are measured again after every choice: two layers that share an input free it only together.

    Args:
        quantized: A quantized graph.
        costs: Layer -> extra cost in float, > 0.
        probe: Images (N, C, H, W).
        workers: Workers of the sensitivity analysis.
    """
    while layers := quantized_layers(quantized):
        whole, left = divergences(quantized, layers, probe, workers)
        best = max(layers, key=lambda name: max(whole - left[name], LEAST_GAIN) / costs[name])
        yield best
        quantized = quantized.with_float_layers({best})


def quantized_layers(quantized: Quantized) -> list[str]:
    """Return the quantized weighted layers in graph order."""
    names = (str(node.name) for node in quantized.exact.graph if is_weighted(node))
    return [name for name in names if name not in quantized.placement.float_layers]
