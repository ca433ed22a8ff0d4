"""The deep learning accelerators of Xavier and Orin: no Q/DQ there, but scales in a calibration cache."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.tensorrt import builder, jetson, versions
from targets.tensorrt._index import COMMUTING, DEQUANTIZE, QUANTIZE, Index, attribute, label, load
from targets.tensorrt.lint import Finding
from toolkit.core.artifact import replacing, write_text
from toolkit.core.errors import DataError, DeviceError, ModelError

ALGORITHM = "EntropyCalibration2"  # the one a DLA takes: it calibrates before layers are fused
HEADER = re.compile(r"TRT-(\d{4,6})-(EntropyCalibration2|EntropyCalibration|MinMaxCalibration)")
LINE = re.compile(r"(?P<name>.+): (?P<scale>[0-9a-fA-F]{8})")
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
KEEPS_SCALE = (*COMMUTING, "Relu")
GRAPH, CACHE, PRECISIONS = "model_noqdq.onnx", "calib.cache", "layer_precisions.txt"


@dataclass(frozen=True, slots=True)
class Cache:
    """A calibration cache.

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
    """What a DLA build needs, in one folder.

    Attributes:
        folder: Holds the graph, the cache and the layer precisions.
        half_layers: Layers without a scale: they run in FP16.
        findings: What falls back to the GPU, and why.
        trtexec: Arguments that build it; `{onnx}` and `{plan}` stand for the files.
    """

    folder: Path
    half_layers: tuple[str, ...]
    findings: tuple[Finding, ...]
    trtexec: tuple[str, ...]


def write_cache(cache: Cache) -> str:
    """The text of a cache: a header, then "name: " and the big-endian float32 as 8 hex digits.

    Raises:
        DataError: A scale is not a positive float32.
    """
    lines = [f"TRT-{_header_number(cache.version)}-{cache.algorithm}"]
    for name, scale in cache.scales.items():
        if not (math.isfinite(scale) and 0 < scale < 2.0**127) or "\n" in name:
            raise DataError(f"'{name}' has the scale {scale}", hint="calibrate again: scales are above zero")
        lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
    return "\n".join(lines) + "\n"


def read_cache(text: str) -> Cache:
    """A cache from its text; names may hold colons, the last one counts.

    Raises:
        DataError: It is not a whole calibration cache.
    """
    lines = text.split("\n")
    header = HEADER.fullmatch(lines[0])
    if header is None or lines[-1] != "":
        raise _no_cache("no header like TRT-8501-EntropyCalibration2, or its last line is cut off")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:-1], 2):
        match = LINE.fullmatch(line)
        if match is None or match["name"] in scales:
            raise _no_cache(f"line {number} is not 'tensor: 8 hex digits', or its tensor came before")
        (scale,) = struct.unpack(">f", bytes.fromhex(match["scale"]))
        if not (math.isfinite(scale) and scale > 0):
            raise _no_cache(f"line {number} holds the scale {scale}")
        scales[match["name"]] = scale
    return Cache(_header_version(int(header[1])), header[2], scales)


