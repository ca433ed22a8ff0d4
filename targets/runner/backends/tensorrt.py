"""TensorRT 8.5 to 11 through one code path, by the attributes that a version has."""

from __future__ import annotations

import ctypes
import importlib
import json
import time
from typing import Any

from .. import facts, output, sysfs
from ..backend import BuildOptions, Built
from ..cuda import Cuda
from ..failures import Failure, from_error, problem

_FLOAT_BYTES = 4
_PROFILE_RUNS = 20


def load(sdk: str | None = None) -> TensorRT:
    """Return the backend over the module `tensorrt`, or one of the same interface.

    Raises:
        Failure: It is absent, broken, or older than 8.5.
    """
    name = sdk or "tensorrt"
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, AttributeError) as error:
        raise from_error(error, doing=f"importing {name}") from error
    if not hasattr(module.ICudaEngine, "num_io_tensors"):
        known = problem("tensorrt-too-old")
        message = f"{name} {module.__version__} has no tensor-name interface (8.5 and later have)"
        raise Failure(known["code"], message, known["cause"], known["cure"])
    return TensorRT(module)


class TensorRT:
    """The device's TensorRT."""

    name, suffix = "tensorrt", ".plan"

    def __init__(self, sdk: Any) -> None:
        self._sdk = sdk
        self._log = _logger(sdk)  # must outlive every object made with it
        self.version = str(sdk.__version__)
        self.fake = bool(getattr(sdk, "__fake__", False))
        self.typed_only = not hasattr(sdk.BuilderFlag, "FP16")  # 11 has no precision flags

    def rank(self, tree: sysfs.Tree) -> int:
        """Prefer TensorRT where there is a GPU."""
        return 4 if self.identity(tree)["sm"] else 0

    def identity(self, tree: sysfs.Tree) -> dict[str, Any]:
        """Return CUDA, SM and module: plans load nowhere else."""
        board = sysfs.jetson(tree) or {}
        try:
            cuda = Cuda()
            version, sm = cuda.version(), cuda.sm()
        except Failure:  # ahead of time, without a GPU
            version, sm = sysfs.cuda_version(tree), board.get("sm")
        return {"sdk_module": self._sdk.__name__, "cuda": version, "sm": sm, "module": board.get("module")}

    def precisions(self, tree: sysfs.Tree) -> list[str]:
        """Return the precisions; INT8 and FP8 need a GPU with their arithmetic, FP8 also strong typing."""
        sm = self.identity(tree)["sm"]
        typed = self.typed_only or hasattr(self._sdk.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        float8 = typed and sm is not None and tuple(map(int, sm.split("."))) >= facts.FP8_SM
        return ["fp32", "fp16"] + ["fp8"] * float8 + ([] if sm in facts.NO_INT8 else ["int8"])

    def build(self, graph: str, options: BuildOptions, timing_cache: bytes, scratch: str) -> Built:
        """Parse and build; the graph is Q/DQ for INT8, so no calibrator is needed on any version."""
        trt, log = self._sdk, self._log
        log.forget()
        builder = _made(trt.Builder(log), log, "creating the builder")
        kinds = trt.NetworkDefinitionCreationFlag
        creation, strong = 0, options.strongly_typed or options.precision == "fp8"  # FP8 by a flag may become FP32
        if hasattr(kinds, "EXPLICIT_BATCH") and _major(trt) < 10:  # from 10 on it is ignored, and warned about
            creation |= 1 << int(kinds.EXPLICIT_BATCH)
        if strong and not self.typed_only:
            if not hasattr(kinds, "STRONGLY_TYPED"):
                raise Failure(
                    "strongly-typed-missing", f"TensorRT {self.version} has no strongly typed networks",
                    "strong typing came with TensorRT 10", "build without --strongly-typed",
                )  # fmt: skip
            creation |= 1 << int(kinds.STRONGLY_TYPED)
        network = _made(builder.create_network(creation), log, "creating the network")
        parser = trt.OnnxParser(network, log)
        with open(graph, "rb") as stream:
            parsed = parser.parse(stream.read())
        if not parsed:
            errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise from_error(RuntimeError(errors or "the parser refused the graph"), log.text(), "parsing the graph")
        log.refuse_unsigned()
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if not (self.typed_only or strong):
            flags = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[options.precision]
            for flag in flags:
                config.set_flag(getattr(trt.BuilderFlag, flag))
        if options.optimization_level is not None and hasattr(trt.IBuilderConfig, "builder_optimization_level"):
            config.builder_optimization_level = options.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector lists only names
        _add_profile(builder, network, config, options.profile)
        cache = self._timing_cache(config, timing_cache)
        plan = _made(builder.build_serialized_network(network, config), log, "building the engine")
        saved = None if cache is None else bytes(config.get_timing_cache().serialize())
        warnings = log.warnings()
        if options.precision in ("fp16", "int8") and (options.strongly_typed or self.typed_only):
            where = "FP16 only where" if options.precision == "fp16" else "FP16, where Q/DQ do not say INT8, only if"
            warnings.append(f"strongly typed: layers run in {where} the graph itself is FP16")
        return Built(bytes(plan), warnings, saved)

    def _timing_cache(self, config: Any, stored: bytes) -> Any:
        try:
            Cuda().sm()  # the timing cache asks the GPU; an ahead-of-time build has none
        except Failure:
            return None
        for content in (stored, b""):  # a cache of another GPU or version is refused: start anew
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, False):
                return cache
        return None

    def open(self, engine: bytes, precision: str, threads: int | None, profile: bool) -> _TensorRTSession:
        """Load a plan."""
        return _TensorRTSession(self._sdk, self._log, engine)

    def open_file(self, file: str, threads: int | None) -> _TensorRTSession:
        """Load the file of a plan."""
        with open(file, "rb") as stream:
            return self.open(stream.read(), "int8", threads, False)


