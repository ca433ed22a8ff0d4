"""Engines over many images: by batches that threads, processes or a cluster share."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.toolkit.core.artifact import sha256_file
from edgeship.toolkit.core.parallel import Backend, ordered
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.pipeline import datasets, variants

if TYPE_CHECKING:
    from edgeship.calibration.class_order import Aliases
    from edgeship.calibration.datasets import Dataset
    from edgeship.calibration.sets import Use
    from edgeship.toolkit.pipeline.stage import Inputs

MOST_WORKERS = 8  # each loads every engine


@dataclass(frozen=True, slots=True)
class Engine:
    """A file that gives logits.

    Attributes:
        file: An engine, or the graph that is simulated.
        target: Whose engine it is; None: simulated by ONNX Runtime, exactly as written.
    """

    file: Path
    target: str | None


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker must know, wherever it is: files are read there.

    Attributes:
        engines: Name -> engine; equal ones run once.
        source: The images, as in a recipe.
        listing: Digest of their names, labels and lengths.
        classes: Outputs of the network, which the labels must fit; None: labels do not matter.
        preprocess: How an image becomes an input.
        batch: Images decoded and run at once.
        skip_bad: Whether images that cannot be decoded are left out.
        names: All names of each output, by which labels are matched; empty: in order.
        use: Which set is taken of a source that holds several.
    """

    engines: tuple[tuple[str, Engine], ...]
    source: str
    listing: str
    classes: int | None
    preprocess: Preprocess
    batch: int
    skip_bad: bool = False
    names: Aliases = ()
    use: Use = "evaluate"


@dataclass(frozen=True, slots=True)
class Part:
    """What the engines said of some images, and the names of those that cannot be decoded."""

    logits: dict[str, FloatArray]
    labels: IntArray
    indices: IntArray
    skipped: tuple[str, ...]


def engines(
    records: Mapping[variants.Variant, Mapping[str, Any]], inputs: Inputs
) -> tuple[tuple[str, Engine], ...]:
    """The engine of every variant; a float graph that is only simulated shares that of ONNX Runtime."""
    found: dict[str, Engine] = {}
    floats: dict[str, Engine] = {}
    for variant, record in records.items():
        target = variant.target if record["runs_here"] else None
        graph = variants.built_of(variant, record, inputs)
        file = inputs["compile"] / record["folder"] / record["file"] if target else graph
        engine = Engine(file, target)
        if variant.precision == "fp32" and target in {None, variants.REFERENCE_TARGET}:
            engine = floats.setdefault(sha256_file(graph), engine)
        found[variant.name] = engine
    return tuple(found.items())


def run(
    work: Work, indices: Sequence[int], *, workers: int | None, backend: Backend, label: str
) -> tuple[variants.Outcome, list[str]]:
    """Feed images to every engine.

    Every worker has its own sessions, each on one thread, and takes one batch after the other: so the result
    is the same, bit for bit, whoever works and however many they are.

    Args:
        work: Engines and images.
        indices: Which images.
        workers: Batches at a time; None: one for each core, at most 8.
        backend: Where the workers are.
        label: What is done, told as progress.

    Returns:
        The outcome, and the names of images that were left out.

    Raises:
        DataError: An image cannot be decoded, or with `skip_bad` none can.
    """
    from edgeship.calibration.loader import none_readable
    from edgeship.toolkit.core.threads import granted_cores

    pool = _pool(work)  # before any thread asks for it
    batches = [tuple(indices[start : start + work.batch]) for start in range(0, len(indices), work.batch)]
    count = workers or min(granted_cores(), MOST_WORKERS)
    try:
        parts = list(ordered(partial(part, work), batches, workers=count, backend=backend, label=label))
    finally:
        pool.close()
        _pool.cache_clear()
    kept = [each for each in parts if len(each.indices)]
    if not kept:
        raise none_readable(pool.dataset, len(indices))
    logits = {name: np.concatenate([each.logits[name] for each in kept]) for name, _ in work.engines}
    labels, found = (np.concatenate([getattr(each, what) for each in kept]) for what in ("labels", "indices"))
    return variants.Outcome(logits, labels, found), [name for each in parts for name in each.skipped]


def part(work: Work, indices: Sequence[int]) -> Part:
    """One batch, with sessions that stay open for the next."""
    from edgeship.calibration.loader import batches

    pool = _pool(work)
    stream = batches(
        pool.dataset,
        indices,
        work.preprocess,
        batch=work.batch,
        workers=1,
        skip_bad=work.skip_bad,
        part=True,
    )
    found = list(stream)
    if not found:
        nothing = np.zeros(0, np.int64)
        return Part({}, nothing, nothing, tuple(stream.skipped))
    (batch,) = found
    sessions = pool.take()
    try:
        said = {
            engine: session.infer(batch.pixels if session.takes_pixels else batch.images)
            for engine, session in sessions.items()
        }
    finally:
        pool.give_back(sessions)
    logits = {name: said[engine] for name, engine in work.engines}
    return Part(logits, batch.labels, batch.indices, tuple(stream.skipped))


class _Pool:
    """The images and the sessions of one process: a set for every batch that runs at a time."""

    def __init__(self, work: Work) -> None:
        self.dataset: Dataset = datasets.open_judges(work.source, work.classes, work.use, work.names)
        self._engines = tuple(dict.fromkeys(engine for _, engine in work.engines))
        self._lock, self._stack = threading.Lock(), ExitStack()
        self._free: list[dict[Engine, targets.Session]] = []

    def take(self) -> dict[Engine, targets.Session]:
        """A set of sessions that nobody else uses."""
        from edgeship.targets.onnxruntime import simulate

        with self._lock:  # loading too: it needs all cores by itself
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

    def give_back(self, sessions: dict[Engine, targets.Session]) -> None:
        """Let others use a set."""
        with self._lock:
            self._free.append(sessions)

    def close(self) -> None:
        """Close all sessions."""
        with self._lock:
            self._free.clear()
            self._stack.close()


@lru_cache(maxsize=1)
def _pool(work: Work) -> _Pool:
    """The pool of this process; another work's is forgotten, and with it its sessions."""
    return _Pool(work)
