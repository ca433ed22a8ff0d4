"""Bundles for the deep learning accelerators (DLA) of Xavier and Orin.

Up to TensorRT 10.7 a DLA reads scales from a calibration cache and supports no Q/DQ. TensorRT 11.4 supports
the DLA of AGX Orin alone, with precision from the types and the Q/DQ of the graph.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeship.targets.tensorrt import builder, fp16_graph, jetson, versions
from edgeship.targets.tensorrt.placement import COMMUTING
from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.core.errors import DataError, DeviceError, ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.results import Finding
from edgeship.toolkit.graph import io, shift
from edgeship.toolkit.graph.load import load_unchanged
from edgeship.toolkit.graph.query import (
    DEQUANTIZE,
    QUANTIZE,
    array,
    before_pair,
    dtype,
    input_at,
    integer,
    is_constant_weight,
    label,
)
from edgeship.toolkit.graph.reference import Reference
from edgeship.toolkit.graph.shapes import infer

ALGORITHM = "EntropyCalibration2"  # required by a DLA: it calibrates before layers are fused
SOURCE = "NVIDIA/Deep-Learning-Accelerator-SW, tools/qdq-translator and the operator support tables"
RUNS = (
    "Conv",
    "Relu",
    "Add",
    "MaxPool",
    "AveragePool",
    "Gemm",
    "Flatten",
    "Concat",
    "Sigmoid",
    "BatchNormalization",
)
POOL_WINDOW = 8  # of a dimension; docs.nvidia.com/deeplearning/tensorrt, DLA Supported Layers
FALLS_BACK = "it falls back to the GPU"
KEEPS_SCALE = COMMUTING | {"Relu"}
EXPLICIT_SOURCE = "docs.nvidia.com/deeplearning/tensorrt/11.4.1, page Strongly Typed Networks for DLA"
EXPLICIT_MODULES = ("AGX Orin",)  # with JetPack 7.2.2 or later, by the page above
GRAPH, CACHE, PRECISIONS = "model_noqdq.onnx", "calib.cache", "layer_precisions.txt"
EXPLICIT_GRAPH = "model_typed.onnx"


@dataclass(frozen=True, slots=True)
class Cache:
    """Calibration cache.

    Attributes:
        version: TensorRT version in the header, as (major, minor, patch).
        algorithm: Name of the calibration.
        scales: Tensor -> largest absolute value / 127.
    """

    version: tuple[int, int, int]
    algorithm: str
    scales: dict[str, float]


@dataclass(frozen=True, slots=True)
class Bundle:
    """Files of a DLA build.

    Attributes:
        folder: Holds the graph, and up to TensorRT 10.7 the cache and the layer precisions.
        graph: Name of the graph in it.
        half_layers: Layers without a scale: they run in FP16.
        findings: Layers that fall back to the GPU, with the reason.
        trtexec: Arguments that build it; `{onnx}` and `{plan}` stand for the files.
        notes: Facts about this version for the user.
    """

    folder: Path
    graph: str
    half_layers: tuple[str, ...]
    findings: tuple[Finding, ...]
    trtexec: tuple[str, ...]
    notes: tuple[str, ...]


def write_cache(cache: Cache) -> str:
    """Return the text of a cache: a header, then "name: " and the big-endian float32 as 8 hex digits.

    Raises:
        DataError: A scale is not a positive float32.
    """
    lines = [f"TRT-{_header_number(cache.version)}-{cache.algorithm}"]
    for name, scale in cache.scales.items():
        if not (math.isfinite(scale) and 0 < scale < 2.0**127) or "\n" in name:
            raise DataError(f"'{name}' has the scale {scale}", hint="calibrate again: scales are above zero")
        lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
    return "\n".join(lines) + "\n"


def strip(model: ir.Model, ranges: Mapping[str, float] | None = None) -> dict[str, float]:
    """Remove the Q/DQ pairs of a graph in place, and return the scale of every tensor that has one.

    Scales pass through operators that only move or clip values (max pool, flatten, ReLU), because TensorRT
    fuses or forwards these; the rest comes from `ranges`.

    Args:
        model: A graph with TensorRT's Q/DQ (int8, zero point 0).
        ranges: Tensor -> largest absolute value, for tensors without Q/DQ such as the last convolution's.

    Returns:
        Tensor -> scale, for the tensors of the stripped graph.

    Raises:
        ModelError: Q/DQ are not symmetric int8 with one scale for each activation.
    """
    scales: dict[str, float] = {}
    for node in [node for node in model.graph if node.op_type == DEQUANTIZE]:
        source = before_pair(node.outputs[0])
        assert source is not None, "a valid DequantizeLinear"
        if not is_constant_weight(source):
            scales[str(source.name)] = _scale(node)
        node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
    RemoveUnusedNodesPass()(model)
    for name, largest in (ranges or {}).items():
        scales.setdefault(name, largest / 127)
    return _spread(model.graph, scales)


def ranges(model: Path, images: FloatArray) -> dict[str, float]:
    """Return the largest absolute value of each tensor without Q/DQ, in the float network.

    A placement for the GPU leaves the last convolution of a block without Q/DQ, since it is fused with the
    Add there; the DLA runs it in INT8 only if it has a scale of its own.

    Args:
        model: The Q/DQ graph for TensorRT.
        images: (N, C, H, W) calibration images, preprocessed.

    Returns:
        Tensor -> largest absolute value.

    Raises:
        DataError: The images do not fit the graph.
    """
    graph = load_unchanged(model)
    shift.restore(graph)
    values = _without_scale(graph.graph, strip(graph))
    shape = tuple(dim if isinstance(dim, int) else 0 for dim in graph.graph.inputs[0].shape or ())
    if images.ndim != len(shape) or images.shape[1:] != shape[1:]:
        raise DataError(
            f"images are {images.shape}, {model} takes {shape}", hint="use the preprocessing of the run"
        )
    tensors_without = [str(value.name) for value in values]
    graph.graph.outputs.extend(values)
    reference = Reference(graph, tensors_without)
    largest = dict.fromkeys(tensors_without, 0.0)
    batch = shape[0] or len(images)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        whole = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        for name, value in zip(tensors_without, reference.run(whole), strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max()))
    return largest


def unsupported(model: ir.Model) -> list[Finding]:
    """Return a finding for each layer that the DLA cannot run."""
    graph = model.graph
    findings = [
        _finding("dla-operator", label(node), f"{node.op_type} does not run on the DLA", FALLS_BACK)
        for node in graph
        if node.op_type not in (*RUNS, "GlobalAveragePool", QUANTIZE, DEQUANTIZE)
    ]
    for value in graph.inputs:
        if value.shape and (not isinstance(value.shape[0], int) or value.shape[0] == 0):
            hint = "export with a fixed batch"
            message = "the DLA has no dynamic shapes"
            findings.append(_finding("dla-dynamic-batch", str(value.name), message, hint))
    findings.extend(
        _finding(
            "dla-group", label(node), "grouped convolutions need INT8 and fall back in FP16", "expect a copy"
        )
        for node in graph
        if node.op_type == "Conv" and integer(node, "group", 1) > 1
    )
    return findings + _large_pools(model)


def _large_pools(model: ir.Model) -> list[Finding]:
    """Return a finding for each pooling window over `POOL_WINDOW` in a dimension, or of unknown size."""
    findings = []
    infer(model)
    for node in model.graph:
        if node.op_type not in ("MaxPool", "AveragePool", "GlobalAveragePool"):
            continue
        is_global = node.op_type == "GlobalAveragePool"
        window = _map_size(node) if is_global else tuple(node.attributes.get_ints("kernel_shape", ()))
        if window and 0 not in window and max(window) <= POOL_WINDOW:
            continue
        size = "x".join(str(side or "?") for side in window) or "of unknown size"
        message = f"the pooling window is {size}, a DLA takes {POOL_WINDOW}x{POOL_WINDOW} at most"
        fix = f"{FALLS_BACK}; a smaller input image gives a smaller map" if is_global else FALLS_BACK
        findings.append(_finding("dla-pool-window", label(node), message, fix))
    return findings


def _map_size(node: ir.Node) -> tuple[int, ...]:
    """Return height and width of a node's first input; 0 is an unknown dimension."""
    value = input_at(node, 0)
    return tuple(dim if isinstance(dim, int) else 0 for dim in (value and value.shape) or ())[2:]


