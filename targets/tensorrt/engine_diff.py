"""Comparison of two engines of one network by their records: times by role and by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeship.targets.tensorrt.engine_analysis import Explanation, explain

SAME_NETWORK = 0.9  # share of layer names in common from which layers are compared one by one
SMALLEST_MS = 0.001
ROLES = {  # role -> its plural
    "Convolution": "convolutions",
    "Reformat": "reformats",
    "Pooling": "poolings",
    "FullyConnected": "fully connected layers",
    "Add": "Adds of their own",
    "NoOp": "empty layers",
    "Fused": "fused regions",
    "Other": "other layers",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One layer in both engines.

    Attributes:
        layer: Name of the ONNX node.
        first: Precision and time (ms) in the first engine.
        second: The same in the second.
    """

    layer: str
    first: tuple[str, float]
    second: tuple[str, float]

    @property
    def delta_ms(self) -> float:
        """Time of the first minus that of the second (ms)."""
        return self.first[1] - self.second[1]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two engines of one network.

    Attributes:
        names: Name of each engine: its file or folder.
        times_ms: Sum of layer times of each; None without a profile.
        by_role: Role -> time of each (ms), the largest difference first.
        layers: Layers whose times differ most, largest first; empty where the engines name them differently.
        verdict: One sentence.
    """

    names: tuple[str, str]
    times_ms: tuple[float | None, float | None]
    by_role: dict[str, tuple[float, float]]
    layers: tuple[Difference, ...]
    verdict: str


def compare(first: Path, second: Path, model: Path | None = None) -> Comparison:
    """Compare two engine records, named by file or folder; of several profiles, the first.

    Raises:
        DataError: A record cannot be read.
        ModelError: The ONNX file cannot be read.
    """
    return compared(
        explain(first, model=model), explain(second, model=model), (first.stem or str(first), second.stem)
    )


def compared(first: Explanation, second: Explanation, names: tuple[str, str]) -> Comparison:
    """Compare explanations in memory."""
    roles = {*first.time_by_role, *second.time_by_role}
    pairs = {role: (first.time_by_role.get(role, 0.0), second.time_by_role.get(role, 0.0)) for role in roles}
    by_role = dict(sorted(pairs.items(), key=lambda item: -abs(item[1][0] - item[1][1])))
    return Comparison(
        names=names,
        times_ms=(first.time_ms, second.time_ms),
        by_role=by_role,
        layers=_layers(first, second),
        verdict=_verdict(first, second, names, by_role),
    )


def _layers(first: Explanation, second: Explanation) -> tuple[Difference, ...]:
    """Only engines of one ONNX file name their layers alike: numbered names of two exports mean nothing."""
    one, two = _times(first), _times(second)
    common = [name for name in one if name in two]
    if len(common) < SAME_NETWORK * max(len(one), len(two), 1):
        return ()
    differences = [Difference(name, one[name], two[name]) for name in common]
    return tuple(sorted(differences, key=lambda item: -abs(item.delta_ms)))


def _times(explanation: Explanation) -> dict[str, tuple[str, float]]:
    timed = ((layer, layer.time_ms) for layer in explanation.layers)
    return {layer.name: (layer.precision, time_ms) for layer, time_ms in timed if time_ms is not None}


def _verdict(
    first: Explanation, second: Explanation, names: tuple[str, str], by_role: dict[str, tuple[float, float]]
) -> str:
    if not first.time_ms or not second.time_ms:
        counts = f"{_reformats(first)} reformats in {names[0]}, {_reformats(second)} in {names[1]}"
        return f"no times to compare; {counts}"
    ratio = first.time_ms / second.time_ms
    word, percent = ("slower", ratio - 1) if ratio >= 1 else ("faster", 1 - ratio)
    parts = [
        f"{ROLES.get(role, role)} {one - two:+.3f} ms"
        for role, (one, two) in by_role.items()
        if abs(one - two) >= SMALLEST_MS
    ]
    slower = first if ratio >= 1 else second
    why = (
        f" ({names[0] if slower is first else names[1]}: {slower.problems[0].message})"
        if slower.problems
        else ""
    )
    return (
        f"{names[0]} is {100 * percent:.0f} % {word} than {names[1]} ({first.time_ms:.3f} against "
        f"{second.time_ms:.3f} ms): {', '.join(parts) or 'no layer differs'}{why}"
    )


def _reformats(explanation: Explanation) -> str:
    return str(len(explanation.reformats)) if explanation.detailed else "unknown number of"
