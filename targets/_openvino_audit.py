"""Precision and time of layers in OpenVINO, from its runtime model, by ONNX node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeship.targets.runner.backends.openvino import OpenVINOSession
from edgeship.toolkit.core.results import HALVES, LayerAudit, Precision

PRECISIONS = {"u8": "int8", "i8": "int8", "f32": "fp32", "f16": "fp16", "bf16": "bf16"}
KINDS = {
    "Convolution": "Convolution",
    "FullyConnected": "FullyConnected",
    "MatMul": "FullyConnected",
    "Pooling": "Pooling",
    "AdaptivePooling": "Pooling",
    "Reduce": "Pooling",  # the global average pool
}
WEIGHTED = ("Convolution", "FullyConnected")


def audit(session: OpenVINOSession, model: Path, precision: Precision) -> tuple[LayerAudit, ...]:
    """Return the layers of a compiled model: convolutions, Adds, pools and fully connected layers.

    The runtime model has the precision of a layer's inputs. An INT8 convolution that writes floats, which the
    next layer quantizes again, gets a warning, and an Add fused into it does not count as INT8.

    Args:
        session: A session of a model compiled with PERF_COUNT.
        model: Its ONNX file.
        precision: Requested precision; a layer in another one has a warning, except in "fp32".
    """
    import onnx

    took_ms = session.times_ms()
    graph = onnx.load(str(model), load_external_data=False).graph
    names = {
        alias: node.name or node.output[0] for node in graph.node for alias in (node.output[0], node.name)
    }
    adds = {node.name or node.output[0] for node in graph.node if node.op_type == "Add"}
    layers: list[LayerAudit] = []
    for node in session.compiled.get_runtime_model().get_ordered_ops():
        facts = _texts(node.get_rt_info())
        originals = _onnx_names(facts, names)
        kind = KINDS.get(facts.get("layerType", ""))
        time_ms = took_ms.get(node.get_friendly_name())
        if kind is not None:
            layers.append(_layer(originals, kind, facts, precision, time_ms))
        for add in originals:
            if add in adds:
                layers.append(_add(add, kind, node, facts, precision, time_ms))
    return tuple(layers)


def _layer(
    originals: list[str], kind: str, facts: Mapping[str, str], wanted: Precision, time_ms: float | None
) -> LayerAudit:
    computes, writes = _precisions(facts)
    warning = ""
    if wanted in HALVES and kind in WEIGHTED and computes != wanted:
        warning = f"runs in {computes}"
    elif wanted == "int8" and kind == "Convolution":
        if computes != "int8":
            warning = f"runs in {computes}: an input without Q/DQ, or no INT8 kernel for its shape"
        elif writes != "int8":
            warning = (
                f"computes in int8 but writes {writes}: nothing quantizes its output where it could fuse"
            )
    name = originals[0] if originals else facts.get("originalLayersNames", kind)
    return LayerAudit(name, kind, computes, kind in WEIGHTED, warning, time_ms)


def _add(
    name: str,
    host: str | None,
    node: Any,
    facts: Mapping[str, str],
    wanted: Precision,
    time_ms: float | None,
) -> LayerAudit:
    """Audit an Add: INT8 if its convolution reads and writes INT8; not fused, if all its tensors are."""
    computes, writes = _precisions(facts)
    fused = host == "Convolution"
    if not fused:  # the runtime model has the precision of the first input only
        sources = [port.get_source_output().get_node().get_rt_info() for port in node.inputs()]
        floats = {_precisions(_texts(source))[1] for source in sources} - {"int8"}
        computes = min(floats) if floats else computes
    precision = writes if computes == "int8" else computes
    warning = ""
    if wanted == "int8" and not (fused and precision == "int8"):
        where = "fused, but its convolution writes" if fused else "not fused with a convolution: runs in"
        warning = f"{where} {precision}; both of its inputs need Q/DQ, and so does its output"
    return LayerAudit(name, "Add", precision, False, warning, None if fused else time_ms, fused=fused)


def _precisions(facts: Mapping[str, str]) -> tuple[str, str]:
    computes = facts.get("runtimePrecision", "")
    writes = facts.get("outputPrecisions", "").split(",")[0]
    return PRECISIONS.get(computes, computes), PRECISIONS.get(writes, writes)


def _onnx_names(facts: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """Return the ONNX nodes of a runtime layer, in order; the plug-in adds others."""
    nodes = (
        names.get(part.removesuffix("/WithoutBiases")) for part in facts["originalLayersNames"].split(",")
    )
    return list(dict.fromkeys(name for name in nodes if name is not None))


def _texts(info: Any) -> dict[str, str]:
    return {key: str(getattr(item, "value", item)) for key, item in info.items()}
