"""Quantize a float graph for a target, with its runtime as a check and under an accuracy limit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeship import targets
from edgeship.targets._device import this_device
from edgeship.targets.tensorrt import jetson
from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.core.parallel import ONE, Workers
from edgeship.toolkit.core.quant import X86, FloatArray, QuantScheme
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.core.threads import granted_cores
from edgeship.toolkit.graph.io import Classifier, save
from edgeship.toolkit.pipeline.mixed_precision import HeldOut, Trials, summarize

if TYPE_CHECKING:
    from edgeship.quantization.options import QuantizeOptions
    from edgeship.quantization.runtime_check import Runtime
    from edgeship.quantization.statistics import Statistics
    from edgeship.toolkit.pipeline.recipe import Recipe


def quantize(
    graph: Classifier,
    statistics: Statistics,
    target: str,
    out: Path,
    options: QuantizeOptions,
    *,
    workers: Workers = ONE,
    validation: HeldOut | None = None,
    pixels: Preprocess | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """Quantize a float graph for a target; layers stay in float where the accuracy limit requires it.

    Args:
        graph: The float graph.
        statistics: Statistics of its activations, from `calibrate`.
        target: Name of the target.
        out: File for the Q/DQ graph.
        options: Method and effort.
        workers: Parallel batches of the sensitivity analysis.
        validation: Validation images of the limit; None: no limit.
        pixels: Preprocessing of an engine with pixel input, which is then checked; None: float input.
        check: Compare the target's runtime with exact arithmetic, if it runs here.

    Returns:
        The summary of `quantization.quantize`.

    Raises:
        QuantizationError: A tensor cannot be quantized.
    """
    from edgeship import quantization

    with ExitStack() as stack:
        runs = stack.enter_context(runtime(target, pixels)) if check else None
        target_scheme = scheme(options, target)
        if validation is None:
            return quantization.quantize(
                graph, statistics, target_scheme, options, out, runtime=runs, workers=workers
            )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        float_graph = folder / "float.onnx"  # ends in the logits, unlike some input files
        save(graph.model, float_graph)
        trials = Trials(target, float_graph, validation, folder)
        summary = quantization.quantize(
            graph, statistics, target_scheme, options, out, trials.goal(options), runs, workers
        )
        summary["mixed"], warnings = summarize(summary["mixed"], trials, out)
        summary["warnings"] += warnings
    return summary


def quantized_targets(recipe: Recipe, precision: Precision) -> tuple[str, ...]:
    """Return the targets with a quantized variant of a precision, int8 or fp8."""
    if precision not in jetson.available(recipe.compile.precisions, recipe.compile.module):
        return ()
    return tuple(each for each in recipe.compile.targets if precision in targets.get(each).precisions())


def workers(recipe: Recipe) -> Workers:
    """Return the workers of the sensitivity analysis: on threads, more than one are no faster."""
    backend = recipe.evaluate.backend
    return Workers(recipe.evaluate.workers or (1 if backend == "threading" else granted_cores()), backend)


def schemes(recipe: Recipe) -> dict[str, QuantScheme]:
    """Return the scheme of every target; it may depend on the CPU."""
    return {name: scheme(recipe.quantize, name) for name in recipe.compile.targets}


def scheme(options: QuantizeOptions, target: str) -> QuantScheme:
    """Return the scheme of a target for the CPU of `overflow_fix`."""
    return targets.get(target).scheme(X86.get(options.overflow_fix))


def cache_key_parts(recipe: Recipe) -> dict[str, Any]:
    """Return the cache-key parts of quantized graphs: schemes, and the runtimes that check them."""
    runtimes = {name: targets.get(name).versions() for name in recipe.compile.targets if _runs_graphs(name)}
    cpu = sorted(this_device().instruction_sets) if runtimes else []
    return {"schemes": schemes(recipe), "runtimes": runtimes, "instruction_sets": cpu}


def _runs_graphs(target: str) -> bool:
    """Return True if a target runs ONNX files on this machine."""
    if not targets.get(target).opens_graphs:
        return False
    try:
        targets.get(target).versions()
    except TargetError:
        return False
    return True


@contextmanager
def runtime(target: str, pixels: Preprocess | None) -> Iterator[Runtime | None]:
    """Yield the runtime that executes a Q/DQ graph as the target does; None if it does not run here.

    Args:
        target: Its name.
        pixels: Preprocessing of engines with pixel input; None: engines have float input.
    """
    from edgeship.calibration.preprocess import denormalize
    from edgeship.quantization.runtime_check import Runtime
    from edgeship.targets.onnxruntime import simulate
    from edgeship.toolkit.graph.pixels import add_pixel_input

    if not _runs_graphs(target):
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:

        def real(graph: Path, images: FloatArray) -> FloatArray:
            if pixels is not None:
                add_pixel_input(graph, pixels, Path(folder) / "pixels.onnx")
                graph = Path(folder) / "pixels.onnx"
            with targets.get(target).open(graph) as session:
                return session.infer(images if pixels is None else denormalize(images, pixels))

        def exact(graph: Path, images: FloatArray) -> FloatArray:
            with simulate(graph) as session:
                return session.infer(images)

        yield Runtime(target, real, exact)


def float_types(_recipe: object) -> list[str]:
    """Return the bfloat16 instruction sets of the CPU, which calibration may use."""
    return sorted({"avx512_bf16", "amx_bf16"}.intersection(this_device().instruction_sets))
