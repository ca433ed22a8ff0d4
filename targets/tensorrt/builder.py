"""How to build and time an engine on each TensorRT: a pure function of version and options.

The device runner builds through Python and asks the SDK what it offers; this page is for trtexec, for the
bundle's instructions, and for telling beforehand what a version cannot do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from edgeship.targets.tensorrt.versions import Rules, has_flag, rules
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.core.tensors import ShapeProfile

Boundary = Literal["gpu", "copies", "enqueue"]
MEASURE_SOURCE = "NVIDIA/TensorRT samples/common/sampleReporting.cpp and sampleOptions.cpp"


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What an engine is built with.

    Attributes:
        precision: int8 means INT8 where the graph has Q/DQ, and FP16 elsewhere.
        half_typed: The graph carries FP16 types itself: it is built strongly typed.
        workspace_mib: Limit of scratch memory in MiB; a board with 8 GB wants 1024 to 2048.
        optimization_level: 0 (fast build) to 5 (slow build); 3 is TensorRT's own.
        timing_cache: File that keeps kernel timings: quicker rebuilds, the same choices.
        sparsity: Use 2:4 sparse kernels where weights allow and it is faster.
        profile: Input name -> shapes, for a dynamic batch.
        dla_core: Build for this DLA core.
        gpu_fallback: Layers that the DLA cannot run go to the GPU.
        calibration_cache: File of implicit scales, for the DLA up to TensorRT 10.7; 11.4 takes Q/DQ there.
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
    """How one version builds it.

    Attributes:
        group: Releases with the same API ("8.2", "8.4", "10", "11").
        network_flags: Names in NetworkDefinitionCreationFlag.
        builder_flags: Names in BuilderFlag; their integers change between versions.
        workspace: How scratch memory is limited in Python.
        optimization_level: None where the version has no such setting.
        io: How inputs and outputs are named at run time.
        trtexec: Arguments after `trtexec`; `{onnx}` and `{plan}` stand for the files.
        notes: What the user should know of this version.
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
    """What to tell a TensorRT version, so that it builds what the options ask for.

    Args:
        version: TensorRT version ("8.5.2", "10.3").
        options: What is wanted.

    Raises:
        RecipeError: The version cannot do it; the hint says what it can.

    Source:
        `versions.HEADERS`, `versions.OPTIONS`, `versions.MIGRATION`.
    """
    known = rules(version)
    _refuse(known, options)
    strong = options.half_typed and known.group == "10"
    flags = _builder_flags(known, options)
    return BuildPlan(
        group=known.group,
        network_flags=_network_flags(known, strong=strong),
        builder_flags=flags,
        workspace="max_workspace_size" if known.group == "8.2" else "set_memory_pool_limit",
        optimization_level=options.optimization_level if known.optimization_level else None,
        io="bindings" if known.version < (8, 5) else "tensor names",
        trtexec=_trtexec(known, options, flags, strong=strong),
        notes=tuple(_notes(known, options)),
    )


def beside(options: BuildOptions) -> tuple[BuildOptions, ...]:
    """What to build for a fair answer: FP16 always stands beside INT8, which does not always win."""
    if options.precision != "int8":
        return (options,)
    plain = replace(options, precision="fp16", calibration_cache=None, layer_precisions=())
    return (options, plain)