class _TensorRTSession:
    threads = None  # of a CPU

    def __init__(self, sdk: Any, log: Any, plan: bytes) -> None:
        self._sdk, self._log = sdk, log
        log.forget()
        self._cuda = Cuda()
        self._cuda.use_first_device()
        self._runtime = self._engine = self._context = None
        try:
            self._runtime = _made(sdk.Runtime(log), log, "creating the runtime")  # held: the engine needs it
            self._engine = _made(self._runtime.deserialize_cuda_engine(plan), log, "loading the engine")
            self._context = _made(self._engine.create_execution_context(), log, "making room to run: out of memory?")
            self._describe()
        except BaseException:
            self._forget()
            raise
        self._stream = self._cuda.stream()
        self._events = [self._cuda.event() for _ in range(4)]
        self._buffers: list[tuple[int, int]] = []  # (host, device) of input and output
        self._sizes = (0, 0)
        self._graph: tuple[int, int] | None = None
        self._transfers = True

    def _describe(self) -> None:
        """Names, shapes and types of input and output."""
        sdk = self._sdk
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == sdk.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise Failure(
                "engine-interface", f"the engine has inputs {inputs} and outputs {outputs}",
                "a classifier has one input and one output", "export the classifier alone",
            )  # fmt: skip
        self.input, self._output = inputs[0], outputs[0]
        self.takes_pixels = self._engine.get_tensor_dtype(self.input) == sdk.DataType.UINT8
        for name in names:
            kind = self._engine.get_tensor_dtype(name)
            if kind != sdk.DataType.FLOAT and not (name == self.input and self.takes_pixels):
                raise Failure(
                    "engine-interface", f"{name} is {kind}, not FLOAT", "the runner feeds float32 or uint8 images, "
                    "and reads float32 logits", "export with float32 or uint8 input, and float32 output",
                )  # fmt: skip
        shape = tuple(self._engine.get_tensor_shape(self.input))
        self.image_shape, self.batch = shape[1:], None if shape[0] < 0 else shape[0]
        self.batch_max: int | None = self.batch
        if self.batch is None:
            self.batch_max = tuple(self._engine.get_tensor_profile_shape(self.input, 0)[2])[0]
        self.classes = tuple(self._engine.get_tensor_shape(self._output))[-1]

    def prepare(self, batch: int, transfers: bool, cuda_graph: bool) -> None:
        """Allocate for this batch, bind, and capture the CUDA graph if requested."""
        self._release()
        values = batch
        for size in self.image_shape:
            values *= size
        value_bytes = 1 if self.takes_pixels else _FLOAT_BYTES
        self._sizes = (values * value_bytes, batch * self.classes * _FLOAT_BYTES)
        for size_bytes in self._sizes:
            host = self._cuda.host_alloc(size_bytes)
            ctypes.memset(host, 0, size_bytes)
            self._buffers.append((host, self._cuda.malloc(size_bytes)))
        if self.batch is None and not self._context.set_input_shape(self.input, (batch, *self.image_shape)):
            raise from_error(RuntimeError(f"batch {batch} is outside the engine's profile"), self._log.text())
        for name, (_, device) in zip((self.input, self._output), self._buffers):
            self._context.set_tensor_address(name, device)
        self._transfers = transfers
        self.step()  # the first run loads kernels, and a capture needs them loaded
        if cuda_graph:
            self._cuda.begin_capture(self._stream)
            self._enqueue()
            self._graph = self._cuda.end_capture(self._stream)

    def load(self, images: bytes) -> None:
        """Copy the images to page-locked memory, and to the device where steps do not."""
        host, device = self._buffers[0]
        ctypes.memmove(host, images, len(images))
        if not self._transfers:
            self._cuda.copy(device, host, self._sizes[0], self._stream, to_device=True)
            self._cuda.synchronize(self._stream)

    def step(self) -> dict[str, float]:
        """Copy in, compute, copy out; each between two events of the stream."""
        cuda, stream, events = self._cuda, self._stream, self._events
        (host_in, device_in), (host_out, device_out) = self._buffers
        started = time.perf_counter()
        if self._transfers:
            cuda.record(events[0], stream)
            cuda.copy(device_in, host_in, self._sizes[0], stream, to_device=True)
        cuda.record(events[1], stream)
        before = time.perf_counter()
        if self._graph is None:
            self._enqueue()
        else:
            cuda.call("cudaGraphLaunch", self._graph[1], stream)
        enqueued = time.perf_counter()
        cuda.record(events[2], stream)
        if self._transfers:
            cuda.copy(host_out, device_out, self._sizes[1], stream, to_device=False)
            cuda.record(events[3], stream)
        cuda.synchronize(stream)
        wall = time.perf_counter() - started
        times = {
            "wall_ms": wall * 1e3,
            "enqueue_ms": (enqueued - before) * 1e3,
            "gpu_ms": cuda.elapsed_ms(events[1], events[2]),
        }
        if self._transfers:
            times["h2d_ms"] = cuda.elapsed_ms(events[0], events[1])
            times["d2h_ms"] = cuda.elapsed_ms(events[2], events[3])
            times["latency_ms"] = times["h2d_ms"] + times["gpu_ms"] + times["d2h_ms"]
        return times

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise from_error(RuntimeError("TensorRT refused to run the engine"), self._log.text())

    def logits(self) -> bytes:
        """Logits of the last step, fetched from the device where steps do not."""
        host, device = self._buffers[1]
        if not self._transfers:
            self._cuda.copy(host, device, self._sizes[1], self._stream, to_device=False)
            self._cuda.synchronize(self._stream)
        return ctypes.string_at(host, self._sizes[1])

    def layers(self, profile: bool) -> dict[str, Any]:
        """The inspector's record; per-layer times from a run of their own, which timing never uses."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        text = inspector.get_engine_information(self._sdk.LayerInformationFormat.JSON)
        record = json.loads(text, strict=False)  # 8.6 EA writes raw control characters
        found = {
            "layers": record.get("Layers", []),
            "bindings": record.get("Bindings", record.get("I/O Tensors", [])),  # renamed in 11
        }
        if profile:
            profiler = _profiler(self._sdk)
            self._context.profiler = profiler
            for _ in range(_PROFILE_RUNS):
                self.step()
            found["times_ms"] = {name: total / _PROFILE_RUNS for name, total in profiler.totals.items()}
        return found

    def _release(self) -> None:
        if self._graph is not None:
            graph, executable = self._graph
            self._cuda.call("cudaGraphExecDestroy", executable)
            self._cuda.call("cudaGraphDestroy", graph)
            self._graph = None
        for host, device in self._buffers:
            self._cuda.host_free(host)
            self._cuda.free(device)
        self._buffers = []

    def close(self) -> None:
        """Free memory, then everything made with it."""
        self._release()
        for event in self._events:
            self._cuda.call("cudaEventDestroy", event)
        self._cuda.call("cudaStreamDestroy", self._stream)
        self._forget()

    def _forget(self) -> None:
        # In this order: an engine must not outlive its runtime, nor a context its engine.
        self._context = None
        self._engine = None
        self._runtime = None


def _add_profile(builder: Any, network: Any, config: Any, batches: tuple[int, int, int] | None) -> None:
    """The range of a dynamic batch; a dynamic axis without one does not build."""
    image = network.get_input(0)
    shape = tuple(image.shape)
    if min(shape[1:]) < 0:
        raise Failure(
            "network-dynamic", f"{image.name} has shape {shape}", "height, width or channels are dynamic",
            "export with fixed sizes; only the batch may be dynamic",
        )  # fmt: skip
    if shape[0] >= 0:
        return
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, *[(batch, *shape[1:]) for batch in batches or (1, 1, 1)])
    config.add_optimization_profile(profile)


def _made(value: Any, log: Any, doing: str) -> Any:
    """Return a value of TensorRT; None is a failure, whose cause is in the log."""
    if value is None:
        raise from_error(RuntimeError("TensorRT gave nothing back"), log.text(), doing)
    return value


def _major(sdk: Any) -> int:
    return int(str(sdk.__version__).split(".")[0])


def _logger(sdk: Any) -> Any:
    """A logger that keeps errors and warnings, so that failures can be explained."""

    class Logger(sdk.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            sdk.ILogger.__init__(self)
            self._kept: list[tuple[bool, str]] = []

        def log(self, severity: Any, message: str) -> None:
            severities = sdk.ILogger.Severity
            if severity in (severities.INTERNAL_ERROR, severities.ERROR, severities.WARNING):
                self._kept.append((severity != severities.WARNING, message))
                output.log(f"[tensorrt] {message}")

        def forget(self) -> None:
            self._kept.clear()

        def text(self) -> str:
            return "\n".join(message for is_error, message in self._kept if is_error)

        def warnings(self) -> list[str]:
            return [message for is_error, message in self._kept if not is_error]

        def refuse_unsigned(self) -> None:
            # The current parser reads uint8 zero points as int8 with no more than a warning: wrong numbers.
            for message in self.warnings():
                if "uint8" in message.lower():
                    raise from_error(RuntimeError(message), doing="parsing the graph")

    return Logger()


def _profiler(sdk: Any) -> Any:
    class Profiler(sdk.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            sdk.IProfiler.__init__(self)
            self.totals: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, milliseconds: float) -> None:
            self.totals[layer_name] = self.totals.get(layer_name, 0.0) + milliseconds

    return Profiler()
