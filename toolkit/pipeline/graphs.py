"""Names of the graphs of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def graph_names(graphs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the float graphs of graphs.json: float, and pruned if anything was pruned."""
    return tuple(name for name in ("float", "pruned") if name in graphs)


def quantized_name(target: str, *, pruned: bool) -> str:
    """Return the name of a quantized graph, without the ending."""
    return f"{target}-pruned" if pruned else target
