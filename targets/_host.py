"""Run the backends of the device runner on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeship.targets import Compiled, Session
from edgeship.targets._timing import loop_ips
from edgeship.targets.runner.backend import Backend, BuildOptions
from edgeship.targets.runner.failures import Failure
from edgeship.targets.runner.inference import Inference
from edgeship.toolkit.core.artifact import write_bytes
from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.core.quant import Cpu, FloatArray, PixelArray, QuantScheme
from edgeship.toolkit.core.results import Precision

OTHER_IMAGES = "`edgeship inspect graph FILE` lists the image shape; if it is that, free memory"


def last_line(error: Exception) -> str:
    """Return the last line of an error message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


class HostSession:
    """A session of the runner on this machine; takes any number of images."""

    def __init__(self, session: Any, title: str, reason: Callable[[Exception], str] = last_line) -> None:
        self.session, self._title, self._reason = session, title, reason
        self._inference = Inference(session)
        self.prepare = self._inference.prepare

    @property
    def takes_pixels(self) -> bool:
        """Return True for uint8 images (N, H, W, C), False for float32 (N, C, H, W)."""
        return self._inference.takes_pixels

    def infer(self, images: FloatArray | PixelArray) -> FloatArray:
        """Return logits (N, classes) of images in the form it takes."""
        try:
            logits: FloatArray = self._inference(images)
        except Failure as failure:
            raise target_error(failure) from failure
        except Exception as error:  # the exception classes of a runtime may share no base but Exception
            raise TargetError(
                f"{self._title} cannot run images of shape {images.shape}: {self._reason(error)}",
                hint=OTHER_IMAGES,
            ) from error
        return logits


class HostTarget:
    """Target of one file: see `edgeship.targets`."""

    opens_graphs = False
    checks_rules = False
    on_cpu = False

    def __init__(
        self,
        name: str,
        title: str,
        load: Callable[[], Backend],
        scheme: Callable[[Cpu | None], QuantScheme],
    ) -> None:
        self.name, self.title = name, title
        self._load, self._scheme = load, scheme

    def scheme(self, cpu: Cpu | None = None) -> QuantScheme:
        """Return the quantization scheme for a CPU; None: this machine's."""
        return self._scheme(cpu)

    def precisions(self) -> tuple[Precision, ...]:
        """Return FP32 and INT8."""
        return "fp32", "int8"

    def versions(self) -> Mapping[str, str]:
        """Return the version of the installed SDK."""
        return {self.name: self._backend().version}

    def compile(
        self, model: Path, out: Path, precision: Precision, *, version: str | None = None
    ) -> Compiled:
        """Build an engine for this machine; its name holds the precision."""
        del version  # it runs here
        backend = self._backend()
        with tempfile.TemporaryDirectory() as scratch:
            try:
                built = backend.build(str(model), BuildOptions(precision=precision), b"", scratch)
            except Failure as failure:
                raise target_error(failure) from failure
        file = f"{precision}{backend.suffix}"
        write_bytes(out / file, built.engine)
        note = f"built for this machine by {self.title} {backend.version}"
        return Compiled(file, runs_here=True, note=note, warnings=tuple(built.warnings))

    @contextmanager
    def open(self, engine: Path, *, threads: int | None = None) -> Iterator[Session]:
        """Load an engine that `compile` built."""
        try:
            session = self._backend().open(engine.read_bytes(), engine.stem, threads, False)
        except Failure as failure:
            raise target_error(failure) from failure
        try:
            yield HostSession(session, self.title)
        finally:
            session.close()

    def throughput_ips(
        self,
        engine: Path,
        images: FloatArray | PixelArray,
        *,
        threads: int | None = None,
        duration_s: float,
    ) -> float:
        """Return images per second of one batch after the other."""
        with self.open(engine, threads=threads) as session:
            return loop_ips(session, images, duration_s)

    def _backend(self) -> Backend:
        try:
            return self._load()
        except Failure as failure:
            raise target_error(failure) from failure


def target_error(failure: Failure) -> TargetError:
    """Return a failure of the runner as an error of the host."""
    return TargetError(f"{failure} ({failure.cause})", hint=failure.cure)
