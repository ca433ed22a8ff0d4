"""Targets: a runtime on a kind of device; each module of this package, or plug-in, is one target.

A plug-in (see `toolkit.core.plugins`) is one file that runs on this machine and on devices. It has

- `TITLE`, the product name;
- `scheme(cpu)`, the `QuantScheme` for a `Cpu` (None: this machine's); it runs on this machine only;
- `load(sdk)`, which returns the `runner.backend.Backend`; it also runs on devices.

Devices get the file with the runner. So it is Python 3.8, imports at its top only the standard library and
`edgeship.targets.runner`, and the rest inside functions. A target with more abilities defines `TARGET`, a
`Target`, instead of `TITLE` and `scheme`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeship.targets import runner
from edgeship.toolkit.core import plugins
from edgeship.toolkit.core.quant import Cpu, FloatArray, PixelArray, QuantScheme
from edgeship.toolkit.core.results import LayerAudit, Precision


@dataclass(frozen=True, slots=True)
class Compiled:
    """Result of a compilation; its JSON form is a record of `compiled.json`.

    Attributes:
        file: Name of the engine, or of the checked graph where no engine can be built here.
        runs_here: True if `Target.open` can run it on this machine.
        note: One sentence for the report: what was built and checked.
        audit: Layers as the runtime executes them; empty if unknown here.
        warnings: Warnings for the report.
        instead: Alternate files, which some devices need instead.
        simulated: File with the types that the engine computes in, to simulate; None: the compiled graph.
    """

    file: str
    runs_here: bool
    note: str
    audit: tuple[LayerAudit, ...] = ()
    warnings: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    simulated: str | None = None


class Session(Protocol):
    """A loaded engine."""

    @property
    def takes_pixels(self) -> bool:
        """Return True for uint8 images (N, H, W, C), False for preprocessed float32 (N, C, H, W)."""
        ...

    def infer(self, images: FloatArray | PixelArray) -> FloatArray:
        """Return logits (N, classes) of images in the form of `takes_pixels`."""
        ...


class Target(Protocol):
    """A runtime: its quantization scheme, compiler and sessions.

    Attributes:
        title: Product name.
        opens_graphs: True if `open` also takes an ONNX file, and computes what an engine of it would.
        checks_rules: True if `edgeship audit` checks graphs against rules instead of compiling them.
        on_cpu: True if the CPU of this machine computes its engines, in this process.
    """

    title: str
    opens_graphs: bool
    checks_rules: bool
    on_cpu: bool

    def scheme(self, cpu: Cpu | None = None) -> QuantScheme:
        """Return the quantization scheme for a CPU; None: this machine's."""
        ...

    def precisions(self) -> tuple[Precision, ...]:
        """Return the precisions that it has, on this machine or on a device; FP32 and INT8 at least."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Return SDK name -> version.

        Raises:
            TargetError: The SDK is absent; the hint is its installation.
        """
        ...

    def compile(
        self, model: Path, out: Path, precision: Precision, *, version: str | None = None
    ) -> Compiled:
        """Compile an ONNX file into the folder `out`; `version` is that of the SDK on the device, if known.

        Raises:
            TargetError: The SDK is absent or rejects the graph.
        """
        ...

    def open(self, engine: Path, *, threads: int | None = None) -> AbstractContextManager[Session]:
        """Load a compiled engine; `threads` CPU threads (None: all)."""
        ...

    def throughput_ips(
        self,
        engine: Path,
        images: FloatArray | PixelArray,
        *,
        threads: int | None = None,
        duration_s: float,
    ) -> float:
        """Return the maximum images per second; `images` is one batch, see `Session.takes_pixels`."""
        ...


def names() -> tuple[str, ...]:
    """Return the names of all targets: of their files or folders."""
    return tuple(name for name in plugins.names("edgeship.targets") if name != "runner")  # runs on devices


def get(name: str) -> Target:
    """Return the target of that name.

    Raises:
        RecipeError: No target has that name; the hint gives the nearest one.
    """
    module = plugins.module("edgeship.targets", name, names())
    if hasattr(module, "TARGET"):
        target: Target = module.TARGET
        return target
    from edgeship.targets._host import HostTarget

    attributes = (plugins.attribute_of(module, each) for each in ("TITLE", "load", "scheme"))
    return HostTarget(name, *attributes)


def runner_archive(target_names: Iterable[str]) -> bytes:
    """Return the device runner with the backends of these targets."""
    files = plugins.outside("edgeship.targets")
    return runner.source({name: files[name].read_bytes() for name in target_names if name in files})
