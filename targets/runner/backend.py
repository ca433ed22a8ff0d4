"""What every backend offers, so that commands need not know which SDK runs below."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, Protocol

from . import sysfs
from .failures import Failure


class BuildOptions(NamedTuple):
    """What a build may be told; everything here is part of the engine's key."""

    precision: str = "fp32"  # int8, fp16, fp32
    profile: tuple[int, int, int] | None = None  # batch: lowest, usual, highest
    workspace_mib: int = 1024  # TensorRT's scratch memory
    optimization_level: int | None = None  # 0..5; None: the SDK's own
    strongly_typed: bool = False


def workspace_mib(memory_bytes: int | None) -> int:
    """TensorRT's scratch memory unless told otherwise: an eighth of a board with 4 GB, which CPU and GPU share.

    Only the whole memory counts, not what is free now: the engine's key must not change from day to day.
    """
    usual = BuildOptions().workspace_mib
    if memory_bytes is None:
        return usual
    part = 1 << (memory_bytes // 8 >> 20).bit_length()  # the power of two above: boards have a little less than sold
    return max(128, min(usual, part))


class Built(NamedTuple):
    """An engine and what was said while it was built."""

    engine: bytes
    warnings: list[str]
    timing_cache: bytes | None = None


class Session(Protocol):
    """A loaded engine; logits are raw little-endian float32, images too, or uint8.

    Attributes:
        takes_pixels: Whether images are uint8 (H, W, C), resized and cropped; else float32 (C, H, W), ready.
        image_shape: Of one image.
        classes: Logits an image.
        batch: Images an inference when that is fixed; None when it can be chosen.
        batch_max: The most images an inference takes; None when there is no limit.
        threads: CPU threads it runs with; None on a GPU, and where the runtime keeps that to itself.
    """

    takes_pixels: bool
    image_shape: tuple[int, ...]
    classes: int
    batch: int | None
    batch_max: int | None
    threads: int | None

    def prepare(self, batch: int, transfers: bool, cuda_graph: bool) -> None:
        """Make ready for inferences of `batch` images."""
        ...

    def load(self, images: bytes) -> None:
        """Set the images of the next `step`: exactly the batch that was prepared."""
        ...

    def step(self) -> dict[str, float]:
        """One inference, in milliseconds: wall_ms, and on a GPU gpu_ms, h2d_ms, d2h_ms, enqueue_ms."""
        ...

    def logits(self) -> bytes:
        """Logits of the last step."""
        ...

    def layers(self, profile: bool) -> dict[str, Any]:
        """What the runtime tells of the engine: "layers", "bindings"."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Backend(Protocol):
    """One SDK.

    Attributes:
        name: tensorrt, openvino or onnxruntime.
        version: Version of the SDK, in full.
        fake: Whether the SDK is a fake for tests.
        suffix: Of engine files.
        typed_only: Whether precision comes from the types of the graph alone, and from no option.
    """

    name: str
    version: str
    fake: bool
    suffix: str
    typed_only: bool

    def identity(self, tree: sysfs.Tree) -> dict[str, Any]:
        """What an engine is bound to besides the graph and the options."""
        ...

    def precisions(self, tree: sysfs.Tree) -> list[str]:
        """What this machine can run."""
        ...

    def build(self, graph: str, options: BuildOptions, timing_cache: bytes, scratch: str) -> Built:
        """Compile an ONNX file; `scratch` is a folder for temporary files."""
        ...

    def open(self, engine: bytes, precision: str, threads: int | None, profile: bool) -> Session:
        """Load an engine."""
        ...


_MODULES = {"tensorrt": "trt", "openvino": "ov", "onnxruntime": "ort"}
NAMES = tuple(_MODULES)


def load(name: str, sdk: str | None = None) -> Backend:
    """The backend of that name, its SDK imported.

    Args:
        name: One of NAMES.
        sdk: Module to import in place of `tensorrt`.

    Raises:
        ImportError, Failure: The SDK is absent or too old.
    """
    if name not in _MODULES:
        raise Failure("backend-unknown", f"no backend named {name}", "the name is misspelt", ", ".join(NAMES))
    module: Any = importlib.import_module(f".{_MODULES[name]}", __package__)
    backend: Backend = module.load(sdk or name) if name == "tensorrt" else module.load()
    return backend
