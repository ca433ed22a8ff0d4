"""TensorRT on a GPU of this machine, through the code that also runs on devices."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from edgeship.targets._host import HostSession, target_error
from edgeship.targets.runner import backends
from edgeship.targets.runner.backend import BuildOptions
from edgeship.targets.runner.failures import Failure
from edgeship.targets.tensorrt import engine_analysis, fp16_graph, versions
from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.core.results import LayerAudit, Precision


@cache
def available() -> bool:
    """Return True if TensorRT is installed and finds a GPU."""
    try:
        from edgeship.targets.runner.cuda import Cuda

        Cuda().sm()
        backends.load("tensorrt")
    except (ImportError, Failure):
        return False
    return True


def version() -> str:
    """Version of TensorRT."""
    return str(backends.load("tensorrt").version)


def build(model: Path, precision: Precision) -> tuple[bytes, tuple[str, ...]]:
    """Build a plan; return it with the warnings of parser and builder.

    From TensorRT 11 on types come from the graph alone, so there it is made FP16-typed first.

    Raises:
        TargetError: TensorRT refuses the graph, with the cause and the cure.
        ModelError: A value of the graph does not fit into FP16.
    """
    sdk = backends.load("tensorrt")
    with tempfile.TemporaryDirectory() as scratch:
        if precision in ("fp16", "int8") and versions.rules(sdk.version).strongly_typed == "always":
            fp16_graph.to_half(model, Path(scratch) / "half.onnx")
            model = Path(scratch) / "half.onnx"
        try:
            built = sdk.build(str(model), BuildOptions(precision=precision), b"", scratch)
        except Failure as failure:
            raise target_error(failure) from failure
    return built.engine, tuple(built.warnings)


@contextmanager
def opened(engine: Path) -> Iterator[LiveSession]:
    """Load a plan on the GPU.

    Raises:
        TargetError: No GPU, or a plan of another version or GPU, with the cause and the cure.
    """
    if not available():
        raise TargetError(
            f"{engine} cannot run on this machine: no NVIDIA GPU with TensorRT",
            hint="build and run it on the device: `edgeship deploy --help`",
        )
    try:
        session = backends.load("tensorrt").open(engine.read_bytes(), "int8", None, True)
    except Failure as failure:
        raise target_error(failure) from failure
    try:
        yield LiveSession(session, "TensorRT")
    finally:
        session.close()


class LiveSession(HostSession):
    """A loaded plan."""

    def audit(self, model: Path | None) -> tuple[LayerAudit, ...]:
        """Return the layers as executed, with their times, named after the ONNX nodes of `model`."""
        self.prepare(self.session.batch or 1)
        nodes = engine_analysis.onnx_nodes(model) if model is not None else {}
        return engine_analysis.layers(self.session.layers(True), nodes)