def global_pools_to_average(model: ir.Model) -> int:
    """Replace GlobalAveragePool by AveragePool over the map, for older DLAs; return the number of nodes.

    Raises:
        ModelError: The map's size is not fixed.
    """
    infer(model)
    pools = [node for node in model.graph if node.op_type == "GlobalAveragePool"]
    for node in pools:
        size = _map_size(node)
        if len(size) != 2 or 0 in size:
            raise ModelError(
                f"the size that {label(node)} averages over is not fixed",
                hint="export with a fixed input size",
            )
        node.op_type = "AveragePool"
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", size)
    return len(pools)


def write(
    model: Path,
    out: Path,
    *,
    module: str,
    version: str,
    images: FloatArray | None = None,
    core: int = 0,
) -> Bundle:
    """Write the files of a DLA build for a module and a TensorRT version.

    Up to 10.7 that is the graph without Q/DQ, the calibration cache and the layer precisions; from 11.4 on
    the FP16-typed graph with its Q/DQ.

    Args:
        model: The Q/DQ graph for TensorRT.
        out: Folder; its files are replaced.
        module: Name of the Jetson module ("AGX Orin").
        version: TensorRT version on it ("8.5.2"); the cache's header has the module's patch of "8.5".
        images: Calibration images for tensors without Q/DQ (see `ranges`); None leaves their layers in FP16.
        core: Which DLA core.

    Raises:
        DeviceError: The module has no such DLA core or no such TensorRT, or its patch is unknown.
        RecipeError: That TensorRT has no DLA.
        ModelError: The graph has no Q/DQ, or no fixed sizes.

    Source:
        `SOURCE` and, for 11.4, `EXPLICIT_SOURCE`.
    """
    board = jetson.module(module)
    if core >= board.dla_cores:
        unclear = board.name == "Orin NX" and core == 1
        raise DeviceError(
            f"{board.name} has {board.dla_cores or 'no'} DLA core{'' if board.dla_cores == 1 else 's'}"
            f"{' for certain: 2 with 16 GB, 1 with 8 GB' if unclear else ''}",
            hint="--module 'Orin NX 16GB'" if unclear else "build for its GPU: leave --dla out",
        )
    explicit = versions.rules(version).dla == "explicit"
    if explicit and board.name not in EXPLICIT_MODULES:
        raise DeviceError(
            f"TensorRT {version} has the DLA of {', '.join(EXPLICIT_MODULES)} alone, not of {board.name}",
            hint="use TensorRT 8.5 to 10.7 (JetPack 5 and 6), or its GPU: leave --dla out",
        )
    builder.plan(version, builder.BuildOptions(dla_core=core, half_typed=explicit))  # refuses what has no DLA
    version = jetson.choose(board, tensorrt=version)
    if not explicit and len(versions.parse(version)) < 3:
        raise DeviceError(
            f"the calibration cache carries the exact TensorRT of the device, and {version} is not exact",
            hint="give major.minor.patch: `dpkg -l libnvinfer-bin` on the device prints it",
        )
    graph = load_unchanged(model)
    shift.restore(graph)  # layers that fall back do not saturate
    findings = tuple(unsupported(graph))
    if any(finding.rule == "dla-dynamic-batch" for finding in findings):
        raise ModelError("a dynamic batch does not run on the DLA", hint="export with a fixed batch")
    if not any(node.op_type == QUANTIZE for node in graph.graph):
        raise ModelError(f"{model} has no Q/DQ to take scales from", hint="`edgeship quantize` it first")
    if explicit:
        return _write_explicit(graph, out, version, core, findings)
    scales = strip(graph, None if images is None else ranges(model, images))
    global_pools_to_average(graph)
    floats = tuple(label(node) for node in _half_layers(graph.graph, scales))
    options = builder.BuildOptions(
        dla_core=core,
        calibration_cache=CACHE,
        layer_precisions=tuple((name, "fp16") for name in floats),
    )
    planned = builder.plan(version, options)
    io.save(graph, out / GRAPH)
    major, minor, patch = versions.parse(version)[:3]
    write_text(out / CACHE, write_cache(Cache((major, minor, patch), ALGORITHM, scales)))
    write_text(out / PRECISIONS, ",".join(f"{name}:fp16" for name in floats) + "\n")
    return Bundle(out, GRAPH, floats, findings, planned.trtexec, planned.notes)


