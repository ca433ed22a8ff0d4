"""Interface of a backend: one SDK that builds and runs engines."""

from __future__ import annotations

import time
from typing import Any, Callable, NamedTuple, Protocol

from . import sysfs

_PROFILE_RUNS, _PROFILE_S = 31, 1.0  # maximum; no new run after so many seconds


class BuildOptions(NamedTuple):
    """Options of a build; all are part of the engine's key."""

    precision: str = "fp32"  # int8, fp8, fp16, bf16, fp32
    profile: tuple[int, int, int] | None = None  # batch: lowest, usual, highest
    workspace_mib: int = 1024  # TensorRT's scratch memory
    optimization_level: int | None = None  # 0..5; None: the SDK's own
    strongly_typed: bool = False


def workspace_mib(memory_bytes: int | None) -> int:
    """Return the default of TensorRT's scratch memory: an eighth of the memory that CPU and GPU share, 1 GiB at most.

    Total memory counts, not free memory: the engine's key must not change from day to day.
    """
    usual = BuildOptions().workspace_mib
    if memory_bytes is None:
        return usual
    part = 1 << (memory_bytes // 8 >> 20).bit_length()  # the next power of two: a 4 GB board reports a little less
    return max(128, min(usual, part))


class Built(NamedTuple):
    """An engine, and the warnings of its build."""

    engine: bytes
    warnings: list[str]
    timing_cache: bytes | None = None


class Session(Protocol):
    """A loaded engine; logits are raw little-endian float32, images too, or uint8.

    Attributes:
        takes_pixels: True: images are uint8 (H, W, C), resized and cropped; else float32 (C, H, W), preprocessed.
        image_shape: Shape of one image; -1 where a side is dynamic.
        classes: Logits per image; -1 where unknown.
        batch: Images per inference if fixed, else None.
        batch_max: Maximum images per inference; None without a limit.
        threads: CPU threads; None on a GPU, and where the runtime does not report them.
    """

    takes_pixels: bool
    image_shape: tuple[int, ...]
    classes: int
    batch: int | None
    batch_max: int | None
    threads: int | None

    def prepare(self, batch: int, transfers: bool, cuda_graph: bool) -> None:
        """Allocate for inferences of `batch` images."""
        ...

    def load(self, images: bytes) -> None:
        """Set the images of the next `step`: exactly the batch that was prepared."""
        ...

    def step(self) -> dict[str, float]:
        """Run one inference; return its milliseconds: wall_ms, and on a GPU gpu_ms, h2d_ms, d2h_ms, enqueue_ms."""
        ...

    def logits(self) -> bytes:
        """Return the logits of the last step."""
        ...

    def layers(self, profile: bool) -> dict[str, Any]:
        """Return the runtime's record of the engine: "layers", "bindings", and with `profile` "times_ms"."""
        ...

    def close(self) -> None:
        """Free all resources."""
        ...


class ArraySession:
    """A session of a runtime with NumPy arrays: a subclass sets the attributes of `Session` and has `run`."""

    takes_pixels: bool
    image_shape: tuple[int, ...]
    batch: int | None
    _images: Any = None
    _logits: Any = None

    def run(self, images: Any) -> Any:
        """Return the logits (N, classes) of N images."""
        raise NotImplementedError

    def prepare(self, batch: int, transfers: bool, cuda_graph: bool) -> None:
        """Allocate the input array."""
        import numpy

        self._images = numpy.zeros((batch, *self.image_shape), "u1" if self.takes_pixels else "f4")

    def load(self, images: bytes) -> None:
        """Copy the images into the input array."""
        import numpy

        self._images[...] = numpy.frombuffer(images, self._images.dtype).reshape(self._images.shape)

    def step(self) -> dict[str, float]:
        """Run one inference."""
        started_s = time.perf_counter()
        self._logits = self.run(self._images)
        return {"wall_ms": (time.perf_counter() - started_s) * 1e3}

    def logits(self) -> bytes:
        """Return the logits of the last step."""
        return bytes(self._logits.astype("<f4").tobytes())

    def run_zeros(self, after_each: Callable[[], object] = lambda: None) -> bool:
        """Run zeros for a profile; return False if a side of the images is dynamic."""
        if min(self.image_shape) < 0:
            return False
        if self._images is None:
            self.prepare(self.batch or 1, False, False)
        started_s = time.perf_counter()
        for _ in range(_PROFILE_RUNS):
            self.step()
            after_each()
            if time.perf_counter() - started_s > _PROFILE_S:
                break
        return True

    def layers(self, profile: bool) -> dict[str, Any]:
        """Return no layers: the runtime does not list them."""
        return {"layers": [], "bindings": [], **({"times_ms": {}} if profile else {})}

    def close(self) -> None:
        """Free nothing: the garbage collector does."""


class Backend(Protocol):
    """One SDK; each module of `backends` has `load(sdk)`, which returns it.

    Attributes:
        name: Name of the target.
        version: Full version of the SDK.
        fake: True for a fake SDK of tests.
        suffix: Suffix of engine files.
        typed_only: True if precision comes only from the types in the graph.
    """

    name: str
    version: str
    fake: bool
    suffix: str
    typed_only: bool

    def rank(self, tree: sysfs.Tree) -> int:
        """Return the preference as this device's default backend; 0: only by name."""
        ...

    def identity(self, tree: sysfs.Tree) -> dict[str, Any]:
        """Return what an engine is bound to besides the graph and the options."""
        ...

    def precisions(self, tree: sysfs.Tree) -> list[str]:
        """Return the precisions that this machine can run."""
        ...

    def build(self, graph: str, options: BuildOptions, timing_cache: bytes, scratch: str) -> Built:
        """Compile an ONNX file; `scratch` is a folder for temporary files."""
        ...

    def open(self, engine: bytes, precision: str, threads: int | None, profile: bool) -> Session:
        """Load an engine."""
        ...

    def open_file(self, file: str, threads: int | None) -> Session:
        """Load a file of the SDK as it is, without a sidecar."""
        ...
