"""TensorRT on a GPU of this machine, through the code that also runs on devices."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgeship.targets._batching import in_batches
from edgeship.targets.runner import backend
from edgeship.targets.runner.failures import Failure
from edgeship.targets.tensorrt import engine_analysis, fp16_graph, versions
from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.results import LayerAudit, Precision


@cache
def available() -> bool:
    """Return True if TensorRT is installed and finds a GPU."""
    try:
        from edgeship.targets.runner.cuda import Cuda

        Cuda().sm()
        backend.load("tensorrt")
    except (ImportError, Failure):
        return False
    return True


def version() -> str:
    """Version of TensorRT."""
    return str(backend.load("tensorrt").version)


def build(model: Path, precision: Precision) -> tuple[bytes, tuple[str, ...]]:
    """The plan, and what the parser and builder warned of.

    From TensorRT 11 on types come from the graph alone, so there it is made FP16-typed first.

    Raises:
        TargetError: TensorRT refuses the graph, with the cause and the cure.
        ModelError: A value of the graph does not fit into FP16.
    """
    sdk = backend.load("tensorrt")
    with tempfile.TemporaryDirectory() as scratch:
        if precision != "fp32" and versions.rules(sdk.version).strongly_typed == "always":
            fp16_graph.to_half(model, Path(scratch) / "half.onnx")
            model = Path(scratch) / "half.onnx"
        try:
            built = sdk.build(str(model), backend.BuildOptions(precision=precision), b"", scratch)
        except Failure as failure:
            raise _error(failure) from failure
    return built.engine, tuple(built.warnings)


@contextmanager
def opened(engine: Path) -> Iterator[LiveSession]:
    """A plan loaded on the GPU.

    Raises:
        TargetError: No GPU, or a plan of another version or GPU, with the cause and the cure.
    """
    if not available():
        raise TargetError(
            f"{engine} cannot run on this machine: no NVIDIA GPU with TensorRT",
            hint="build and run it on the device: `edgeship deploy --help`",
        )
    try:
        session = backend.load("tensorrt").open(engine.read_bytes(), "int8", None, True)
    except Failure as failure:
        raise _error(failure) from failure
    try:
        yield LiveSession(session)
    finally:
        session.close()


class LiveSession:
    """A loaded plan; raw bytes go in and out below."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._prepared = 0

    @property
    def takes_pixels(self) -> bool:
        """Return True if images are uint8 (N, H, W, C); else they are float32 (N, C, H, W)."""
        return bool(self._session.takes_pixels)

    def infer(self, images: FloatArray | PixelArray) -> FloatArray:
        """Logits (N, classes) of images in the form it takes."""
        limit = self._session.batch or min(self._session.batch_max or len(images), len(images))
        return in_batches(self._run, images, limit)

    def audit(self, model: Path | None) -> tuple[LayerAudit, ...]:
        """The layers as the engine executes them, with their times; named like the ONNX nodes of `model`."""
        self._prepare(self._session.batch or 1)
        nodes = engine_analysis.onnx_nodes(model) if model is not None else {}
        return engine_analysis.layers(self._session.layers(True), nodes)

    def _run(self, images: FloatArray | PixelArray) -> FloatArray:
        self._prepare(len(images))
        try:
            kind = np.uint8 if self.takes_pixels else np.float32
            self._session.load(np.ascontiguousarray(images, kind).tobytes())
            self._session.step()
        except Failure as failure:
            raise _error(failure) from failure
        logits: FloatArray = np.frombuffer(self._session.logits(), np.float32).reshape(len(images), -1)
        return logits

    def _prepare(self, batch: int) -> None:
        if self._prepared != batch:
            self._session.prepare(batch, True, False)
            self._prepared = batch


def _error(failure: Failure) -> TargetError:
    return TargetError(f"{failure} ({failure.cause})", hint=failure.cure)
