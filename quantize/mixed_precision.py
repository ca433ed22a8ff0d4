"""Mixed precision: a limit is met by leaving the cheapest layers in float.

Layers are taken by what they gain (KL divergence from the float network, on calibration images) for what
they cost on the target, measured anew after every choice. The limit itself is judged on whole graphs and on
other images: by steps that double, then halve, so that few graphs are judged; what turns out not to be
needed goes back to INT8.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edgeship.quantization.options import QuantizeOptions
from edgeship.quantization.placement import is_weighted
from edgeship.quantization.quantized_model import Quantized
from edgeship.quantization.sensitivity import divergences
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.graph import io

GIVEN_BACK = 4  # layers that are tried in INT8 again, at the end
LEAST_GAIN = 1e-9  # nats; a layer that seems to gain nothing is taken last, the cheapest first


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a graph reached.

    Attributes:
        value: The drop in percentage points, or the agreement as a fraction.
        met: Whether that keeps the limit.
    """

    value: float
    met: bool


@dataclass(frozen=True, slots=True)
class AccuracyConstraint:
    """A limit, and what it costs to meet it.

    Attributes:
        name: Of the limit, as in a recipe.
        limit: Its value.
        unit: Of the costs: "ms", or what stands for it.
        costs: Tells, from the INT8 graph, what each layer costs more in float (> 0).
        judge: Tells what a graph reaches.
    """

    name: str
    limit: float
    unit: str
    costs: Callable[[Path], Mapping[str, float]]
    judge: Callable[[Path], Verdict]


def search_float_layers(
    found: Quantized,
    goal: AccuracyConstraint,
    probe: FloatArray,
    options: QuantizeOptions,
    correct: Callable[[Quantized], Quantized],
) -> tuple[Quantized, dict[str, Any]]:
    """Leave as little in float as meets a limit.

    Args:
        found: The quantized graph.
        goal: What must be met.
        probe: Calibration images (N, C, H, W) that rank the layers.
        options: Who measures the layers.
        correct: Makes biases fit a graph of which other layers are quantized.

    Returns:
        The graph, unchanged if even with every layer in float the limit is missed; and what was given up:
        {limit, value, met, int8, reached, layers: [{name, cost}], cost, unit, judged}.
    """
    with tempfile.TemporaryDirectory() as folder:
        search = _Search(found, goal, correct, Path(folder) / "graph.onnx")
        int8 = search.judge(())
        layers: tuple[str, ...] = ()
        missed = ""
        if not int8.met:
            try:
                layers = search.layers(probe, options)
                most = search.judge(tuple(quantized_layers(found)))
                missed = f"even with every layer in float, which reaches {most.value:.6g}"
            except ModelError as error:
                missed = f"and no layer can be tried in float: {error}"
        reached = search.judge(layers)
    found = search.graphs(layers)
    cost = sum(search.costs[name] for name in layers)
    said = f"{goal.name} = {goal.limit:g}"
    if not reached.met:
        found.warnings.append(f"{said} is missed by {reached.value:.6g} in INT8, {missed}")
    elif layers:
        found.warnings.append(
            f"{said}: {', '.join(layers)} left in float for {cost:.3g} {goal.unit}; "
            f"{reached.value:.6g} instead of {int8.value:.6g}"
        )
    return found, {
        "limit": goal.name,
        "value": goal.limit,
        "met": reached.met,
        "int8": int8.value,
        "reached": reached.value,
        "layers": [{"name": name, "cost": search.costs[name]} for name in layers],
        "cost": cost,
        "unit": goal.unit,
        "judged": len(search.verdicts),
    }


class _Search:
    """Graphs that were tried, each judged once."""

    def __init__(
        self,
        found: Quantized,
        goal: AccuracyConstraint,
        correct: Callable[[Quantized], Quantized],
        file: Path,
    ) -> None:
        self._found, self._goal, self._correct, self._file = found, goal, correct, file
        self.verdicts: dict[frozenset[str], Verdict] = {}
        self.costs: Mapping[str, float] = {}

    def graphs(self, layers: tuple[str, ...]) -> Quantized:
        """The graph with these layers in float."""
        return self._correct(self._found.leaving(layers)) if layers else self._found

    def judge(self, layers: tuple[str, ...]) -> Verdict:
        """What the graph with these layers in float reaches."""
        key = frozenset(layers)
        if key not in self.verdicts:
            report_progress(f"trying {len(layers)} layers in float", len(self.verdicts), None)
            io.save(self.graphs(layers).graph(), self._file)
            self.verdicts[key] = self._goal.judge(self._file)
        return self.verdicts[key]

    def layers(self, probe: FloatArray, options: QuantizeOptions) -> tuple[str, ...]:
        """The layers to leave in float; none where even all of them do not help."""
        if not self.judge(tuple(quantized_layers(self._found))).met:
            return ()
        io.save(self._found.graph(), self._file)
        self.costs = self._goal.costs(self._file)
        order = by_gain(self._found, self.costs, probe, options)
        taken: list[str] = []
        missed, size = 0, 1  # the largest number that misses the limit, the next to try
        while not taken or not self.judge(tuple(taken)).met:
            missed = len(taken)
            taken += islice(order, size - missed)
            size *= 2
        met = len(taken)
        while met - missed > 1:
            middle = (met + missed) // 2
            met, missed = (middle, missed) if self.judge(tuple(taken[:middle])).met else (met, middle)
        return self._needed(taken[:met])

    def _needed(self, layers: list[str]) -> tuple[str, ...]:
        """The layers without those that later ones made superfluous; only the dearest are tried."""
        kept = layers
        for name in sorted(layers[:-1], key=lambda name: -self.costs[name])[:GIVEN_BACK]:
            rest = [other for other in kept if other != name]
            if self.judge(tuple(rest)).met:
                kept = rest
        return tuple(kept)


def by_gain(
    found: Quantized, costs: Mapping[str, float], probe: FloatArray, options: QuantizeOptions
) -> Iterator[str]:
    """Layers in the order in which they should go to float: most gain for its cost first.

    All are measured again after every choice: a tensor that two layers read is only freed by both.

    Args:
        found: A quantized graph.
        costs: Layer -> what it costs in float, > 0.
        probe: Images (N, C, H, W).
        options: Who measures the layers.
    """
    while layers := quantized_layers(found):
        whole, left = divergences(found, layers, probe, options)
        best = max(layers, key=lambda name: max(whole - left[name], LEAST_GAIN) / costs[name])
        yield best
        found = found.leaving({best})


def quantized_layers(found: Quantized) -> list[str]:
    """Weighted layers that are not in float, in the order of the graph."""
    names = (str(node.name) for node in found.exact.graph if is_weighted(node))
    return [name for name in names if name not in found.placement.float_layers]
