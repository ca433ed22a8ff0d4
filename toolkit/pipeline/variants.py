"""The rows of the report: which there are, how each is run, compared and timed."""

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
from edgeship.toolkit.pipeline.graphs import graph_names, quantized_name

if TYPE_CHECKING:
    from edgeship.calibration.loader import Batches
    from edgeship.toolkit.pipeline.recipe import BenchOptions
    from edgeship.toolkit.pipeline.stage import Inputs

REFERENCE = "onnxruntime-fp32"
REFERENCE_TARGET = "onnxruntime"
TOP = 5
PIXEL_IMAGES = 2  # of noise, that engines of both inputs are compared on


@dataclass(frozen=True, slots=True)
class Variant:
    """One network in one precision on one target."""

    name: str
    target: str
    precision: Precision
    pruned: bool

    def graph(self, inputs: Inputs) -> Path:
        """The ONNX file it is built from."""
        if self.precision == "int8":
            return inputs["quantize"] / f"{quantized_name(self.target, pruned=self.pruned)}.onnx"
        return inputs["export"] / ("pruned.onnx" if self.pruned else "float.onnx")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the variants said of N images.

    Attributes:
        logits: Variant -> (N, classes).
        labels: N class indices; -1 is unknown.
        indices: N positions in the data set.
    """

    logits: dict[str, FloatArray]
    labels: IntArray
    indices: IntArray


def planned(names: Sequence[str], graphs: Mapping[str, Any]) -> tuple[Variant, ...]:
    """Every variant of these targets: unpruned and pruned, FP32 and INT8; the reference always."""
    found = [Variant(REFERENCE, REFERENCE_TARGET, "fp32", pruned=False)]
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    for target in names:
        for precision in precisions:
            for graph in graph_names(graphs):
                name = quantized_name(f"{target}-{precision}", pruned=graph == "pruned")
                found.append(Variant(name, target, precision, graph == "pruned"))
    return tuple(dict.fromkeys(found))


def build(variant: Variant, inputs: Inputs, out: Path, preprocess: Preprocess | None) -> dict[str, Any]:
    """Compile a variant.

    Args:
        variant: Which.
        inputs: Folders of the stages before.
        out: Gets a folder named like the variant; with `preprocess` also the graph that takes pixels and,
            where the engine runs here, an engine without that, to tell what it saves.
        preprocess: What engines that take decoded pixels do with them; None: they take ready images.

    Returns:
        What compiled.json says of it; `graph` and `float_input` are files below `out`, or None.

    Raises:
        TargetError: The SDK is absent or refuses the graph.
        ModelError: The graph cannot take pixels.
    """
    from edgeship.toolkit.graph.pixels import take_pixels

    target, source = targets.get(variant.target), variant.graph(inputs)
    graph, float_input = source, None
    if preprocess is not None:
        graph = out / "graphs" / f"{variant.name}.onnx"
        take_pixels(source, preprocess, graph)
    built = target.compile(graph, out / variant.name, variant.precision)
    warnings = list(built.warnings)
    if preprocess is not None and built.runs_here:
        float_input = f"float-input/{variant.name}"
        float_input += f"/{target.compile(source, out / float_input, variant.precision).file}"
        engines = out / variant.name / built.file, out / float_input
        warnings += check_pixels(target, *engines, preprocess)
    return {
        **plain(built),
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
    """Compare an engine that normalizes pixels itself with the same that takes ready images.

    Args:
        target: What runs both.
        takes_pixels: Engine of uint8 images.
        takes_floats: Engine of float32 images.
        preprocess: What the first does with pixels.

    Returns:
        A warning if their logits differ by more than one 8-bit rounding of all of them.
    """
    from edgeship.calibration.preprocess import normalize
    from edgeship.quantization.runtime_check import CLOSE_DB

    shape = (PIXEL_IMAGES, *preprocess.sides, len(preprocess.mean))
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with target.open(takes_floats) as floats, target.open(takes_pixels) as decoded:
        reference = floats.infer(normalize(pixels, preprocess))
        apart = statistics.sqnr_db(reference, decoded.infer(pixels))
    if apart >= CLOSE_DB:
        return []
    return [f"logits of uint8 images differ from those of float32 images: {apart:.1f} dB for {CLOSE_DB:g}"]


def built_of(variant: Variant, record: Mapping[str, Any], inputs: Inputs) -> Path:
    """The ONNX file that an engine was built of; `record` is from compiled.json."""
    return inputs["compile"] / record["graph"] if record["graph"] else variant.graph(inputs)


def size_bytes(folder: Path, instead: Sequence[str]) -> int:
    """Size of the files of an engine, or of the graph that it is built of, without its other forms."""
    others = {folder / name for name in instead}
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file not in others)


def check_room(folder: Path, graph: Path, error: Exception) -> None:
    """Tell a full disk from a target that refuses a graph: vendors do not always say which it was.

    Raises:
        OSError: There is no room for an engine as large as the graph.
    """
    if shutil.disk_usage(folder).free < graph.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def runnable(inputs: Inputs) -> dict[Variant, dict[str, Any]]:
    """The variants that were built and their records in compiled.json, the reference first."""
    compiled: dict[str, dict[str, Any]] = read_json(inputs["compile"] / "compiled.json")
    return {
        Variant(name, record["target"], record["precision"], record["pruned"]): record
        for name, record in compiled.items()
        if record["file"]
    }


def infer(opened: Mapping[str, targets.Session], stream: Batches) -> Outcome:
    """Feed every decoded batch to every session."""
    logits: dict[str, list[FloatArray]] = {name: [] for name in opened}
    labels, indices = [], []
    for batch in stream:
        for name, session in opened.items():
            logits[name].append(session.infer(batch.pixels if session.takes_pixels else batch.images))
        labels.append(batch.labels)
        indices.append(batch.indices)
    joined = {name: np.concatenate(parts) for name, parts in logits.items()}
    return Outcome(joined, np.concatenate(labels), np.concatenate(indices))


def accuracies(outcome: Outcome, records: Mapping[Variant, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Accuracy of every variant, and how it differs from the reference on the same images."""
    from edgeship.targets._device import this_device

    here = f"this machine ({this_device().name})"
    reference = outcome.logits[REFERENCE]
    known = bool((outcome.labels >= 0).all())
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
        if known:
            right = logits.argmax(1) == outcome.labels
            row["top1"] = float(right.mean())
            row["top5"] = _top5(logits, outcome.labels)
            drop, interval = statistics.paired_drop(reference.argmax(1) == outcome.labels, right)
            row["drop_pp"], row["drop_ci95_pp"] = drop, interval
        rows[variant.name] = row
    return rows