def _write_explicit(
    graph: ir.Model, out: Path, version: str, core: int, findings: tuple[Finding, ...]
) -> Bundle:
    """Write the FP16-typed graph with its Q/DQ, for a strongly typed TensorRT."""
    options = builder.BuildOptions(half_typed=True, dla_core=core)
    planned = builder.plan(version, options)
    global_pools_to_average(graph)
    with tempfile.TemporaryDirectory() as scratch:
        pooled = Path(scratch) / "pooled.onnx"
        io.save(graph, pooled)
        fp16_graph.to_half(pooled, out / EXPLICIT_GRAPH)
    return Bundle(out, EXPLICIT_GRAPH, (), findings, planned.trtexec, planned.notes)


def _spread(graph: ir.Graph, scales: dict[str, float]) -> dict[str, float]:
    """Spread scales through ReLU, max pool and flatten, both ways, until nothing changes."""
    pairs = [
        (str(node.inputs[0].name), str(node.outputs[0].name))
        for node in graph
        if node.op_type in KEEPS_SCALE and node.inputs[0] is not None
    ]
    changed = True
    while changed:
        changed = False
        for pair in pairs:
            for source, other in (pair, pair[::-1]):
                if source in scales and other not in scales:
                    scales[other] = scales[source]
                    changed = True
    return scales


