"""Plan, compile, evaluate and time the variants."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.artifact import plain, read_json
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.quant import FloatArray, IntArray, PixelArray
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.runs.variant_id import REFERENCE, GraphName, VariantId

if TYPE_CHECKING:
    from edgeship.toolkit.pipeline.recipe import BenchOptions
    from edgeship.toolkit.pipeline.stage import Inputs

TOP = 5
PIXEL_IMAGES = 2  # random images to compare the engines of both input types


@dataclass(frozen=True, slots=True)
class Outcome:
    """Logits of the variants on N images.

    Attributes:
        logits: Variant -> (N, classes).
        labels: N class indices; -1 is unknown.
        indices: N positions in the data set.
    """

    logits: dict[str, FloatArray]
    labels: IntArray
    indices: IntArray


def planned(names: Sequence[str], graphs: Sequence[GraphName]) -> tuple[VariantId, ...]:
    """Return all variants of these targets, unpruned and pruned, FP32 and INT8; the reference first."""
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    variants = (
        VariantId(target, precision, graph == "pruned")
        for target in names
        for precision in precisions
        for graph in graphs
    )
    return tuple(dict.fromkeys((REFERENCE, *variants)))


def build(
    variant: VariantId,
    source: Path,
    out: Path,
    preprocess: Preprocess | None = None,
    *,
    version: str | None = None,
) -> dict[str, Any]:
    """Compile a variant.

    Args:
        variant: The variant.
        source: Its ONNX file, with float input.
        out: Parent of the folder of the variant; with `preprocess` also of the graph with pixel input and, if
            the engine runs here, of an engine with float input for comparison.
        preprocess: Normalization in engines with pixel input; None: engines have float input.
        version: Version of the target's SDK on the device; None: the target's default.

    Returns:
        Its record in compiled.json; `graph` and `float_input` are files below `out`, or None.

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
    return {
        **plain(built),
        "title": target.title,
        "warnings": warnings,
        "note": built.note + ("; takes uint8 pixels" if preprocess is not None else ""),
        "folder": variant.name,
        "size_bytes": size_bytes(out / variant.name, built.instead),
        "input": "float32" if preprocess is None else "uint8",
        "graph": None if preprocess is None else str(graph.relative_to(out)),
        "float_input": float_input,
    }


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


def built_of(variant: VariantId, record: Mapping[str, Any], inputs: Inputs) -> Path:
    """Return the ONNX file of an engine; `record` is from compiled.json."""
    return inputs["compile"] / record["graph"] if record["graph"] else variant.graph(inputs)


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


def runnable(inputs: Inputs) -> dict[VariantId, dict[str, Any]]:
    """Return the compiled variants and their records in compiled.json, the reference first."""
    compiled: dict[str, dict[str, Any]] = read_json(inputs["compile"] / "compiled.json")
    return {
        VariantId(record["target"], record["precision"], record["pruned"]): record
        for record in compiled.values()
        if record["file"]
    }


def accuracies(outcome: Outcome, records: Mapping[VariantId, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the accuracy of every variant, and the paired drop against the reference."""
    from edgeship.targets._device import this_device

    here = f"this machine ({this_device().name})"
    reference = outcome.logits[REFERENCE.name]
    labelled = bool((outcome.labels >= 0).all())
    rows: dict[str, dict[str, Any]] = {}
    for variant, record in records.items():
        logits = outcome.logits[variant.name]
        row: dict[str, Any] = {
            "images": len(logits),
            "measured_on": here if record["runs_here"] else "simulation (ONNX Runtime)",
            "top1": None,
            "top5": None,
            "drop_pp": None,
            "drop_ci95_pp": None,
            "agreement": statistics.agreement(reference, logits),
            "sqnr_db": _finite(statistics.sqnr_db(reference, logits)),
        }
        if labelled:
            right = logits.argmax(1) == outcome.labels
            row["top1"] = float(right.mean())
            row["top5"] = _top5(logits, outcome.labels)
            drop, interval = statistics.paired_drop(reference.argmax(1) == outcome.labels, right)
            row["drop_pp"], row["drop_ci95_pp"] = drop, interval
        rows[variant.name] = row
    return rows


def bench_batch(options: BenchOptions, fixed: int | None) -> int:
    """Return the batch size of one timed inference.

    Args:
        options: The bench section.
        fixed: Batch of the graph; None: dynamic.

    Raises:
        RecipeError: The graph has a fixed batch of another size.
    """
    if options.batch and fixed and options.batch != fixed:
        raise RecipeError(
            f"bench.batch = {options.batch}, but the graph takes {fixed}",
            hint=f"set export.batch={options.batch}, or export.batch=dynamic",
        )
    return options.batch or fixed or 1


def float_engines(compiled: Path) -> dict[str, tuple[str, Path]]:
    """Return the float-input engines of variants with pixel input, as `engines`."""
    return {
        variant.name: (variant.target, compiled / record["float_input"])
        for variant, record in runnable({"compile": compiled}).items()
        if record["float_input"]
    }


def engines(compiled: Path) -> dict[str, tuple[str, Path]]:
    """Return variant -> target and engine file of all that run here; `compiled` is the stage's folder."""
    return {
        variant.name: (variant.target, compiled / record["folder"] / record["file"])
        for variant, record in runnable({"compile": compiled}).items()
        if record["runs_here"]
    }


def loaded(
    options: BenchOptions, files: Mapping[str, tuple[str, Path]], stack: ExitStack
) -> dict[str, targets.Session]:
    """Open a session per engine; the stack closes them."""
    return {
        name: stack.enter_context(targets.get(target).open(engine, threads=options.threads))
        for name, (target, engine) in files.items()
    }


def latencies(
    options: BenchOptions, sessions: Mapping[str, targets.Session], images: FloatArray
) -> dict[str, Any]:
    """Time sessions, interleaved, on one batch (N, C, H, W)."""
    from edgeship.targets._timing import interleave, noise_warning

    samples = interleave(
        {name: inference(session, images) for name, session in sessions.items()},
        warmup_s=options.warmup_s,
        duration_s=None if options.runs else options.duration_s,
        count=options.runs,
    )
    return {
        "included": "one call: input copied in, inference, output copied out; interrupted ones repeated",
        "threads": options.threads,
        "batch": len(images),
        "variants": {
            name: {"samples_ms": taken, "warning": noise_warning(taken)} for name, taken in samples.items()
        },
    }


def inference(session: targets.Session, images: FloatArray) -> Callable[[], FloatArray]:
    """Return a function that runs one batch (N, C, H, W), in the input type of the session."""
    batch = session_input(session, images)
    return lambda: session.infer(batch)


def session_input(session: targets.Session, images: FloatArray) -> FloatArray | PixelArray:
    """Return the images (N, C, H, W), or random pixels (N, H, W, C) for a session with pixel input."""
    if not session.takes_pixels:
        return images
    count, channels, height, width = images.shape
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def device() -> dict[str, Any]:
    """Describe this machine and its load."""
    from edgeship.targets._device import this_cpu, this_device

    described: dict[str, Any] = plain(this_device())
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {**described, "load_average": os.getloadavg(), "int8_sums": this_cpu().int8_sums, "timed": now}


def _top5(logits: FloatArray, labels: IntArray) -> float | None:
    """Return the top-5 accuracy; None for five classes or fewer, where it is always 1."""
    if logits.shape[1] <= TOP:
        return None
    best = np.argpartition(logits, -TOP, axis=1)[:, -TOP:]
    return float((best == labels[:, None]).any(1).mean())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
