"""Run engines over many images, in batches on threads, processes or a cluster."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.toolkit.core.artifact import sha256_file
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.parallel import Backend, ordered
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.pipeline import datasets
from edgeship.toolkit.runs.compiled import CompiledVariant, engine_file, simulated_file
from edgeship.toolkit.runs.measured import EvaluationTime
from edgeship.toolkit.runs.variant_id import REFERENCE, VariantId

if TYPE_CHECKING:
    from edgeship.calibration.class_order import Aliases
    from edgeship.calibration.datasets import Dataset
    from edgeship.calibration.loader import Batch
    from edgeship.calibration.sets import Use
    from edgeship.toolkit.pipeline.stage import Inputs

MOST_WORKERS = 8  # each opens every engine
BATCH = 32  # images of the monitor that are decoded at once
TASKS = 4  # per worker in another process; each opens every engine once


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine file, or a graph to simulate.

    Attributes:
        file: An engine, or a graph.
        target: Target of the engine; None: the graph is simulated by ONNX Runtime, without fusions.
    """

    file: Path
    target: str | None


@dataclass(frozen=True, slots=True)
class Arrays:
    """Preprocessed images in memory.

    Attributes:
        images: (N, C, H, W) float32.
        labels: N class indices; -1 is unknown.
    """

    images: FloatArray
    labels: IntArray


@dataclass(frozen=True, slots=True)
class Work:
    """Parameters of a worker, which opens the files itself.

    Attributes:
        engines: Name -> engine; equal engines run once.
        source: The images: a source as in a recipe, or arrays.
        classes: Outputs of the network, which the labels must match; None: labels are unused.
        preprocess: Preprocessing of an image.
        batch: Images per batch.
        skip_bad: Leave out images that cannot be decoded.
        names: All names of each output, by which labels are matched; empty: in order.
        use: Split of a source with several.
    """

    engines: tuple[tuple[str, Engine], ...]
    source: str | Arrays
    classes: int | None
    preprocess: Preprocess
    batch: int
    skip_bad: bool = False
    names: Aliases = ()
    use: Use = "evaluate"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Logits of the variants on N images.

    Attributes:
        logits: Variant -> (N, classes).
        labels: N class indices; -1 is unknown.
        indices: N positions in the data set.
        time: Duration, and share of the time outside inference; None: not measured.
    """

    logits: dict[str, FloatArray]
    labels: IntArray
    indices: IntArray
    time: EvaluationTime | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Logits of the engines on one batch, images that cannot be decoded, and seconds of inference."""

    logits: dict[str, FloatArray]
    labels: IntArray
    indices: IntArray
    skipped: tuple[str, ...]
    inference_s: float = 0.0


def engines(records: Mapping[VariantId, CompiledVariant], inputs: Inputs) -> tuple[tuple[str, Engine], ...]:
    """Return the engine of every variant; a simulated float graph shares that of ONNX Runtime."""
    result: dict[str, Engine] = {}
    floats: dict[str, Engine] = {}
    for variant, record in records.items():
        target = variant.target if record.runs_here else None
        graph = simulated_file(variant, record, inputs)
        file = engine_file(variant, record, inputs) if target else graph
        engine = Engine(file, target)
        if variant.precision == "fp32" and target in {None, REFERENCE.target}:
            engine = floats.setdefault(sha256_file(graph), engine)
        result[variant.name] = engine
    return tuple(result.items())


def run(
    work: Work, indices: Sequence[int], *, workers: int | None, backend: Backend, label: str
) -> tuple[Outcome, list[str]]:
    """Run images through every engine: the inference loop of all evaluations.

    Every worker has its own sessions, each on one thread, so the result is bit-identical for any number of
    workers and any backend.

    Args:
        work: Engines and images.
        indices: Positions of the images.
        workers: Batches in parallel; None: one per core, at most 8.
        backend: Executor of the workers.
        label: Label of the progress.

    Returns:
        The outcome, and the names of skipped images.

    Raises:
        DataError: An image cannot be decoded, or with `skip_bad` none can.
    """
    from edgeship.calibration.loader import none_readable
    from edgeship.toolkit.core.threads import granted_cores

    batches = [tuple(indices[start : start + work.batch]) for start in range(0, len(indices), work.batch)]
    count = workers or min(granted_cores(), MOST_WORKERS)
    began = time.perf_counter()
    with closing(_Worker(work)) as own:
        if backend == "threading":
            parts = list(ordered(own.run, batches, workers=count, backend=backend, label=label))
        else:
            size = math.ceil(len(batches) / (count * TASKS))
            tasks = [batches[start : start + size] for start in range(0, len(batches), size)]
            done = ordered(partial(_run_task, work), tasks, workers=count, backend=backend, label=label)
            parts = list(chain.from_iterable(done))
        decoded = [each for each in parts if len(each.indices)]
        if not decoded:
            raise none_readable(own.name, len(indices))
    seconds = time.perf_counter() - began
    inference_s = sum(each.inference_s for each in parts) / min(count, len(batches))
    logits = {name: np.concatenate([each.logits[name] for each in decoded]) for name, _ in work.engines}
    labels, places = (
        np.concatenate([getattr(each, name) for each in decoded]) for name in ("labels", "indices")
    )
    spent = EvaluationTime(round(seconds, 3), round(max(0.0, 1 - inference_s / seconds), 4))
    return Outcome(logits, labels, places, spent), [name for each in parts for name in each.skipped]


