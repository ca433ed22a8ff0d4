"""Check of a graph by TensorRT-RTX, NVIDIA's parser and ahead-of-time builder, without a GPU."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.core.results import LayerAudit
from edgeship.toolkit.core.tensors import ShapeProfile

INSTALL_HINT = "pip install 'edgeship[tensorrt-rtx]' (NVIDIA's parser and builder; no GPU needed)"
NEAREST_TO_ORIN = ("SM86",)  # Orin is SM 8.7, which TensorRT-RTX does not build for
WITH_FP8 = ("SM89", "SM120")  # Thor is SM 11.0
DYNAMIC_BATCH = ShapeProfile(min=(1,), opt=(8,), max=(32,))
NO_GPU = "cudaError"  # a driver check that says nothing about the graph

KINDS = {
    "Conv": "Convolution",
    "ConvTranspose": "Convolution",
    "Gemm": "FullyConnected",
    "MatMul": "FullyConnected",
}
KERNELS = ("correlation", "gemm")  # others: runtime_fusion (with the next layers), kgen (generated code)
PRECISIONS = {"Int8": "int8", "Half": "fp16", "Float": "fp32", "BFloat16": "bf16", "FP8": "fp8"}
UNLISTED = "not in the builder's listing"
LAYER = re.compile(
    r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?P<rest>(?:Constants|Outputs): .*)$",
    re.MULTILINE,
)
TENSOR = re.compile(r"Dimensions: \[(?P<shape>[\d,]*)\].*?Datatype: (?P<type>\w+)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict of the parser and builder on a graph.

    Attributes:
        version: Version of TensorRT-RTX.
        errors: Reasons of the refusal; empty if it is accepted. A parser warning that a UINT8 zero point is
            read as INT8 is an error: the engine would be built, and its numbers would be wrong.
        warnings: Other warnings of the parser.
        layers: Every layer of the graph that has weights, as the built engine lists it.
        engine_layers: Number of layers of the engine, kernels for several nodes of the graph among them; 0 if
            it is not built.
    """

    version: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    layers: tuple[LayerAudit, ...]
    engine_layers: int = 0

    @property
    def accepted(self) -> bool:
        """Return True if the parser read the graph and the builder made an engine of it."""
        return not self.errors


def check(model: Path, capabilities: tuple[str, ...] = NEAREST_TO_ORIN) -> Verdict:
    """Parse an ONNX file and build it ahead of time.

    Args:
        model: The graph; a dynamic batch is built for 1 to 32 images.
        capabilities: Names of compute capabilities (SM75, SM80, SM86, SM89, SM120, SM121).

    Raises:
        TargetError: TensorRT-RTX is not installed.
    """
    trt = sdk()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return Verdict(trt.__version__, tuple(errors) or ("the parser cannot read the file",), (), ())
    parsed = logger.texts(trt.ILogger.Severity.WARNING)
    misread = sorted({text for text in parsed if "UINT8" in text})
    warnings = tuple(sorted(set(parsed) - set(misread)))
    if misread:
        return Verdict(trt.__version__, tuple(misread), warnings, ())
    if builder.build_serialized_network(network, _config(trt, builder, network, capabilities)) is None:
        errors = [text for text in logger.texts(trt.ILogger.Severity.ERROR) if NO_GPU not in text]
        return Verdict(trt.__version__, tuple(errors) or ("the builder gave no reason",), warnings, ())
    listing = next((t for t in logger.texts(trt.ILogger.Severity.VERBOSE) if t.startswith("Layers:")), "")
    count = sum(1 for _ in LAYER.finditer(listing))
    return Verdict(trt.__version__, (), warnings, layers(listing, weighted_nodes(model)), count)


def weighted_nodes(model: Path) -> dict[str, str]:
    """Return node name -> operator of the nodes with weights."""
    from edgeship.toolkit.graph.load import load_unchanged
    from edgeship.toolkit.graph.query import is_constant_weight, label

    return {
        label(node): node.op_type
        for node in load_unchanged(model).graph
        if node.op_type in KINDS and any(map(is_constant_weight, node.inputs[:2]))
    }


def layers(listing: str, nodes: Mapping[str, str]) -> tuple[LayerAudit, ...]:
    """Return the layers with weights from the builder's listing; those absent from it have a warning.

    A layer is INT8 or FP8 where both its first input and its weights are; else its precision is the other's.

    Args:
        listing: Text with one line a layer: "Name: ..., LayerType: ..., Inputs: [...], Constants: [...],
            Outputs: [...], ..., Metadata: [ONNX Layer: ...][ONNX Layer: ...]".
        nodes: Node name -> operator of the nodes with weights.
    """
    lines = list(LAYER.finditer(listing))
    found = []
    for node, operator in nodes.items():
        named = [line for line in lines if _names(line, node)]
        types = max((_weights_and_types(line) for line in named), default=(False, 0, []))[2]
        precisions = [PRECISIONS.get(each, each.lower()) for each in types]
        precision = "unknown"
        if precisions:
            precision = next((each for each in precisions if each not in ("int8", "fp8")), precisions[0])
        warning = "" if precisions else UNLISTED
        found.append(LayerAudit(node, KINDS[operator], precision, weighted=True, warning=warning))
    return tuple(found)


def _names(line: re.Match[str], node: str) -> bool:
    """Return True if a line belongs to a node, by its metadata or by its name: the node's, with a suffix."""
    own = re.sub(r"(_U\d+)?_myl\d+_\d+$", "", line["name"])
    return node == own or any(f"[ONNX Layer: {name}]" in line["rest"] for name in (node, f"node_of_{node}"))


def _weights_and_types(line: re.Match[str]) -> tuple[bool, int, list[str]]:
    """Return (is kernel, size of the largest constant, types of input and constant) of a line.

    If scales, bias or padding became separate code, several lines name a node: the greatest computes it.
    """
    constants = line["rest"].split("], Outputs: ")[0] if line["rest"].startswith("Constants") else ""
    sizes = [
        (math.prod(int(size) for size in tensor["shape"].split(",") if size), tensor["type"])
        for tensor in TENSOR.finditer(constants)
    ]
    largest, kind = max(sizes, default=(0, ""))
    first = re.search(r"Datatype: (\w+)", line["inputs"])
    return line["kind"] in KERNELS, largest, [each for each in (first and first[1], kind) if each]


def sdk() -> Any:
    """Return the TensorRT-RTX module.

    Raises:
        TargetError: It is not installed.
    """
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise TargetError("TensorRT-RTX is not installed", hint=INSTALL_HINT) from error
    return tensorrt_rtx


def _config(trt: Any, builder: Any, network: Any, capabilities: tuple[str, ...]) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = len(capabilities)
    for i, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        rest = tuple(tensor.shape)[1:]
        if tensor.shape[0] < 0:
            limits = (DYNAMIC_BATCH.min, DYNAMIC_BATCH.opt, DYNAMIC_BATCH.max)
            profile.set_shape(tensor.name, *(batch + rest for batch in limits))
    config.add_optimization_profile(profile)
    return config


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is known only when the SDK is
        """Logger that keeps every message with its severity."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._messages: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self._messages.append((severity, message))

        def texts(self, severity: Any) -> list[str]:
            return [text for kind, text in self._messages if kind == severity]

    return Logger()
