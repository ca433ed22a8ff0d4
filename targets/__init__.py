"""What a target is: a runtime on a kind of device. One file of this package is one target."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeship.toolkit.core import plugins
from edgeship.toolkit.core.quant import Cpu, FloatArray, PixelArray, QuantScheme
from edgeship.toolkit.core.results import LayerAudit, Precision


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compilation left in its folder; kept as JSON beside the engine.

    Attributes:
        file: Name of the engine, or of the checked graph where no engine can be built here.
        runs_here: Whether `Target.open` can run it on this machine.
        note: What was built and checked, in words, for the report.
        audit: Layers as the runtime executes them (empty where it cannot be known here).
        warnings: What a reader of the report must know.
        instead: Other forms of that file, of which some devices need one in its place.
    """

    file: str
    runs_here: bool
    note: str
    audit: tuple[LayerAudit, ...] = ()
    warnings: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()


class Session(Protocol):
    """A loaded engine."""

    @property
    def takes_pixels(self) -> bool:
        """Whether images are uint8 (N, H, W, C), resized and cropped; else float32 (N, C, H, W), ready."""
        ...

    def infer(self, images: FloatArray | PixelArray) -> FloatArray:
        """Logits (N, classes) of images in the form it takes."""
        ...


class Target(Protocol):
    """A runtime: what it wants of a graph, and how it compiles and runs one."""

    opens_graphs: bool  # `open` also takes an ONNX file, and computes what an engine of it would

    def scheme(self, cpu: Cpu | None = None) -> QuantScheme:
        """Return the quantization scheme for a CPU; None: this machine's."""
        ...

    def versions(self) -> Mapping[str, str]:
        """SDK name -> version.

        Raises:
            TargetError: The SDK is absent; the hint says how to install it.
        """
        ...

    def compile(self, model: Path, out: Path, precision: Precision) -> Compiled:
        """Compile an ONNX file into the folder `out`.

        Raises:
            TargetError: The SDK is absent or refuses the graph.
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
        """Images a second when only throughput counts; `images` is one batch in the form the engine takes."""
        ...


def names() -> tuple[str, ...]:
    """Every target, by the name of its file or folder."""
    return tuple(
        name for name in plugins.names("edgeship.targets") if name != "runner"
    )  # runs on devices, not here


def get(name: str) -> Target:
    """The target of that name.

    Raises:
        RecipeError: There is none; the hint gives the nearest one.
    """
    found: Target = plugins.get("edgeship.targets", name, "TARGET", known=names())
    return found