def measure(
    version: str, boundary: Boundary, *, warmup_ms: int = 1000, duration_s: int = 10
) -> tuple[str, ...]:
    """Timing arguments of trtexec: version 11 turned its defaults around, so they are always written.

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
        spoken = {"gpu": (), "copies": ("--includeDataTransfers",), "enqueue": ("--noCudaGraph",)}
    else:
        alone = ("--noDataTransfers", "--useCudaGraph", "--useSpinWait")
        spoken = {"gpu": alone, "copies": (), "enqueue": ()}
    return (*timing, *spoken[boundary])


def _refuse(known: Rules, options: BuildOptions) -> None:
    if options.half_typed and known.strongly_typed == "no":
        raise RecipeError(
            f"TensorRT {known.name} cannot build an FP16-typed graph: it has no strong typing",
            hint="use the FP32-typed graph; the builder chooses FP16 itself",
        )
    if options.precision == "fp16" and known.strongly_typed == "always" and not options.half_typed:
        raise RecipeError(
            f"TensorRT {known.name} takes types from the graph alone, and this one is FP32",
            hint="use the FP16-typed graph (`edgeship export-jetson` writes it)",
        )
    if options.dla_core is not None and known.dla == "none":
        raise RecipeError(
            f"TensorRT {known.name} has no DLA on Jetson",
            hint="JetPack 5 and 6 (up to 10.7) have; 11.4 again",
        )
    if options.dla_core is not None and known.dla == "explicit" and not options.half_typed:
        raise RecipeError(
            f"the DLA of TensorRT {known.name} goes by the types of the graph, and this one is FP32",
            hint="use the FP16-typed graph (`edgeship export-jetson --dla` writes it)",
        )
    implicit = options.calibration_cache is not None or options.layer_precisions
    if implicit and known.strongly_typed == "always":
        raise RecipeError(
            f"TensorRT {known.name} has no calibration caches and layer precisions", hint="use the Q/DQ graph"
        )


def _network_flags(known: Rules, *, strong: bool) -> tuple[str, ...]:
    if known.group in ("8.2", "8.4"):
        return ("EXPLICIT_BATCH",)  # exists in 10 with a deprecation, and no more in 11
    return ("STRONGLY_TYPED",) if strong else ()


def _builder_flags(known: Rules, options: BuildOptions) -> tuple[str, ...]:
    typed = known.strongly_typed == "always" or (options.half_typed and known.group == "10")
    precision: tuple[str, ...] = (
        () if typed else {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[options.precision]
    )
    sparse = ("SPARSE_WEIGHTS",) if options.sparsity else ()
    fallback = ("GPU_FALLBACK",) if options.dla_core is not None and options.gpu_fallback else ()
    return (*precision, *sparse, *fallback)


def _trtexec(known: Rules, options: BuildOptions, flags: tuple[str, ...], *, strong: bool) -> tuple[str, ...]:
    """In the spelling that the version reads; memory in MiB without a suffix is read by all."""
    spelt = {"INT8": "--int8", "FP16": "--fp16", "SPARSE_WEIGHTS": "--sparsity=enable"}
    arguments = ["--onnx={onnx}", *(spelt[flag] for flag in flags if flag in spelt)]
    if strong:
        arguments.append("--stronglyTyped")
    arguments.append("--saveEngine={plan}")
    pool = "--memPoolSize=workspace:" if has_flag(known.version, "--memPoolSize") else "--workspace="
    arguments.append(f"{pool}{options.workspace_mib}")
    if options.timing_cache is not None:
        arguments.append(f"--timingCacheFile={options.timing_cache}")
    arguments.append("--profilingVerbosity=detailed")
    if known.optimization_level:
        arguments.append(f"--builderOptimizationLevel={options.optimization_level}")
    arguments.extend(_shapes(options))
    if options.dla_core is not None:
        arguments.append(f"--useDLACore={options.dla_core}")
        arguments.extend(["--allowGPUFallback"] if options.gpu_fallback else [])
    if options.calibration_cache is not None:
        arguments.append(f"--calib={options.calibration_cache}")
    if options.layer_precisions and has_flag(known.version, "--layerPrecisions"):
        listed = ",".join(f"{layer}:{precision}" for layer, precision in options.layer_precisions)
        arguments.extend(["--precisionConstraints=prefer", f"--layerPrecisions={listed}"])
    arguments.append("--skipInference" if has_flag(known.version, "--skipInference") else "--buildOnly")
    return tuple(arguments)


def _shapes(options: BuildOptions) -> list[str]:
    if not options.profile:
        return []
    spelt = []
    for name in ("min", "opt", "max"):
        shapes = ",".join(
            f"{tensor}:{'x'.join(map(str, getattr(profile, name)))}"
            for tensor, profile in options.profile.items()
        )
        spelt.append(f"--{name}Shapes={shapes}")
    return spelt


def _notes(known: Rules, options: BuildOptions) -> list[str]:
    notes = []
    if known.strongly_typed == "recommended" and not options.half_typed and options.precision != "fp32":
        notes.append("--int8 and --fp16 are deprecated from 10.12 on: the FP16-typed graph is the coming way")
    if known.strongly_typed == "always" and not options.half_typed and options.precision == "int8":
        notes.append("what has no Q/DQ stays FP32 there: the FP16-typed graph is faster")
    if options.layer_precisions and not has_flag(known.version, "--layerPrecisions"):
        notes.append(
            f"trtexec of TensorRT {known.name} has no --layerPrecisions: --fp16 lets the builder run the "
            f"{len(options.layer_precisions)} layers without a scale in FP16, and does not force it"
        )
    return notes
