"""Rules of each TensorRT release: accepted graphs, API and trtexec flags, with their sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgeship.toolkit.core.errors import RecipeError

HEADERS = "NVIDIA/TensorRT include/NvInfer*.h and python/src of the release branch"
OPTIONS = "NVIDIA/TensorRT samples/common/sampleOptions.cpp of the release branch"
PARSER = "onnx/onnx-tensorrt, QuantDequantLinearHelper in onnxOpImporters.cpp of the release branch"
OPSETS = "onnx/onnx-tensorrt docs/operators.md of the release branch"
MIGRATION = "docs.nvidia.com/deeplearning/tensorrt, migration guides to 10 and 11"
UINT8_INPUTS = (
    "onnx/onnx-tensorrt docs/Changelog.md (8.5: networks with UINT8 I/O); NVIDIA/TensorRT issue 3985"
)
CPU_PARSER = "TensorRT-RTX 1.7.1, whose parser is onnx-tensorrt's current code, run without a GPU"

Group = Literal["8.2", "8.4", "10", "11"]


@dataclass(frozen=True, slots=True)
class Rules:
    """One TensorRT release, or several that behave alike.

    Attributes:
        version: First release with this behaviour, (major, minor).
        group: Releases with the same API.
        max_opset: Newest ONNX opset its parser reads.
        needs_zero_point: Q and DQ must have their third input.
        half_scales: Scales may be FP16; older parsers read the buffer as 32-bit floats.
        int8_weights: An INT8 weight with only a DQ is fine; before, weights are FP32 with Q and DQ.
        uint8_input: A network input may be uint8, if a Cast reads it.
        optimization_level: Has builder_optimization_level and --builderOptimizationLevel.
        strongly_typed: "no", "possible", "recommended" (the precision flags are deprecated) or "always".
        dla: How a DLA gets INT8: from implicit scales, not at all, or from Q/DQ.
        sources: Origin of the row.
    """

    version: tuple[int, int]
    group: Group
    max_opset: int
    needs_zero_point: bool
    half_scales: bool
    int8_weights: bool
    uint8_input: bool
    optimization_level: bool
    strongly_typed: Literal["no", "possible", "recommended", "always"]
    dla: Literal["implicit", "none", "explicit"]
    sources: tuple[str, ...] = (HEADERS, OPTIONS, PARSER, OPSETS, MIGRATION)

    @property
    def name(self) -> str:
        """Return major and minor version: "8.5"."""
        return f"{self.version[0]}.{self.version[1]}"


def _rules(
    version: tuple[int, int],
    group: Group,
    max_opset: int,
    *,
    strongly_typed: Literal["no", "possible", "recommended", "always"],
    dla: Literal["implicit", "none", "explicit"],
    optimization_level: bool = True,
) -> Rules:
    modern = version >= (10, 0)
    return Rules(
        version=version,
        group=group,
        max_opset=max_opset,
        needs_zero_point=not modern,
        half_scales=modern,
        int8_weights=modern,
        uint8_input=version >= (8, 5),
        optimization_level=optimization_level,
        strongly_typed=strongly_typed,
        dla=dla,
    )


RELEASES = (  # in order; a version in between behaves like the one before it
    _rules((8, 2), "8.2", 13, strongly_typed="no", dla="implicit", optimization_level=False),
    _rules((8, 4), "8.4", 17, strongly_typed="no", dla="implicit", optimization_level=False),
    _rules((8, 5), "8.4", 17, strongly_typed="no", dla="implicit", optimization_level=False),
    _rules((8, 6), "8.4", 17, strongly_typed="no", dla="implicit"),
    _rules((10, 0), "10", 20, strongly_typed="possible", dla="implicit"),
    _rules((10, 3), "10", 20, strongly_typed="possible", dla="implicit"),
    _rules((10, 7), "10", 20, strongly_typed="possible", dla="implicit"),
    _rules((10, 8), "10", 20, strongly_typed="possible", dla="none"),  # 10.7 was the last 10.x with a DLA
    _rules((10, 9), "10", 22, strongly_typed="possible", dla="none"),
    _rules((10, 12), "10", 22, strongly_typed="recommended", dla="none"),
    _rules((10, 13), "10", 24, strongly_typed="recommended", dla="none"),
    _rules((10, 16), "10", 24, strongly_typed="recommended", dla="none"),
    _rules((11, 0), "11", 24, strongly_typed="always", dla="none"),
    _rules((11, 4), "11", 24, strongly_typed="always", dla="explicit"),
)
IN_THE_FIELD = ("8.2", "8.5", "8.6", "10.3", "10.7", "10.13", "10.16", "11.4")  # of JetPacks


TRTEXEC = {  # flag -> (first version, first version without it or None); source: OPTIONS
    "--int8": ((8, 0), (11, 0)),
    "--fp16": ((8, 0), (11, 0)),
    "--calib": ((8, 0), (11, 0)),
    "--workspace": ((8, 0), (10, 0)),
    "--buildOnly": ((8, 0), (10, 0)),
    "--precisionConstraints": ((8, 4), (11, 0)),
    "--layerPrecisions": ((8, 4), (11, 0)),
    "--memPoolSize": ((8, 4), None),
    "--skipInference": ((8, 6), None),
    "--builderOptimizationLevel": ((8, 6), None),
    "--stronglyTyped": ((10, 0), None),
    "--noCudaGraph": ((11, 0), None),
    "--includeDataTransfers": ((11, 0), None),
    "--tuneBuildRouteFile": ((11, 1), None),
}


def has_flag(version: tuple[int, int], flag: str) -> bool:
    """Return True if trtexec of a version has a flag; those not in `TRTEXEC` are in all versions."""
    first, without = TRTEXEC.get(flag, ((0, 0), None))
    return version >= first and (without is None or version < without)


def parse(version: str) -> tuple[int, ...]:
    """Return the numbers of a version text: "10.13.3.9" or dpkg's "10.13.3.9-1+cuda13.0" -> (10, 13, 3, 9).

    Raises:
        RecipeError: It is not a version.
    """
    number = re.fullmatch(
        r"(\d{1,4}(?:\.\d{1,4}){0,4})(?:-\d{1,3}\+cuda\d+(?:\.\d+)?)?", version.strip(), re.ASCII
    )
    if number is None:
        raise RecipeError(
            f"'{version}' is not a TensorRT version", hint=f"for example one of {', '.join(IN_THE_FIELD)}"
        )
    return tuple(int(part) for part in number[1].split("."))


def rules(version: str) -> Rules:
    """Return the rules of a TensorRT version ("8.5", "8.5.2.2", "10", "10.3.0.30-1+cuda12.5").

    Raises:
        RecipeError: It is not a version, older than 8.2, or of an unknown major version.
    """
    numbers = parse(version)
    release = (numbers[0], numbers[1] if len(numbers) > 1 else 0)
    same_major = [item for item in RELEASES if item.version[0] == release[0] and item.version <= release]
    if not same_major:
        raise RecipeError(
            f"no rules for TensorRT {version}",
            hint=f"one of {', '.join(IN_THE_FIELD)}: `edgeship device probe NAME` shows the device's",
        )
    return same_major[-1]
