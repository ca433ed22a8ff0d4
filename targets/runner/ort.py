"""ONNX Runtime on any other CPU; an engine is the graph as its optimizer left it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from typing import Any

from . import sysfs
from .backend import BuildOptions, Built
from .failures import from_error

_PROFILE_RUNS = 20
_ERRORS_ONLY = 3
_PROVIDERS = ["CPUExecutionProvider"]


def load() -> OnnxRuntime:
    """The backend.

    Raises:
        Failure: ONNX Runtime is absent.
    """
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise from_error(error, doing="importing onnxruntime") from error
    return OnnxRuntime(onnxruntime)


class OnnxRuntime:
    """The CPU execution provider."""

    name, suffix = "onnxruntime", ".onnx"
    typed_only = False

    def __init__(self, sdk: Any) -> None:
        self._sdk = sdk
        self.version = str(sdk.__version__)
        self.fake = bool(getattr(sdk, "__fake__", False))

    def identity(self, tree: sysfs.Tree) -> dict[str, Any]:
        """The processor: the optimizer lays weights out for it."""
        processor = sysfs.cpu(tree)
        return {"cpu": processor["name"], "instruction_sets": processor["instruction_sets"]}

    def precisions(self, tree: sysfs.Tree) -> list[str]:
        """INT8 runs everywhere."""
        return ["fp32", "int8"]

    def build(self, graph: str, options: BuildOptions, timing_cache: bytes, scratch: str) -> Built:
        """Optimize for this processor, and keep the optimized graph."""
        settings = self._settings(None)
        settings.optimized_model_filepath = os.path.join(scratch, "optimized.onnx")
        settings.graph_optimization_level = self._sdk.GraphOptimizationLevel.ORT_ENABLE_ALL
        try:
            self._sdk.InferenceSession(graph, settings, providers=_PROVIDERS)
        except Exception as error:  # its exception classes share no base but Exception
            raise from_error(error, doing="optimizing the graph") from error
        with open(settings.optimized_model_filepath, "rb") as stream:
            return Built(stream.read(), [])

    def open(self, engine: bytes, precision: str, threads: int | None, profile: bool) -> _OnnxRuntimeSession:
        """Load an optimized graph as it is."""
        settings = self._settings(threads)
        settings.graph_optimization_level = self._sdk.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile:
            settings.enable_profiling = True
            settings.profile_file_prefix = os.path.join(tempfile.mkdtemp(), "profile")
        try:
            session = self._sdk.InferenceSession(engine, settings, providers=_PROVIDERS)
        except Exception as error:
            raise from_error(error, doing="loading the engine") from error
        return _OnnxRuntimeSession(session, threads)

    def _settings(self, threads: int | None) -> Any:
        settings = self._sdk.SessionOptions()
        settings.log_severity_level = _ERRORS_ONLY
        if threads is not None:
            settings.intra_op_num_threads = threads
        return settings


class _OnnxRuntimeSession:
    def __init__(self, session: Any, threads: int | None) -> None:
        import numpy

        self._numpy, self._session, self.threads = numpy, session, threads
        image, logits = session.get_inputs()[0], session.get_outputs()[0]
        self._name = image.name
        self.batch = image.shape[0] if isinstance(image.shape[0], int) else None
        self.batch_max = self.batch
        self.takes_pixels = image.type == "tensor(uint8)"
        self.image_shape = tuple(image.shape[1:])
        self.classes = logits.shape[-1]
        self._images: Any = None
        self._logits: Any = None

    def prepare(self, batch: int, transfers: bool, cuda_graph: bool) -> None:
        """Make the input array of this batch."""
        self._images = self._numpy.zeros((batch, *self.image_shape), "u1" if self.takes_pixels else "f4")

    def load(self, images: bytes) -> None:
        """Write the images into the input array."""
        self._images[...] = self._numpy.frombuffer(images, self._images.dtype).reshape(self._images.shape)

    def step(self) -> dict[str, float]:
        """One inference."""
        started = time.perf_counter()
        self._logits = self._session.run(None, {self._name: self._images})[0]
        return {"wall_ms": (time.perf_counter() - started) * 1e3}

    def logits(self) -> bytes:
        """Logits of the last step."""
        return bytes(self._logits.astype("<f4").tobytes())

    def layers(self, profile: bool) -> dict[str, Any]:
        """Kernels as the runtime's profile lists them; there is no other listing."""
        for _ in range(_PROFILE_RUNS):
            self.step()
        path = self._session.end_profiling()
        with open(path, encoding="utf-8") as stream:
            events = json.load(stream)
        os.remove(path)
        os.rmdir(os.path.dirname(path))
        nodes: dict[str, dict[str, Any]] = {}
        times: dict[str, float] = {}
        for event in events:
            arguments = event.get("args", {})
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"][: -len("_kernel_time")]
                types = [next(iter(item)) for item in arguments.get("input_type_shape", [])]
                nodes[name] = {"name": name, "type": arguments.get("op_name"), "input_types": types}
                times[name] = times.get(name, 0.0) + event["dur"] / 1e3 / _PROFILE_RUNS
        found: dict[str, Any] = {"layers": list(nodes.values()), "bindings": []}
        if profile:
            found["times_ms"] = times
        return found

    def close(self) -> None:
        """Forget the session."""
        del self._session
