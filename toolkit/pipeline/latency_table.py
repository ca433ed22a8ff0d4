"""Measure the INT8 latency of candidate architectures on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeship import targets
from edgeship.toolkit.core.artifact import canonical_json, plain, read_json, write_json
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.statistics import percentile
from edgeship.toolkit.core.tensors import Size, as_size, sides
from edgeship.toolkit.runs.compiled import engine_file
from edgeship.toolkit.runs.variant_id import VariantId

if TYPE_CHECKING:
    from edgeship.toolkit.models.resnet import Architecture

SECONDS = 0.2  # of timed inferences, for each network in each round
MOST_ROUNDS = 6
AGREE = 0.03  # relative difference of two rounds that ends the measurement
QUICK = 25.0  # percentile that is compared: other processes only slow inferences down


class LatencyTable:
    """Measure the INT8 latency of an architecture, in milliseconds; a context manager.

    Random weights are exported, quantized with the least effort and compiled. The first architecture stays
    loaded and is timed interleaved with every later one; the ratio cancels drift of clocks and load. With one
    thread of this machine's CPU it is the ratio of processor times, which other processes disturb less.
    """

    def __init__(self, names: tuple[str, ...], size: Size, threads: int, table: Path) -> None:
        """Prepare to measure.

        Args:
            names: Targets; the first that runs here is used.
            size: Input height and width in pixels.
            threads: CPU threads.
            table: JSON file of the latencies, from which an interrupted pass resumes.
        """
        from edgeship.targets._device import this_device

        self._names, self._threads, self._table = names, threads, table
        self._images = np.random.default_rng(0).normal(size=(4, 3, *sides(size))).astype(np.float32)
        self._setting = plain([this_device().name, names, size, threads])
        stored = read_json(table) if table.is_file() else {}
        self._ms: dict[str, float] = stored["ms"] if stored.get("setting") == self._setting else {}
        self._resumed = dict(self._ms)  # of an interrupted pass: each is used once
        self._first: tuple[str, targets.Session] | None = None
        self._clock_ns: Callable[[], int] = time.perf_counter_ns
        self._stack = ExitStack()

    def __enter__(self) -> LatencyTable:
        """Return the table."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the first engine."""
        self._stack.close()

    def __call__(self, arch: Architecture) -> float:
        """Measure the latency of one image, in milliseconds; repeated calls measure again."""
        key = canonical_json(plain([arch.widths, arch.steps]))
        if self._first is None:
            session = self._stack.enter_context(self._opened(arch))
            if key not in self._resumed:
                self._ms[key] = percentile(self._timed({"it": session})["it"], 50)
            self._first = key, session
        elif key != self._first[0] and self._resumed.pop(key, None) is None:
            base, first = self._first
            with self._opened(arch) as session:
                self._ms[key] = self._ms[base] * self._ratio(session, first)
        write_json(self._table, {"setting": self._setting, "ms": self._ms})
        return self._ms[key]

    def _ratio(self, session: targets.Session, first: targets.Session) -> float:
        """Return the latency ratio to the first: the median of rounds, until two agree."""
        ratios: list[float] = []
        while len(ratios) < MOST_ROUNDS:
            samples = self._timed({"first": first, "it": session}, self._clock_ns)
            quick, base = (percentile(samples[name], QUICK) for name in ("it", "first"))
            ratios.append(quick / base)
            if len(ratios) > 1 and abs(ratios[-1] / ratios[-2] - 1) < AGREE:
                break
        return statistics.median(ratios)

    def _timed(
        self, sessions: Mapping[str, targets.Session], clock_ns: Callable[[], int] = time.perf_counter_ns
    ) -> dict[str, tuple[float, ...]]:
        from edgeship.targets._timing import interleave

        runs = {name: partial(session.infer, self._images[:1]) for name, session in sessions.items()}
        return interleave(runs, warmup_s=0.05, duration_s=SECONDS, clock_ns=clock_ns)

    @contextmanager
    def _opened(self, arch: Architecture) -> Iterator[targets.Session]:
        """Yield a session of the INT8 engine of an architecture; its files are removed afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            target, engine = self._built(arch, Path(folder))
            with target.open(engine, threads=self._threads) as session:
                yield session

    def _built(self, arch: Architecture, folder: Path) -> tuple[targets.Target, Path]:
        from edgeship.quantization.options import QuantizeOptions
        from edgeship.toolkit.graph.io import read_classifier
        from edgeship.toolkit.models import export, resnet
        from edgeship.toolkit.pipeline import verbs

        export.export(
            resnet.ResNet(arch).eval(), folder / "float.onnx", size=as_size(*self._images.shape[2:])
        )
        graph = read_classifier(folder / "float.onnx")
        ranges = verbs.calibrate(graph, [self._images])
        how = QuantizeOptions(observer="minmax", effort="fast", bias_correction=False)
        for name in self._names:
            variant = VariantId(name, "int8", pruned=True)
            verbs.quantize(graph, ranges, name, folder / "int8.onnx", how, check=False)
            built = verbs.compile(variant, folder / "int8.onnx", folder)
            if built.runs_here:
                target = targets.get(name)
                if self._threads == 1 and target.on_cpu:
                    self._clock_ns = time.process_time_ns
                return target, engine_file(variant, built, {"compile": folder})
        raise ModelError(
            f"prune.latency_ratio: none of {', '.join(self._names)} runs on this machine",
            hint="set prune.macs_ratio, or run on the device",
        )
