"""Plan and compile the variants."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from edgeship import targets
from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.errors import TargetError, ToolkitError
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.runs.compiled import CompiledVariant
from edgeship.toolkit.runs.variant_id import REFERENCE, GraphName, VariantId

if TYPE_CHECKING:
    from edgeship.toolkit.pipeline.stage import Inputs

PIXEL_IMAGES = 2  # random images to compare the engines of both input types


def planned(
    names: Sequence[str], graphs: Sequence[GraphName], precisions: Collection[Precision]
) -> tuple[VariantId, ...]:
    """Return all variants of these targets, unpruned and pruned; the reference first.

    Args:
        names: The targets.
        graphs: The float graphs.
        precisions: Those besides FP32, each for the targets that have it.

    Raises:
        TargetError: No target has a 16-bit float or FP8 that was asked for, except FP16.
    """
    offered = {name: targets.get(name).precisions() for name in names}
    for precision in precisions:
        if precision not in {"fp16", "int8", *chain.from_iterable(offered.values())}:
            listed = "; ".join(f"{name}: {', '.join(each)}" for name, each in offered.items())
            raise TargetError(
                f"no target of the run has {precision.upper()} here ({listed})",
                hint=f"leave {precision} out of compile.precisions",
            )
    variants = (
        VariantId(target, precision, graph == "pruned")
        for target in names
        for precision in get_args(Precision)
        if precision == "fp32" or (precision in precisions and precision in offered[target])
        for graph in graphs
    )
    return tuple(dict.fromkeys((REFERENCE, *variants)))


def recorded(
    variant: VariantId, inputs: Inputs, out: Path, preprocess: Preprocess | None, *, version: str | None
) -> CompiledVariant:
    """Compile a variant; a target that is missing or rejects the graph gives a record with its error.

    Raises:
        OSError: The disk is full.
    """
    source = variant.graph(inputs)
    try:
        return compile_variant(variant, source, out, preprocess, version=version)
    except ToolkitError as error:
        check_room(out, source, error)
        shutil.rmtree(out / variant.name, ignore_errors=True)
        return CompiledVariant(error=str(error), hint=error.hint)


def compile_variant(
    variant: VariantId,
    source: Path,
    out: Path,
    preprocess: Preprocess | None = None,
    *,
    version: str | None = None,
) -> CompiledVariant:
    """Compile a variant.

    Args:
        variant: The variant.
        source: Its ONNX file, with float input.
        out: Parent of the folder of the variant; with `preprocess` also of the graph with pixel input and, if
            the engine runs here, of an engine with float input for comparison.
        preprocess: Normalization in engines with pixel input; None: engines have float input.
        version: Version of the target's SDK on the device; None: the target's default.

    Raises:
        TargetError: The SDK is missing or rejects the graph.
        ModelError: The graph does not support pixel input.
    """
    from edgeship.toolkit.graph.pixels import add_pixel_input

    target, graph, float_input = targets.get(variant.target), source, None
    if preprocess is not None:
        graph = out / "graphs" / f"{variant.name}.onnx"
        add_pixel_input(source, preprocess, graph)
    built = target.compile(graph, out / variant.name, variant.precision, version=version)
    warnings = list(built.warnings)
    if preprocess is not None and built.runs_here:
        float_input = f"float-input/{variant.name}"
        floats = target.compile(source, out / float_input, variant.precision, version=version)
        float_input += f"/{floats.file}"
        engines = out / variant.name / built.file, out / float_input
        warnings += check_pixels(target, *engines, preprocess)
    return CompiledVariant(
        file=built.file,
        title=target.title,
        runs_here=built.runs_here,
        note=built.note + ("; takes uint8 pixels" if preprocess is not None else ""),
        audit=built.audit,
        warnings=tuple(warnings),
        size_bytes=size_bytes(out / variant.name, built.instead),
        input="float32" if preprocess is None else "uint8",
        graph=None if preprocess is None else str(graph.relative_to(out)),
        float_input=float_input,
        simulated=built.simulated,
    )


def check_pixels(
    target: targets.Target, takes_pixels: Path, takes_floats: Path, preprocess: Preprocess
) -> list[str]:
    """Compare an engine with pixel input, which normalizes them, with the same with float input.

    Args:
        target: Runtime of both.
        takes_pixels: Engine of uint8 images.
        takes_floats: Engine of float32 images.
        preprocess: Normalization in the first engine.

    Returns:
        A warning if their logits differ by more than one 8-bit rounding of all of them.
    """
    from edgeship.calibration.preprocess import normalize
    from edgeship.quantization.runtime_check import CLOSE_DB

    shape = (PIXEL_IMAGES, *preprocess.sides, len(preprocess.mean))
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with target.open(takes_floats) as floats, target.open(takes_pixels) as decoded:
        reference = floats.infer(normalize(pixels, preprocess))
        sqnr_db = statistics.sqnr_db(reference, decoded.infer(pixels))
    if sqnr_db >= CLOSE_DB:
        return []
    return [f"logits of uint8 images differ from those of float32 images: {sqnr_db:.1f} dB for {CLOSE_DB:g}"]


def size_bytes(folder: Path, instead: Sequence[str]) -> int:
    """Return the size of the files of an engine, or of its graph, without the `instead` files."""
    others = {folder / name for name in instead}
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file not in others)


def check_room(folder: Path, graph: Path, error: Exception) -> None:
    """Raise if the disk is full, which some runtimes report as a rejected graph.

    Raises:
        OSError: The free space is smaller than the graph.
    """
    if shutil.disk_usage(folder).free < graph.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
