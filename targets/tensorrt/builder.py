"""Build and timing commands of each TensorRT version: pure functions of version and options.

The device runner builds through the Python API; these functions are for trtexec, for the README of an export,
and for refusing options that a version does not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgeship.targets.tensorrt.versions import Rules, has_flag, rules
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.core.tensors import ShapeProfile

Boundary = Literal["gpu", "copies", "enqueue"]
MEASURE_SOURCE = "NVIDIA/TensorRT samples/common/sampleReporting.cpp and sampleOptions.cpp"


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of an engine build.

    Attributes:
        precision: int8 means INT8 where the graph has Q/DQ, and FP16 elsewhere; fp8 is always `half_typed`.
        half_typed: The graph carries FP16 types itself: it is built strongly typed.
        workspace_mib: Limit of scratch memory in MiB; 1024 to 2048 for a board with 8 GB.
        optimization_level: 0 (fast build) to 5 (slow build); 3 is TensorRT's own.
        timing_cache: File that keeps kernel timings: quicker rebuilds, the same choices.
        sparsity: Use 2:4 sparse kernels where weights allow and it is faster.
        profile: Input name -> shapes, for a dynamic batch.
        dla_core: Build for this DLA core.
        gpu_fallback: Layers that the DLA cannot run go to the GPU.
        calibration_cache: File of implicit scales, for the DLA up to TensorRT 10.7; 11.4 uses Q/DQ.
        layer_precisions: (layer, precision) that are fixed, for the DLA.
    """

    precision: Precision = "int8"
    half_typed: bool = False
    workspace_mib: int = 1024
    optimization_level: int = 3
    timing_cache: str | None = None
    sparsity: bool = False
    profile: dict[str, ShapeProfile] = field(default_factory=dict)
    dla_core: int | None = None
    gpu_fallback: bool = True
    calibration_cache: str | None = None
    layer_precisions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Flags, API names and trtexec arguments of one version.

    Attributes:
        group: Releases with the same API ("8.2", "8.4", "10", "11").
        network_flags: Names in NetworkDefinitionCreationFlag.
        builder_flags: Names in BuilderFlag; their integers change between versions.
        workspace: Name of the Python setting that limits scratch memory.
        optimization_level: None where the version has no such setting.
        io: Names of inputs and outputs at run time.
        trtexec: Arguments after `trtexec`; `{onnx}` and `{plan}` stand for the files.
        notes: Facts about this version for the user.
    """

    group: str
    network_flags: tuple[str, ...]
    builder_flags: tuple[str, ...]
    workspace: Literal["max_workspace_size", "set_memory_pool_limit"]
    optimization_level: int | None
    io: Literal["bindings", "tensor names"]
    trtexec: tuple[str, ...]
    notes: tuple[str, ...]


def plan(version: str, options: BuildOptions) -> BuildPlan:
    """Return the build plan of a TensorRT version.

    Args:
        version: TensorRT version ("8.5.2", "10.3").
        options: Options of the build.

    Raises:
        RecipeError: The version lacks an option; the hint has an alternative.

    Source:
        `versions.HEADERS`, `versions.OPTIONS`, `versions.MIGRATION`.
    """
    rule = rules(version)
    _refuse(rule, options)
    strong = options.half_typed and rule.group == "10"
    flags = _builder_flags(rule, options)
    return BuildPlan(
        group=rule.group,
        network_flags=_network_flags(rule, strong=strong),
        builder_flags=flags,
        workspace="max_workspace_size" if rule.group == "8.2" else "set_memory_pool_limit",
        optimization_level=options.optimization_level if rule.optimization_level else None,
        io="bindings" if rule.version < (8, 5) else "tensor names",
        trtexec=_trtexec(rule, options, flags, strong=strong),
        notes=tuple(_notes(rule, options)),
    )


def measure(
    version: str, boundary: Boundary, *, warmup_ms: int = 1000, duration_s: int = 10
) -> tuple[str, ...]:
    """Return the timing arguments of trtexec; version 11 reversed its defaults, so all are written.

    Args:
        version: TensorRT version.
        boundary: "gpu": kernels alone; "copies": with the copies of input and output; "enqueue": kernels,
            launched one by one.
        warmup_ms: Untimed runs before.
        duration_s: Timed runs.

    Source:
        `MEASURE_SOURCE`.
    """
    timing = (f"--warmUp={warmup_ms}", f"--duration={duration_s}")
    if rules(version).group == "11":
        flags = {"gpu": (), "copies": ("--includeDataTransfers",), "enqueue": ("--noCudaGraph",)}
    else:
        alone = ("--noDataTransfers", "--useCudaGraph", "--useSpinWait")
        flags = {"gpu": alone, "copies": (), "enqueue": ()}
    return (*timing, *flags[boundary])


def _refuse(rule: Rules, options: BuildOptions) -> None:
    if options.half_typed and rule.strongly_typed == "no":
        raise RecipeError(
            f"TensorRT {rule.name} cannot build an FP16-typed graph: it has no strong typing",
            hint="use the FP32-typed graph; the builder chooses FP16 itself",
        )
    if options.precision == "fp8" and not options.half_typed:
        raise RecipeError(
            "FP8 by a builder flag may be built in FP32 without a word (NVIDIA/TensorRT issue 4590)",
            hint="use the FP8 graph with FP16 types (`edgeship export-jetson` writes it)",
        )
    if options.precision == "fp16" and rule.strongly_typed == "always" and not options.half_typed:
        raise RecipeError(
            f"TensorRT {rule.name} reads types from the graph alone, and the graph is FP32",
            hint="use the FP16-typed graph (`edgeship export-jetson` writes it)",
        )
    if options.dla_core is not None and rule.dla == "none":
        raise RecipeError(
            f"TensorRT {rule.name} has no DLA on Jetson",
            hint="use TensorRT 8.5 to 10.7 (JetPack 5 and 6), or 11.4 on AGX Orin",
        )
    if options.dla_core is not None and rule.dla == "explicit" and not options.half_typed:
        raise RecipeError(
            f"the DLA of TensorRT {rule.name} goes by the types of the graph, and the graph is FP32",
            hint="use the FP16-typed graph (`edgeship export-jetson --dla` writes it)",
        )
    implicit = options.calibration_cache is not None or options.layer_precisions
    if implicit and rule.strongly_typed == "always":
        raise RecipeError(
            f"TensorRT {rule.name} has no calibration caches and layer precisions", hint="use the Q/DQ graph"
        )


def _network_flags(rule: Rules, *, strong: bool) -> tuple[str, ...]:
    if rule.group in ("8.2", "8.4"):
        return ("EXPLICIT_BATCH",)  # exists in 10 with a deprecation, and no more in 11
    return ("STRONGLY_TYPED",) if strong else ()


def _builder_flags(rule: Rules, options: BuildOptions) -> tuple[str, ...]:
    typed = rule.strongly_typed == "always" or (options.half_typed and rule.group == "10")
    precision: tuple[str, ...] = (
        () if typed else {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[options.precision]
    )
    sparse = ("SPARSE_WEIGHTS",) if options.sparsity else ()
    fallback = ("GPU_FALLBACK",) if options.dla_core is not None and options.gpu_fallback else ()
    return (*precision, *sparse, *fallback)


def _trtexec(rule: Rules, options: BuildOptions, flags: tuple[str, ...], *, strong: bool) -> tuple[str, ...]:
    """Return the arguments in the version's spelling; every version reads memory in MiB without a suffix."""
    names = {"INT8": "--int8", "FP16": "--fp16", "SPARSE_WEIGHTS": "--sparsity=enable"}
    arguments = ["--onnx={onnx}", *(names[flag] for flag in flags if flag in names)]
    if strong:
        arguments.append("--stronglyTyped")
    arguments.append("--saveEngine={plan}")
    pool = "--memPoolSize=workspace:" if has_flag(rule.version, "--memPoolSize") else "--workspace="
    arguments.append(f"{pool}{options.workspace_mib}")
    if options.timing_cache is not None:
        arguments.append(f"--timingCacheFile={options.timing_cache}")
    arguments.append("--profilingVerbosity=detailed")
    if rule.optimization_level:
        arguments.append(f"--builderOptimizationLevel={options.optimization_level}")
    arguments.extend(_shapes(options))
    if options.dla_core is not None:
        arguments.append(f"--useDLACore={options.dla_core}")
        arguments.extend(["--allowGPUFallback"] if options.gpu_fallback else [])
    if options.calibration_cache is not None:
        arguments.append(f"--calib={options.calibration_cache}")
    if options.layer_precisions and has_flag(rule.version, "--layerPrecisions"):
        listed = ",".join(f"{layer}:{precision}" for layer, precision in options.layer_precisions)
        arguments.extend(["--precisionConstraints=prefer", f"--layerPrecisions={listed}"])
    arguments.append("--skipInference" if has_flag(rule.version, "--skipInference") else "--buildOnly")
    return tuple(arguments)


def _shapes(options: BuildOptions) -> list[str]:
    if not options.profile:
        return []
    arguments = []
    for name in ("min", "opt", "max"):
        shapes = ",".join(
            f"{tensor}:{'x'.join(map(str, getattr(profile, name)))}"
            for tensor, profile in options.profile.items()
        )
        arguments.append(f"--{name}Shapes={shapes}")
    return arguments


def _notes(rule: Rules, options: BuildOptions) -> list[str]:
    notes = []
    if rule.strongly_typed == "recommended" and not options.half_typed and options.precision != "fp32":
        notes.append("--int8 and --fp16 are deprecated from 10.12 on: prefer the FP16-typed graph")
    if rule.strongly_typed == "always" and not options.half_typed and options.precision == "int8":
        notes.append("layers without Q/DQ stay FP32: the FP16-typed graph is faster")
    if options.layer_precisions and not has_flag(rule.version, "--layerPrecisions"):
        notes.append(
            f"trtexec of TensorRT {rule.name} has no --layerPrecisions: --fp16 lets the builder run the "
            f"{len(options.layer_precisions)} layers without a scale in FP16, and does not force it"
        )
    return notes
