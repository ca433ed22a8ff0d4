"""OpenVINO on CPUs; an engine is the compiled model as OpenVINO exports it."""

from __future__ import annotations

import io
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any, cast

from .. import sysfs
from ..backend import ArraySession, BuildOptions, Built
from ..failures import Failure, from_error
from ..timing import quick_mean

PRECISION_INFO = ("edgeship", "precision")  # place in a file's rt_info of the 16-bit float it is compiled for
HALVES = {"BF16": "bf16", "FP16": "fp16"}  # optimization capability -> precision
HINTS = {"bf16": "bf16", "fp16": "f16"}


def load(sdk: str | None = None) -> OpenVINO:
    """Return the backend.

    Raises:
        Failure: OpenVINO is absent.
    """
    # Its telemetry sends an event from a forked process that may hang, and keeps standard output open.
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = cast(ModuleType, None)  # as if not installed
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise from_error(error, doing="importing openvino") from error
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]
    return OpenVINO(openvino, _core(openvino))


@lru_cache(maxsize=None)
def _core(sdk: ModuleType) -> Any:
    """Return the one Core of the process.

    Its CPU plug-in sets a signal stack and restores the previous one when it is destroyed. Of two Cores that are not
    destroyed in reverse order the second restores freed memory, and the next signal (Ctrl-C) crashes the process.
    """
    return sdk.Core()


class OpenVINO:
    """The CPU plug-in of an OpenVINO Core."""

    name, suffix = "openvino", ".blob"
    typed_only = False

    def __init__(self, sdk: Any, core: Any) -> None:
        self._sdk, self._core = sdk, core
        self.version = str(sdk.get_version())
        self.fake = bool(getattr(sdk, "__fake__", False))

    def rank(self, tree: sysfs.Tree) -> int:
        """Prefer OpenVINO to ONNX Runtime on x86."""
        return 3 if sysfs.machine() in ("x86_64", "AMD64") else 1

    def identity(self, tree: sysfs.Tree) -> dict[str, Any]:
        """Return the processor: its instruction sets determine the kernels."""
        return sysfs.cpu_identity(tree)

    def precisions(self, tree: sysfs.Tree) -> list[str]:
        """Return FP32, INT8, and the 16-bit floats that the CPU computes in."""
        return ["fp32", "int8", *self.halves()]

    def halves(self) -> list[str]:
        """Return the 16-bit floats with arithmetic of this CPU."""
        offered = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return [name for capability, name in HALVES.items() if capability in offered]

    def build(self, graph: str, options: BuildOptions, timing_cache: bytes, scratch: str) -> Built:
        """Compile for the CPU, and export."""
        try:
            model = self._core.read_model(graph)
            shape = model.input(0).partial_shape
            if options.profile and options.profile[0] == options.profile[2] and shape[0].is_dynamic:
                shape[0] = options.profile[1]
                model.reshape(shape)
            exported = self.compile(model, None, options.precision).export_model()
            return Built(exported.getvalue() if hasattr(exported, "getvalue") else bytes(exported), [])
        except RuntimeError as error:
            raise from_error(error, doing="compiling the graph") from error

    def open(self, engine: bytes, precision: str, threads: int | None, profile: bool) -> OpenVINOSession:
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
        return OpenVINOSession(self._sdk, compiled)

    def open_file(self, file: str, threads: int | None) -> OpenVINOSession:
        """Load an OpenVINO IR or an ONNX file."""
        try:
            model = self._core.read_model(file)
            session = OpenVINOSession(self._sdk, self.compile(model, threads))
            if model.has_rt_info("edgeship"):
                stated = model.get_rt_info("edgeship").value
                session.stated = {key: str(getattr(each, "value", each)) for key, each in stated.items()}
            return session
        except RuntimeError as error:
            raise from_error(error, doing=f"loading {file}") from error

    def compile(self, model: Any, threads: int | None, precision: str | None = None, **config: str) -> Any:
        """Return the compiled model of a graph: a model or the path of a file.

        Without a precision it is that of the file: a 16-bit float if it states one, else FP32.
        """
        if isinstance(model, str):
            model = self._core.read_model(model)
        if precision is None:
            stated = list(PRECISION_INFO)
            precision = str(model.get_rt_info(stated).value) if model.has_rt_info(stated) else "fp32"
        return self._core.compile_model(model, "CPU", {**_config(precision, threads), **config})


class OpenVINOSession(ArraySession):
    """A compiled model with one request."""

    def __init__(self, sdk: Any, compiled: Any) -> None:
        self.compiled = compiled
        self.stated: dict[str, str] = {}  # class names and preprocessing of the file
        shape, out = compiled.input(0).partial_shape, compiled.output(0).partial_shape
        self.batch = None if shape[0].is_dynamic else shape[0].get_length()
        self.batch_max = self.batch
        self.takes_pixels = bool(compiled.input(0).element_type == sdk.Type.u8)
        self.image_shape = tuple(_length(size) for size in list(shape)[1:])
        self.classes = -1 if out.rank.is_dynamic else _length(list(out)[-1])
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._request = compiled.create_infer_request()
        self._bound = False  # True: the request reads the prepared array

    def prepare(self, batch: int, transfers: bool, cuda_graph: bool) -> None:
        """Allocate the input array."""
        super().prepare(batch, transfers, cuda_graph)
        self._bound = False

    def run(self, images: Any) -> Any:
        """Run one synchronous inference on the images, without a copy."""
        prepared = images is self._images
        if prepared and self._bound:
            self._request.infer()
        else:
            self._request.infer([images], share_inputs=True)
        self._bound = prepared
        return self._request.get_output_tensor(0).data.copy()

    def metadata(self) -> dict[str, str]:
        """Return the properties under rt_info/edgeship of the file."""
        return self.stated

    def layers(self, profile: bool) -> dict[str, Any]:
        """Return the nodes of the runtime model, with the precision that each runs in."""
        nodes = []
        for node in self.compiled.get_runtime_model().get_ordered_ops():
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
        record: dict[str, Any] = {"layers": nodes, "bindings": []}
        if profile:
            record["times_ms"] = self.times_ms()
        return record

    def times_ms(self) -> dict[str, float]:
        """Return layer -> milliseconds of a model compiled with PERF_COUNT; empty if a side is dynamic."""
        samples: dict[str, list[float]] = {}

        def collect() -> None:
            for item in self._request.profiling_info:
                if item.status == item.Status.EXECUTED:
                    samples.setdefault(item.node_name, []).append(item.real_time.total_seconds() * 1e3)

        self.run_zeros(collect)
        return {name: quick_mean(each) for name, each in samples.items()}

    def close(self) -> None:
        """Free the request before the model."""
        del self._request, self.compiled


def _config(precision: str, threads: int | None) -> dict[str, str]:
    # Without the hint, CPUs with bf16 arithmetic would run the float layers in bf16.
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS.get(precision, "f32")}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    return config


def _length(size: Any) -> int:
    return -1 if size.is_dynamic else int(size.get_length())