def strip(model: Any, ranges: Mapping[str, float] | None = None) -> dict[str, float]:
    """Take Q/DQ out of a graph in place, and return the scale of every tensor that has one.

    Scales pass through what only moves or clips values (max pool, flatten, ReLU), because TensorRT fuses or
    forwards these; the rest comes from `ranges`.

    Args:
        model: An ONNX model with TensorRT's Q/DQ (int8, zero point 0).
        ranges: Tensor -> largest absolute value, for tensors without Q/DQ such as the last convolution's.

    Returns:
        Tensor -> scale, for the tensors of the stripped graph.

    Raises:
        ModelError: Q/DQ are not symmetric int8 with one scale for each activation.
    """
    index = Index(model)
    scales: dict[str, float] = {}
    for node in [node for node in index.nodes if node.op_type == DEQUANTIZE]:
        source = index.source(node)
        if not index.weights(source):
            scales[source] = _scale(index, node)
        for reader in index.consumers(node.output[0]):
            for i, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[i] = source
    kept = [node for node in model.graph.node if node.op_type not in (QUANTIZE, DEQUANTIZE)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    for tensor in [item for item in model.graph.initializer if item.name not in read]:
        model.graph.initializer.remove(tensor)
    for name, largest in (ranges or {}).items():
        scales.setdefault(name, largest / 127)
    return _spread(Index(model), scales)


def unsupported(model: Any) -> list[Finding]:
    """What the DLA cannot run, before anything is built."""
    index = Index(model)
    found = [
        _finding(
            "dla-operator", label(node), f"{node.op_type} does not run on the DLA", "it falls back to the GPU"
        )
        for node in index.nodes
        if node.op_type not in (*RUNS, "GlobalAveragePool", QUANTIZE, DEQUANTIZE, "Constant")
    ]
    for item in model.graph.input:
        first = item.type.tensor_type.shape.dim[0] if item.type.tensor_type.shape.dim else None
        if first is not None and not first.dim_value:
            hint = "export with a fixed batch"
            found.append(_finding("dla-dynamic-batch", item.name, "the DLA has no dynamic shapes", hint))
    grouped = [n for n in index.nodes if n.op_type == "Conv" and attribute(n, "group", 1) > 1]
    found.extend(
        _finding(
            "dla-group", label(node), "grouped convolutions need INT8 and fall back in FP16", "expect a copy"
        )
        for node in grouped
    )
    return found


def global_pools_to_average(model: Any) -> int:
    """Replace GlobalAveragePool, which older DLAs lack, by AveragePool over the whole map; how many.

    Raises:
        ModelError: The map's size is not fixed.
    """
    import onnx
    from onnx import helper

    shapes = {
        item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    pools = [node for node in model.graph.node if node.op_type == "GlobalAveragePool"]
    for node in pools:
        size = shapes.get(node.input[0], [])[2:]
        if len(size) != 2 or 0 in size:
            raise ModelError(
                f"the size that {label(node)} averages over is not fixed",
                hint="export with a fixed input size",
            )
        node.op_type = "AveragePool"
        node.attribute.append(helper.make_attribute("kernel_shape", size))
    return len(pools)


def write(
    model: Path,
    out: Path,
    *,
    module: str,
    version: str,
    ranges: Mapping[str, float] | None = None,
    core: int = 0,
) -> Bundle:
    """Write the graph without Q/DQ, the calibration cache and the layer precisions.

    Args:
        model: The Q/DQ graph made for TensorRT.
        out: Folder; its three files are replaced.
        module: Name of the Jetson module ("AGX Orin").
        version: TensorRT version on it ("8.5.2").
        ranges: Tensor -> largest absolute value of tensors without Q/DQ; layers without any run in FP16.
        core: Which DLA core.

    Raises:
        DeviceError: The module has no such DLA core.
        RecipeError: That TensorRT has no DLA, or takes Q/DQ there.
        ModelError: The graph has no Q/DQ, or no fixed sizes.
    """
    board = jetson.module(module)
    if core >= board.dla_cores:
        raise DeviceError(
            f"{board.name} has {board.dla_cores or 'no'} DLA core{'' if board.dla_cores == 1 else 's'}",
            hint="build for its GPU: leave --dla out",
        )
    import onnx

    graph = load(model)
    findings = tuple(unsupported(graph))
    if any(finding.rule == "dla-dynamic-batch" for finding in findings):
        raise ModelError("a dynamic batch does not run on the DLA", hint="export with a fixed batch")
    scales = strip(graph, ranges)
    if not scales:
        raise ModelError(f"{model} has no Q/DQ to take scales from", hint="`edgeship quantize` it first")
    global_pools_to_average(graph)
    scales = _spread(Index(graph), scales)
    half = tuple(_without_scale(Index(graph), scales))
    options = builder.BuildOptions(
        dla_core=core,
        calibration_cache=CACHE,
        layer_precisions=tuple((name, "fp16") for name in half),
    )
    arguments = builder.plan(version, options).trtexec
    with replacing(out / GRAPH) as temporary:
        onnx.save(graph, str(temporary))
    numbers = (*versions.parse(version), 0, 0)[:3]
    write_text(out / CACHE, write_cache(Cache((numbers[0], numbers[1], numbers[2]), ALGORITHM, scales)))
    write_text(out / PRECISIONS, ",".join(f"{name}:fp16" for name in half) + "\n")
    return Bundle(out, half, findings, arguments)


def _spread(index: Index, scales: dict[str, float]) -> dict[str, float]:
    """Through ReLU, max pool and flatten, forwards and backwards, until nothing changes."""
    nodes = [node for node in index.nodes if node.op_type in KEEPS_SCALE]
    changed = True
    while changed:
        changed = False
        for node in nodes:
            for known, other in ((node.input[0], node.output[0]), (node.output[0], node.input[0])):
                if known in scales and other not in scales:
                    scales[other] = scales[known]
                    changed = True
    return scales


def _without_scale(index: Index, scales: Mapping[str, float]) -> list[str]:
    """Layers with an input or output that has no scale; the network's output is read as floats."""
    found = []
    for node in index.nodes:
        tensors = [name for name in node.input if name and not index.is_constant(name)]
        tensors += [name for name in node.output if name not in index.outputs]
        if not all(name in scales for name in tensors):
            found.append(label(node))
    return found


def _scale(index: Index, node: Any) -> float:
    scale = index.constant(node.input[1])
    zero = index.constant(node.input[2]) if len(node.input) > 2 else None
    signed = zero is None or (str(zero.dtype) == "int8" and not zero.any())
    if scale is None or scale.size != 1 or not signed:
        raise ModelError(
            f"{label(node)} is not int8 with zero point 0 and one scale",
            hint="use the graph made for TensorRT; `edgeship audit --target tensorrt --fix` repairs others",
        )
    return float(scale.reshape(()))


def _header_number(version: tuple[int, int, int]) -> int:
    major, minor, patch = version
    return major * (10_000 if major >= 10 else 1000) + minor * 100 + patch


def _header_version(number: int) -> tuple[int, int, int]:
    factor = 10_000 if number >= 100_000 else 1000
    return number // factor, number % factor // 100, number % 100


def _no_cache(reason: str) -> DataError:
    return DataError(f"not a calibration cache: {reason}", hint="write it again; it may have been cut off")


def _finding(rule: str, node: str, message: str, fix: str) -> Finding:
    return Finding(rule, "warning", node, message, fix, SOURCE)
