"""Time per layer in ONNX Runtime, from the profile of a separate session."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from edgeship.targets.runner.backends.onnxruntime import OnnxRuntimeSession
from edgeship.targets.runner.timing import quick_mean

RENAMED = re.compile(r"(_nchwc|_token_\d+)+$")  # suffixes of fusions and memory layouts


def profile(session: OnnxRuntimeSession, nodes: Iterable[Any], layers: Collection[str]) -> dict[str, float]:
    """Return layer -> milliseconds; fused layers have none.

    Args:
        session: A session with profiling on; its profile is ended.
        nodes: The nodes of the ONNX graph.
        layers: Names of the layers.
    """
    took_ms: defaultdict[str, list[float]] = defaultdict(list)
    hosts = _hosts(nodes, layers)
    for name, runs in session.kernels().items():
        host = hosts.get(RENAMED.sub("", name))
        if host is not None:
            took_ms[host] += [run["dur"] / 1000 for run in runs]
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
