"""ONNX Runtime on CPUs; an engine is the graph as its optimizer left it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from typing import Any

from .. import sysfs
from ..backend import ArraySession, BuildOptions, Built
from ..failures import from_error
from ..timing import quick_mean

_SUFFIX = "_kernel_time"
_ERRORS_ONLY = 3  # errors also arrive as exceptions


def load(sdk: str | None = None) -> OnnxRuntime:
    """Return the backend.

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

    def rank(self, tree: sysfs.Tree) -> int:
        """Prefer ONNX Runtime on other CPUs than x86."""
        return 2

    def identity(self, tree: sysfs.Tree) -> dict[str, Any]:
        """Return the processor: it determines the layout of the weights."""
        return sysfs.cpu_identity(tree)

    def precisions(self, tree: sysfs.Tree) -> list[str]:
        """Return all: INT8 runs on every CPU."""
        return ["fp32", "int8"]

    def build(self, graph: str, options: BuildOptions, timing_cache: bytes, scratch: str) -> Built:
        """Optimize for this processor; the engine is the optimized graph."""
        file = os.path.join(scratch, "optimized.onnx")
        try:
            self.session(graph, None, "all", optimized_model_filepath=file)
        except Exception as error:  # its exception classes share no base but Exception
            raise from_error(error, doing="optimizing the graph") from error
        with open(file, "rb") as stream:
            return Built(stream.read(), [])

    def open(self, engine: bytes, precision: str, threads: int | None, profile: bool) -> OnnxRuntimeSession:
        """Load an optimized graph as it is."""
        try:
            return OnnxRuntimeSession(self.session(engine, threads, "disable_all", profile=profile), threads)
        except Exception as error:
            raise from_error(error, doing="loading the engine") from error

    def open_file(self, file: str, threads: int | None) -> OnnxRuntimeSession:
        """Load an ONNX file with all optimizations."""
        try:
            return OnnxRuntimeSession(self.session(file, threads), threads)
        except Exception as error:
            raise from_error(error, doing=f"loading {file}") from error

    def session(
        self, graph: str | bytes, threads: int | None, level: str = "all", exact: bool = False, profile: bool = False,
        **more: Any,
    ) -> Any:  # fmt: skip
        """Return an InferenceSession.

        Args:
            graph: Path or content of an ONNX file.
            threads: CPU threads; None: all.
            level: Optimization level: all, extended or disable_all.
            exact: Run every Q and DQ in float arithmetic, without fusion.
            profile: Write a profile into a temporary folder.
            more: Attributes of SessionOptions.
        """
        settings = self._sdk.SessionOptions()
        settings.log_severity_level = _ERRORS_ONLY
        settings.graph_optimization_level = getattr(
            self._sdk.GraphOptimizationLevel, f"ORT_{level if level == 'disable_all' else 'enable_' + level}".upper()
        )
        if threads is not None:
            settings.intra_op_num_threads = threads
        if exact:
            settings.add_session_config_entry("session.disable_quant_qdq", "1")
        if profile:
            settings.enable_profiling = True
            settings.profile_file_prefix = os.path.join(tempfile.mkdtemp(), "profile")
        for name, value in more.items():
            setattr(settings, name, value)
        return self._sdk.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


class OnnxRuntimeSession(ArraySession):
    """An InferenceSession of a classifier."""

    def __init__(self, session: Any, threads: int | None) -> None:
        self._session, self.threads = session, threads
        image, logits = session.get_inputs()[0], session.get_outputs()[0]
        self._name = image.name
        self.batch = image.shape[0] if isinstance(image.shape[0], int) else None
        self.batch_max = self.batch
        self.takes_pixels = image.type == "tensor(uint8)"
        self.image_shape = tuple(size if isinstance(size, int) else -1 for size in image.shape[1:])
        self.classes = logits.shape[-1] if logits.shape and isinstance(logits.shape[-1], int) else -1

    def run(self, images: Any) -> Any:
        """Run one inference."""
        return self._session.run(None, {self._name: images})[0]

    def metadata(self) -> dict[str, str]:
        """Return the metadata_props of the graph."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def layers(self, profile: bool) -> dict[str, Any]:
        """Return the kernels in the runtime's profile; there is no other listing."""
        nodes, samples = {}, {}
        for name, runs in self.kernels().items():
            arguments = runs[0].get("args", {})
            types = [next(iter(item)) for item in arguments.get("input_type_shape", [])]
            nodes[name] = {"name": name, "type": arguments.get("op_name"), "input_types": types}
            samples[name] = quick_mean([run["dur"] / 1e3 for run in runs])
        return {"layers": list(nodes.values()), "bindings": [], **({"times_ms": samples} if profile else {})}

    def kernels(self) -> dict[str, list[dict[str, Any]]]:
        """Return kernel -> events of the profile, which is ended; empty if a side of the images is dynamic."""
        complete = self.run_zeros()
        path = self._session.end_profiling()
        with open(path, encoding="utf-8", errors="replace") as stream:
            events = _events(stream.read())
        shutil.rmtree(os.path.dirname(path))
        kernels: dict[str, list[dict[str, Any]]] = {}
        for event in events if complete else ():
            if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
                kernels.setdefault(event["name"][: -len(_SUFFIX)], []).append(event)
        return kernels

    def close(self) -> None:
        """Free the session."""
        del self._session


def _events(text: str) -> list[dict[str, Any]]:
    """Return the events of a profile; empty, so that times stay unknown, if it is no JSON.

    Releases before 1.24 write names of nodes without JSON's escapes.
    """
    for candidate in (text, text.replace("\\", "\\\\")):
        try:
            events: list[dict[str, Any]] = json.loads(candidate, strict=False)
        except ValueError:
            continue
        return events
    return []
