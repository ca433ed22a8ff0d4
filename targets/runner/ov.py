"""OpenVINO on Intel CPUs; an engine is the compiled model as OpenVINO exports it."""

from __future__ import annotations

import io
import sys
import time
from types import ModuleType
from typing import Any, cast

from . import sysfs
from .backend import BuildOptions, Built
from .failures import Failure, from_error

_PROFILE_RUNS = 20


def load() -> OpenVINO:
    """The backend.

    Raises:
        Failure: OpenVINO is absent.
    """
    # Its telemetry would send an event from a forked process that may hang, and keeps standard output open.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))  # as if not installed
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise from_error(error, doing="importing openvino") from error
    return OpenVINO(openvino)


class OpenVINO:
    """The CPU plug-in."""

    name, suffix = "openvino", ".blob"
    typed_only = False

    def __init__(self, sdk: Any) -> None:
        self._sdk = sdk
        self._core = sdk.Core()
        self.version = str(sdk.get_version())
        self.fake = bool(getattr(sdk, "__fake__", False))

    def identity(self, tree: sysfs.Tree) -> dict[str, Any]:
        """The processor: kernels are chosen by its instruction sets."""
        processor = sysfs.cpu(tree)
        return {"cpu": processor["name"], "instruction_sets": processor["instruction_sets"]}

    def precisions(self, tree: sysfs.Tree) -> list[str]:
        """INT8 runs everywhere; how fast is a matter of instruction sets."""
        return ["fp32", "int8"]

    def build(self, graph: str, options: BuildOptions, timing_cache: bytes, scratch: str) -> Built:
        """Compile for the CPU, and keep what the plug-in exports."""
        try:
            model = self._core.read_model(graph)
            shape = model.input(0).partial_shape
            if options.profile and options.profile[0] == options.profile[2] and shape[0].is_dynamic:
                shape[0] = options.profile[1]
                model.reshape(shape)
            compiled = self._core.compile_model(model, "CPU", _config(options.precision, None))
            exported = compiled.export_model()  # bytes, or a stream of them in newer releases
            return Built(exported.getvalue() if hasattr(exported, "getvalue") else bytes(exported), [])
        except RuntimeError as error:
            raise from_error(error, doing="compiling the graph") from error

    def open(self, engine: bytes, precision: str, threads: int | None, profile: bool) -> _OpenVINOSession:
        """Import a compiled model."""
        config = {**_config(precision, threads), "PERF_COUNT": "YES" if profile else "NO"}
        try:
            compiled = self._core.import_model(io.BytesIO(engine), "CPU", config)
        except RuntimeError as error:
            failure = from_error(error, doing="loading the engine")
            if failure.code in ("unknown", "graph-damaged"):
                raise Failure(
                    "engine-damaged", str(failure), "the engine is damaged, or from another OpenVINO",
                    "delete it and build again",
                ) from error  # fmt: skip
            raise failure from error
        return _OpenVINOSession(self._sdk, compiled)


class _OpenVINOSession:
    def __init__(self, sdk: Any, compiled: Any) -> None:
        import numpy

        self._numpy, self._sdk, self._compiled = numpy, sdk, compiled
        shape, out = compiled.input(0).partial_shape, compiled.output(0).partial_shape
        self.batch = None if shape[0].is_dynamic else shape[0].get_length()
        self.batch_max = self.batch
        self.takes_pixels = compiled.input(0).element_type == sdk.Type.u8
        self.image_shape = tuple(size.get_length() for size in list(shape)[1:])
        self.classes = list(out)[-1].get_length()
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._request = compiled.create_infer_request()
        self._images: Any = None

    def prepare(self, batch: int, transfers: bool, cuda_graph: bool) -> None:
        """Bind an input tensor of this batch."""
        self._images = self._numpy.zeros((batch, *self.image_shape), "u1" if self.takes_pixels else "f4")
        self._request.set_input_tensor(self._sdk.Tensor(self._images, shared_memory=True))

    def load(self, images: bytes) -> None:
        """Write the images into the bound tensor."""
        self._images[...] = self._numpy.frombuffer(images, self._images.dtype).reshape(self._images.shape)

    def step(self) -> dict[str, float]:
        """One synchronous inference."""
        started = time.perf_counter()
        self._request.infer()
        return {"wall_ms": (time.perf_counter() - started) * 1e3}

    def logits(self) -> bytes:
        """Logits of the last step."""
        return bytes(self._request.get_output_tensor(0).data.astype("<f4").tobytes())

    def layers(self, profile: bool) -> dict[str, Any]:
        """Nodes of the runtime model, with the precision each really runs in."""
        nodes = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = {key: str(value.value if hasattr(value, "value") else value) for key, value in node.rt_info.items()}
            nodes.append(
                {
                    "name": node.get_friendly_name(),
                    "type": info.get("layerType"),
                    "precision": info.get("runtimePrecision"),
                    "implementation": info.get("primitiveType"),
                    "onnx": info.get("originalLayersNames"),
                }
            )
        found: dict[str, Any] = {"layers": nodes, "bindings": []}
        if profile:
            totals: dict[str, float] = {}
            for _ in range(_PROFILE_RUNS):
                self.step()
                for item in self._request.profiling_info:
                    totals[item.node_name] = totals.get(item.node_name, 0.0) + item.real_time.total_seconds() * 1e3
            found["times_ms"] = {name: total / _PROFILE_RUNS for name, total in totals.items()}
        return found

    def close(self) -> None:
        """Forget the request before the model."""
        del self._request, self._compiled


def _config(precision: str, threads: int | None) -> dict[str, str]:
    # Without the hint, CPUs with bf16 arithmetic would run the float layers in bf16.
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f16" if precision == "fp16" else "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    return config