def bench_batch(options: BenchOptions, graphs: Mapping[str, Any]) -> int:
    """Images of one timed inference.

    Raises:
        RecipeError: The graph has a fixed batch of another size.
    """
    if options.batch and graphs["batch"] and options.batch != graphs["batch"]:
        raise RecipeError(
            f"bench.batch = {options.batch}, but the graph takes {graphs['batch']}",
            hint=f"set export.batch={options.batch}, or export.batch=dynamic",
        )
    return options.batch or graphs["batch"] or 1


def float_engines(compiled: Path) -> dict[str, tuple[str, Path]]:
    """As `engines`, of variants that take pixels: the same that take ready images."""
    return {
        variant.name: (variant.target, compiled / record["float_input"])
        for variant, record in runnable({"compile": compiled}).items()
        if record["float_input"]
    }


def engines(compiled: Path) -> dict[str, tuple[str, Path]]:
    """Variant -> target and engine file, of those that run here; `compiled` is the stage's folder."""
    return {
        variant.name: (variant.target, compiled / record["folder"] / record["file"])
        for variant, record in runnable({"compile": compiled}).items()
        if record["runs_here"]
    }


def time_all(
    options: BenchOptions, files: Mapping[str, tuple[str, Path]], images: FloatArray
) -> dict[str, Any]:
    """Time engines against each other; nothing is claimed of those that do not run here.

    Args:
        options: How.
        files: Name -> target and engine file.
        images: One batch (N, C, H, W).
    """
    with ExitStack() as stack:
        return latencies(options, loaded(options, files, stack), images)


def loaded(
    options: BenchOptions, files: Mapping[str, tuple[str, Path]], stack: ExitStack
) -> dict[str, targets.Session]:
    """Load every engine, until the stack is closed."""
    return {
        name: stack.enter_context(targets.get(target).open(engine, threads=options.threads))
        for name, (target, engine) in files.items()
    }


def latencies(
    options: BenchOptions, sessions: Mapping[str, targets.Session], images: FloatArray
) -> dict[str, Any]:
    """Time sessions in turns on one batch (N, C, H, W)."""
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
    """One run on one batch (N, C, H, W), in the form the session takes."""
    given = suited(session, images)
    return lambda: session.infer(given)


def suited(session: targets.Session, images: FloatArray) -> FloatArray | PixelArray:
    """The images (N, C, H, W), or random pixels (N, H, W, C) for a session that takes these."""
    if not session.takes_pixels:
        return images
    count, channels, height, width = images.shape
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def device() -> dict[str, Any]:
    """This machine, and how busy it was."""
    from edgeship.targets._device import int8_sums, this_device

    here = this_device()
    described: dict[str, Any] = plain(here)
    sums = int8_sums(here.arch, here.instruction_sets)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {**described, "load_average": os.getloadavg(), "int8_sums": sums, "timed": now}


def _top5(logits: FloatArray, labels: IntArray) -> float | None:
    """None where there are no more than five classes: it would say nothing."""
    if logits.shape[1] <= TOP:
        return None
    best = np.argpartition(logits, -TOP, axis=1)[:, -TOP:]
    return float((best == labels[:, None]).any(1).mean())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