def _activations(node: ir.Node) -> list[ir.Value]:
    """Return inputs and outputs of a node without constants and the network's outputs, which stay float."""
    inputs = [value for value in node.inputs if value is not None and value.const_value is None]
    return inputs + [value for value in node.outputs if not value.is_graph_output()]


def _half_layers(graph: ir.Graph, scales: Mapping[str, float]) -> list[ir.Node]:
    """Return the layers with an input or output without a scale."""
    return [node for node in graph if not all(str(value.name) in scales for value in _activations(node))]


def _without_scale(graph: ir.Graph, scales: Mapping[str, float]) -> list[ir.Value]:
    """Return the tensors without a scale, in graph order."""
    values = {str(v.name): v for node in _half_layers(graph, scales) for v in _activations(node)}
    return [value for name, value in values.items() if name not in scales and not value.is_graph_output()]


def _scale(node: ir.Node) -> float:
    scale, zero = array(input_at(node, 1)), array(input_at(node, 2))
    is_signed = input_at(node, 2) is None or (
        dtype(input_at(node, 2)) == "int8" and (zero is None or not zero.any())
    )
    if scale is None or scale.size != 1 or not is_signed:
        raise ModelError(
            f"{label(node)} is not int8 with zero point 0 and one scale",
            hint="use the graph for TensorRT; `edgeship audit --target tensorrt --fix` repairs others",
        )
    return float(scale.reshape(()))


def _header_number(version: tuple[int, int, int]) -> int:
    major, minor, patch = version
    return major * (10_000 if major >= 10 else 1000) + minor * 100 + patch


def _finding(rule: str, node: str, message: str, fix: str) -> Finding:
    return Finding(rule, "warning", node, message, fix, SOURCE)