def _run_task(work: Work, batches: Sequence[Sequence[int]]) -> list[Part]:
    """Run some batches in another process, whose sessions stay open for all of them."""
    with closing(_Worker(work)) as worker:
        return [worker.run(indices) for indices in batches]


class _Worker:
    """Images and sessions of one process: a set of sessions per concurrent batch."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._dataset = None
        if not isinstance(work.source, Arrays):
            self._dataset = datasets.open_validation(work.source, work.classes, work.use, work.names)
        self.name = self._dataset.name if self._dataset else "the array"
        self._engines = tuple(dict.fromkeys(engine for _, engine in work.engines))
        self._lock, self._stack = threading.Lock(), ExitStack()
        self._free: list[dict[Engine, targets.Session]] = []

    def run(self, indices: Sequence[int]) -> Part:
        """Run one batch through every engine, in sessions that stay open for the next."""
        sessions = self._take()
        try:
            pixels = any(session.takes_pixels for session in sessions.values())
            batch, skipped = self._decode(indices, pixels=pixels)
            if batch is None:
                empty = np.zeros(0, np.int64)
                return Part({}, empty, empty, skipped)
            began = time.perf_counter()
            outputs = {
                engine: session.infer(batch.pixels if session.takes_pixels else batch.images)
                for engine, session in sessions.items()
            }
            inference_s = time.perf_counter() - began
        finally:
            with self._lock:
                self._free.append(sessions)
        logits = {name: outputs[engine] for name, engine in self._work.engines}
        return Part(logits, batch.labels, batch.indices, skipped, inference_s)

    def _decode(self, indices: Sequence[int], *, pixels: bool) -> tuple[Batch | None, tuple[str, ...]]:
        """Return the images at these positions, None if all are skipped; and the names of those skipped.

        Of arrays, the pixels are computed only if an engine has pixel input.
        """
        from edgeship.calibration.loader import Batch, batches
        from edgeship.calibration.preprocess import denormalize

        work, places = self._work, np.asarray(indices, np.int64)
        if isinstance(work.source, Arrays):
            images = work.source.images[places]
            decoded = denormalize(images, work.preprocess) if pixels else np.zeros(0, np.uint8)
            return Batch(images, work.source.labels[places], places, decoded), ()
        assert self._dataset is not None
        stream = batches(
            self._dataset,
            indices,
            work.preprocess,
            batch=work.batch,
            workers=1,
            skip_bad=work.skip_bad,
            part=True,
        )
        parts = list(stream)
        return parts[0] if parts else None, tuple(stream.skipped)

    def _take(self) -> dict[Engine, targets.Session]:
        """Return a set of sessions for exclusive use."""
        from edgeship.targets.onnxruntime import simulate

        with self._lock:  # loading uses all cores
            if self._free:
                return self._free.pop()
            return {
                engine: self._stack.enter_context(
                    targets.get(engine.target).open(engine.file, threads=1)
                    if engine.target
                    else simulate(engine.file, threads=1)
                )
                for engine in self._engines
            }

    def close(self) -> None:
        """Close all sessions."""
        with self._lock:
            self._free.clear()
            self._stack.close()


def leave_out_not_numbers(outcome: Outcome) -> dict[str, str]:
    """Take variants out of an outcome whose logits have no first class on some images; return the reasons.

    Raises:
        ModelError: The float reference is one of them.
    """
    reasons = {}
    for name, logits in list(outcome.logits.items()):
        count = int((~np.isfinite(logits.max(1))).sum())
        if not count:
            continue
        reason = f"computes NaN or infinity on {count} of {len(logits)} images"
        if name == REFERENCE.name:
            raise ModelError(
                f"the float network {reason}", hint="`edgeship inspect ranges` shows the range of its tensors"
            )
        reasons[name] = f"{reason}, and has no accuracy: choose other types with --precision"
        del outcome.logits[name]
    return reasons


def monitor_reference(dataset: Dataset, outcome: Outcome, preprocess: Preprocess) -> dict[str, Any] | None:
    """Return the reference of the monitor on devices, from some evaluated images; None with too few."""
    from edgeship.calibration.loader import batches
    from edgeship.toolkit.prove import watching

    name = next((name for name in outcome.logits if "int8" in name), REFERENCE.name)
    places = np.random.default_rng(0).permutation(len(outcome.indices))[: watching.MOST]
    images = batches(dataset, outcome.indices[places].tolist(), preprocess, batch=BATCH, label="monitor")
    return watching.reference((part.pixels for part in images), outcome.logits[name][places], preprocess)
