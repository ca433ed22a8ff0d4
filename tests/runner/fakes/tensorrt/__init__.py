"""A FAKE of TensorRT's Python interface: it checks argument types and call order; it uses no GPU.

EDGESHIP_FAKE_TENSORRT chooses the recorded interface (8.2, 8.5, 8.6, 10.3, 10.13, 11), EDGESHIP_FAKE_SM
the GPU, EDGESHIP_FAKE_LOG a file that receives every call. Importing it also puts a fake libcudart in
place. What exists in which version follows python/src/infer of NVIDIA's open source branches.
"""

import json
import os
import weakref
from enum import IntEnum

from tensorrt import _cudart, _graph

__fake__ = True
_API = os.environ.get("EDGESHIP_FAKE_TENSORRT", "10.3")
__version__ = {
    "8.2": "8.2.1",
    "8.5": "8.5.2",
    "8.6": "8.6.2",
    "10.3": "10.3.0.30",
    "10.13": "10.13.3.9",
    "11": "11.4.1",
}[_API]
_AT = tuple(int(part) for part in _API.split("."))
_SM = os.environ.get("EDGESHIP_FAKE_SM", "8.7")
_MAGIC = b"FAKE-PLAN"


def _take(value, kind, what):
    """As pybind11: an argument of another type is a TypeError, and a bool is no int."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise TypeError(f"{what}: incompatible function arguments: {type(value).__name__}")
    return value


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self):
        self.constructed = True  # pybind11 refuses objects whose base was never constructed


def _logger(log):
    _take(log, ILogger, "logger")
    if not getattr(log, "constructed", False):
        raise TypeError("ILogger.__init__() must be called when overriding __init__")
    return weakref.ref(log)


def _say(log, severity, message):
    alive = log()
    if alive is None:
        raise SystemError("crash: the logger was freed while TensorRT still used it")
    alive.log(severity, message)


class DataType(IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8 = range(6)


class TensorIOMode(IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class MemoryPoolType(IntEnum):
    WORKSPACE, DLA_MANAGED_SRAM = range(2)


class ProfilingVerbosity(IntEnum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class LayerInformationFormat(IntEnum):
    ONELINE, JSON = range(2)


_FLAGS = {"GPU_FALLBACK": 3, "REFIT": 4}
if _AT < (11,):
    _FLAGS.update({"FP16": 0, "INT8": 1})
_FLAGS.update({"TF32": 7, "SPARSE_WEIGHTS": 8} if _AT < (10,) else {"TF32": 6, "SPARSE_WEIGHTS": 7})
if _AT >= (8, 6):
    _FLAGS["VERSION_COMPATIBLE"] = 15 if _AT < (10,) else 13 if _AT < (11,) else 12
BuilderFlag = IntEnum("BuilderFlag", _FLAGS)
_CREATION = {} if _AT >= (11,) else {"EXPLICIT_BATCH": 0}
if _AT >= (10,):
    _CREATION["STRONGLY_TYPED"] = 1
NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", _CREATION)


class IHostMemory:
    """Gives its bytes through the buffer protocol; here, through __bytes__ alone."""

    def __init__(self, data):
        self._data = data

    def __bytes__(self):
        return self._data

    @property
    def nbytes(self):
        return len(self._data)


class ITimingCache:
    def __init__(self, origin):
        self.origin = origin

    def serialize(self):
        return IHostMemory(b"FAKE-TIMING " + self.origin.encode())


class ITensor:
    def __init__(self, name, shape):
        self.name, self.shape = name, tuple(shape)


class INetworkDefinition:
    def __init__(self, builder, flags):
        self.builder, self.flags, self.graph = builder, flags, None

    def get_input(self, index):
        return ITensor("images", self.graph.shape) if _take(index, int, "get_input") == 0 else None


class ParserError:
    def __init__(self, text):
        self._text = text

    def desc(self):
        return self._text


class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._log, self._errors = (
            _take(network, INetworkDefinition, "network"),
            _logger(logger),
            [],
        )

    def parse(self, model):
        _take(model, bytes, "parse")
        _cudart.note("parse")
        try:
            self._network.graph = _graph.read(model)
        except ValueError as error:
            self._errors.append(ParserError(str(error)))
            return False
        for message in self._network.graph.warnings:
            _say(self._log, ILogger.Severity.WARNING, message)
        return True

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        self.shapes[_take(input, str, "set_shape")] = [tuple(min), tuple(opt), tuple(max)]


class IBuilderConfig:
    def __init__(self):
        self._limits, self._flags, self._cache, self.profiles = {}, set(), None, []
        self._verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    if _AT >= (8, 6):

        @property
        def builder_optimization_level(self):
            return 3

        @builder_optimization_level.setter
        def builder_optimization_level(self, level):
            if not 0 <= _take(level, int, "builder_optimization_level") <= 5:
                raise ValueError("builder_optimization_level is 0 to 5")
            _cudart.note("builder_optimization_level", level)

    @property
    def profiling_verbosity(self):
        return self._verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, verbosity):
        self._verbosity = _take(verbosity, ProfilingVerbosity, "profiling_verbosity")

    def set_memory_pool_limit(self, pool, size):
        _take(pool, MemoryPoolType, "pool")
        self._limits[pool] = _take(size, int, "pool_size")
        _cudart.note("set_memory_pool_limit", size)

    def set_flag(self, flag):
        self._flags.add(_take(flag, BuilderFlag, "flag"))
        _cudart.note("set_flag", flag.name)

    def create_timing_cache(self, data):
        _take(data, bytes, "create_timing_cache")
        return ITimingCache(data[len(b"FAKE-TIMING ") :].decode() or f"{__version__} {_SM}")

    def set_timing_cache(self, cache, ignore_mismatch):
        _take(cache, ITimingCache, "cache")
        _take(ignore_mismatch, bool, "ignore_mismatch")
        fits = cache.origin == f"{__version__} {_SM}"
        _cudart.note("set_timing_cache", fits)
        self._cache = cache if fits else self._cache
        return fits

    def get_timing_cache(self):
        return self._cache

    def add_optimization_profile(self, profile):
        self.profiles.append(_take(profile, IOptimizationProfile, "profile"))
        return len(self.profiles) - 1


class Builder:
    def __init__(self, logger):
        self._log = _logger(logger)

    def create_network(self, flags=0):
        _take(flags, int, "flags")
        if _AT < (10,) and not flags & 1:
            raise ValueError("implicit batch: the ONNX parser needs EXPLICIT_BATCH")
        if _AT >= (10,) and flags & 1:
            raise DeprecationWarning("EXPLICIT_BATCH is ignored from TensorRT 10 on")
        _cudart.note("create_network", flags)
        return INetworkDefinition(self, flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        _take(network, INetworkDefinition, "network")
        _take(config, IBuilderConfig, "config")
        _cudart.note("build_serialized_network")
        graph, error = network.graph, ILogger.Severity.ERROR
        strong = _AT >= (11,) or bool(network.flags & 2)
        if graph is None:
            return _say(self._log, error, "Network must have at least one output")
        if graph.fault == "build":
            return _say(self._log, error, graph.message)
        if strong and _AT < (11,) and config._flags:
            return _say(self._log, error, "precision flags are not allowed in strongly typed networks")
        if graph.quantized and not strong and BuilderFlag.INT8 not in config._flags:
            return _say(
                self._log,
                error,
                "Int8 precision has been set for a layer but int8 is not configured in the builder",
            )
        if graph.shape[0] < 0 and not config.profiles:
            return _say(
                self._log,
                error,
                "Network has dynamic or shape inputs, but no optimization profile has been defined.",
            )
        batches = [shape[0] for shape in config.profiles[0].shapes["images"]] if config.profiles else None
        detailed = config._verbosity == ProfilingVerbosity.DETAILED
        header = {"version": __version__, "sm": _SM, "batches": batches, "detailed": detailed}
        return IHostMemory(_MAGIC + json.dumps(header).encode() + b"\n" + graph.data)


class Runtime:
    def __init__(self, logger):
        self._log = _logger(logger)
        self.engines = weakref.WeakSet()

    def deserialize_cuda_engine(self, plan):
        _take(plan, bytes, "serialized_engine")
        head, line, graph = plan[len(_MAGIC) :].partition(b"\n")
        error = ILogger.Severity.ERROR
        if not plan.startswith(_MAGIC) or not line:
            return _say(
                self._log, error, "Assertion magicTag failed: the engine plan file is corrupt or truncated"
            )
        header = json.loads(head)
        if header["version"] != __version__:
            return _say(
                self._log,
                error,
                "The engine plan file is not compatible with this version of "
                "TensorRT, "
                f"expecting library version {header['version']} got {__version__}",
            )
        if header["sm"] != _SM:
            return _say(
                self._log,
                error,
                "The engine plan file is generated on an "
                "incompatible device, expecting "
                f"compute {_SM} got compute {header['sm']}, please rebuild.",
            )
        engine = ICudaEngine(self, _graph.read(graph), header)
        self.engines.add(engine)
        return engine

    def __del__(self):
        if len(self.engines):
            _cudart.complain("the runtime was destroyed before its engine")


class ICudaEngine:
    def __init__(self, runtime, graph, header):
        self._runtime, self.graph, self._header = weakref.ref(runtime), graph, header
        self.contexts = weakref.WeakSet()

    def __del__(self):
        if len(self.contexts):
            _cudart.complain("the engine was destroyed before its context")

    def _alive(self):
        if self._runtime() is None:
            raise SystemError("crash: the runtime was freed while its engine was used")

    def create_execution_context(self):
        self._alive()
        if self.graph.fault == "context":
            return _say(self._runtime()._log, ILogger.Severity.ERROR, self.graph.message)
        context = IExecutionContext(self)
        self.contexts.add(context)
        return context

    def create_engine_inspector(self):
        return EngineInspector(self._header)

    if _AT >= (8, 5):
        num_io_tensors = 2

        def get_tensor_name(self, index):
            return ("images", "logits")[_take(index, int, "index")]

        def get_tensor_mode(self, name):
            return TensorIOMode.INPUT if _take(name, str, "name") == "images" else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return DataType.UINT8 if name == "images" and self.graph.unsigned else DataType.FLOAT

        def get_tensor_shape(self, name):
            return self.graph.shape if name == "images" else (self.graph.shape[0], self.graph.classes)

        def get_tensor_profile_shape(self, name, profile_index):
            if self._header["batches"] is None:
                return []
            return [(batch, *self.graph.shape[1:]) for batch in self._header["batches"]]


class EngineInspector:
    execution_context = None

    def __init__(self, header):
        self._header = header

    def get_engine_information(self, format):
        _take(format, LayerInformationFormat, "format")
        layers = ["fake conv"]
        if self._header["detailed"]:
            layers = [
                {"Name": "fake conv", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Int8"}]}
            ]
            layers[0]["Metadata"] = "[ONNX Layer: a]\x1e[ONNX Layer: b]"
        bindings = "I/O Tensors" if _AT >= (11,) else "Bindings"
        return json.dumps({"Layers": layers, bindings: ["images", "logits"]}).replace(
            "\\u001e", "\x1e"
        )  # as 8.6 EA


class IProfiler:
    def __init__(self):
        self.constructed = True


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._addresses, self._batch = weakref.ref(engine), {}, None
        self._batch = engine.graph.shape[0] if engine.graph.shape[0] > 0 else None
        self._profiler = None

    @property
    def profiler(self):
        return self._profiler

    @profiler.setter
    def profiler(self, profiler):
        if not _take(profiler, IProfiler, "profiler").constructed:
            raise TypeError("IProfiler.__init__() must be called")
        self._profiler = profiler

    def _graph(self):
        engine = self._engine()
        if engine is None:
            raise SystemError("crash: the engine was freed while its context was used")
        engine._alive()
        return engine

    if _AT >= (8, 5):

        def set_input_shape(self, name, shape):
            engine = self._graph()
            _take(name, str, "name")
            low, _, high = engine._header["batches"] or [self._batch] * 3
            if tuple(shape[1:]) != tuple(engine.graph.shape[1:]) or not low <= shape[0] <= high:
                _say(
                    engine._runtime()._log,
                    ILogger.Severity.ERROR,
                    f"shape {shape} is outside the optimization profile",
                )
                return False
            self._batch = _take(shape[0], int, "shape")
            return True

        def set_tensor_address(self, name, memory):
            _take(name, str, "name")
            _take(memory, int, "memory")
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle):
            engine = self._graph()
            _take(stream_handle, int, "stream_handle")
            if self._batch is None or set(self._addresses) != {"images", "logits"}:
                _say(
                    engine._runtime()._log,
                    ILogger.Severity.ERROR,
                    "not all input shapes and tensor addresses are set",
                )
                return False
            _cudart.note("execute_async_v3")
            graph, batch, profiler = engine.graph, self._batch, self._profiler
            source, target = self._addresses["images"], self._addresses["logits"]

            def work():
                images = _cudart.device_read(source, (1 if graph.unsigned else 4) * batch * graph.pixels)
                _cudart.device_write(target, graph.run(images, batch))
                if profiler is not None:
                    profiler.report_layer_time("fake conv", _cudart.COMPUTE_MS)

            return _cudart.enqueue(stream_handle, work, _cudart.COMPUTE_MS)
