"""Time per layer in ONNX Runtime, from the profile of a separate session."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgeship.targets._timing import quick_mean

PROFILED_RUNS = 30  # at most
PROFILED_S = 1.0  # and no new run after so many seconds
RENAMED = re.compile(r"(_nchwc|_token_\d+)+$")  # what fusions and memory layouts append to a name
SUFFIX = "_kernel_time"


def profile(session: Any, nodes: Iterable[Any], layers: Collection[str]) -> dict[str, float]:
    """Return layer -> milliseconds; fused layers have none.

    Args:
        session: An onnxruntime session with profiling on; its profile is ended.
        nodes: The nodes of the ONNX graph.
        layers: Names of the layers.
    """
    ran = _run(session)
    trace = Path(session.end_profiling())
    try:
        events = json.loads(trace.read_text(encoding="utf-8"))
    finally:
        trace.unlink(missing_ok=True)
    took_ms: defaultdict[str, list[float]] = defaultdict(list)
    hosts = _hosts(nodes, layers)
    for event in events if ran else ():
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(SUFFIX):
            host = hosts.get(RENAMED.sub("", name.removesuffix(SUFFIX)))
            if host is not None:
                took_ms[host].append(event["dur"] / 1000)
    return {name: quick_mean(each) for name, each in took_ms.items()}


def _hosts(nodes: Iterable[Any], layers: Collection[str]) -> dict[str, str]:
    """Return node -> layer of its time: itself, or the layer that it is fused with."""
    hosts: dict[str, str] = {}
    makers: dict[str, str] = {}
    for node in nodes:
        name = node.name or node.output[0]
        if name in layers:
            hosts[name] = name
        elif node.op_type in {"Relu", "Clip"} and node.input[0] in makers:
            hosts[name] = makers[node.input[0]]
        if name in hosts:
            makers[node.output[0]] = hosts[name]
    return hosts


def _run(session: Any) -> bool:
    """Run zeros; return False if height or width is dynamic."""
    entry = session.get_inputs()[0]
    if any(not isinstance(length, int) for length in entry.shape[1:]):
        return False
    lengths = [length if isinstance(length, int) else 1 for length in entry.shape]
    kind = np.uint8 if entry.type == "tensor(uint8)" else np.float32
    began = time.perf_counter()
    for _ in range(1 + PROFILED_RUNS):
        session.run(None, {entry.name: np.zeros(lengths, kind)})
        if time.perf_counter() - began > PROFILED_S:
            break
    return True
