"""NVIDIA's own parser and ahead-of-time builder (TensorRT-RTX) as a gate: no GPU is needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import TargetError
from toolkit.core.results import LayerAudit
from toolkit.core.tensors import ShapeProfile

INSTALL_HINT = "pip install 'edgeship[tensorrt-rtx]' (NVIDIA's parser and builder; no GPU needed)"
NEAREST_TO_ORIN = ("SM86",)  # Orin is SM 8.7, which TensorRT-RTX does not build for
DYNAMIC_BATCH = ShapeProfile(min=(1,), opt=(8,), max=(32,))
NO_GPU = "cudaError"  # a driver check that says nothing about the graph

KINDS = {"correlation": "Convolution", "gemm": "FullyConnected"}
PRECISIONS = {"Int8": "int8", "Half": "fp16", "Float": "fp32", "BFloat16": "bf16"}
LAYER = re.compile(
    r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (?:Constants|Outputs): ",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the parser and builder said of a graph.

    Attributes:
        version: Version of TensorRT-RTX.
        errors: Why it was refused; empty when it was accepted. A parser warning that a UINT8 zero point is
            read as INT8 is an error: the engine would be built, and its numbers would be wrong.
        warnings: What else the parser warned of.
        layers: Weighted layers of the built engine; `precision` is that of their first input.
    """

    version: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    layers: tuple[LayerAudit, ...]

    @property
    def accepted(self) -> bool:
        """Whether the parser read the graph and the builder made an engine of it."""
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
    return Verdict(trt.__version__, (), warnings, layers(listing, [node.name for node in _nodes(model)]))


def layers(listing: str, nodes: list[str]) -> tuple[LayerAudit, ...]:
    """Weighted layers of the builder's listing, under the names of their ONNX nodes.

    Args:
        listing: Text with one line a layer: "Name: ..., LayerType: ..., Inputs: [...], ...".
        nodes: Names of the ONNX nodes; a layer is called like its node, with a suffix.
    """
    found = []
    for match in LAYER.finditer(listing):
        kind = KINDS.get(match["kind"])
        types = re.findall(r"Datatype: (\w+)", match["inputs"])
        if kind is None or not types:
            continue
        layer = re.sub(r"_U\d+_myl\d+_\d+$", "", match["name"])
        name = layer if layer in nodes else match["name"]
        found.append(LayerAudit(name, kind, PRECISIONS.get(types[0], types[0].lower()), weighted=True))
    return tuple(found)


def sdk() -> Any:
    """The TensorRT-RTX module.

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
        """Keeps every message with its severity."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._messages: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self._messages.append((severity, message))

        def texts(self, severity: Any) -> list[str]:
            return [text for kind, text in self._messages if kind == severity]

    return Logger()


def _nodes(model: Path) -> Any:
    import onnx

    return onnx.load(str(model), load_external_data=False).graph.node
