"""A FAKE of libcudart behind ctypes.CDLL: declared C types, handles, memory bounds, call order are checked.

Time is made up: a stream's clock advances by COMPUTE_MS for an inference, by COPY_MS_PER_BYTE for copies.
"""

import atexit
import ctypes
import json
import os
from pathlib import Path

COMPUTE_MS, COPY_MS_PER_BYTE = 0.5, 1e-6
_INVALID_VALUE, _INVALID_HANDLE, _NOT_READY, _CAPTURING = 1, 400, 600, 900
_TYPES = {
    "p": ctypes.c_void_p,
    "z": ctypes.c_size_t,
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "L": ctypes.c_ulonglong,
    "P": ctypes.POINTER(ctypes.c_void_p),
    "I": ctypes.POINTER(ctypes.c_int),
    "F": ctypes.POINTER(ctypes.c_float),
}
_HEADER = {  # cuda_runtime_api.h
    "cudaGetDeviceCount": "I",
    "cudaDeviceGetAttribute": "Iii",
    "cudaRuntimeGetVersion": "I",
    "cudaSetDevice": "i",
    "cudaMalloc": "Pz",
    "cudaFree": "p",
    "cudaHostAlloc": "Pzu",
    "cudaFreeHost": "p",
    "cudaMemcpyAsync": "ppzip",
    "cudaStreamCreateWithFlags": "Pu",
    "cudaStreamSynchronize": "p",
    "cudaStreamDestroy": "p",
    "cudaEventCreateWithFlags": "Pu",
    "cudaEventRecord": "pp",
    "cudaEventElapsedTime": "Fpp",
    "cudaEventDestroy": "p",
    "cudaStreamBeginCapture": "pi",
    "cudaStreamEndCapture": "pP",
    "cudaGraphInstantiateWithFlags": "PpL",
    "cudaGraphLaunch": "pp",
    "cudaGraphExecDestroy": "p",
    "cudaGraphDestroy": "p",
    "cudaGetErrorString": "i",
}
_handles = {}  # handle -> object; what is left at the end has leaked
_log = os.environ.get("EDGESHIP_FAKE_LOG")


def note(name, *values):
    """Append a call to the log that tests read."""
    if _log:
        with Path(_log).open("a") as stream:
            stream.write(json.dumps([name, *values]) + "\n")


def complain(what):
    """Record a mistake that the real library would answer with a crash or silence."""
    note("MISTAKE", what)


class _Memory:
    def __init__(self, size, on_device):
        self.buffer, self.size, self.on_device = ctypes.create_string_buffer(size), size, on_device


class _Stream:
    def __init__(self):
        self.clock_ms, self.synchronized_ms, self.capture = 0.0, 0.0, None


class _Event:
    stream, at_ms = None, None


class _Work(list):
    """A captured graph: (function, duration in ms)."""


def _add(thing):
    handle = (
        ctypes.addressof(thing.buffer)
        if isinstance(thing, _Memory)
        else 0x5000 + 16 * (len(_handles) + next(_serial))
    )
    _handles[handle] = thing
    return handle


def _counter():
    number = 0
    while True:
        yield number
        number += 7


_serial = _counter()


def _get(handle, kind):
    thing = _handles.get(getattr(handle, "value", handle))
    return thing if isinstance(thing, kind) else None


def _inside(pointer, size, on_device):
    return any(
        handle <= pointer and pointer + size <= handle + thing.size
        for handle, thing in _handles.items()
        if isinstance(thing, _Memory) and thing.on_device == on_device
    )


def device_read(pointer, size):
    """Bytes of device memory, which must have been allocated."""
    if not _inside(pointer, size, True):
        raise SystemError(f"illegal memory access: {size} bytes at {pointer:#x}")
    return ctypes.string_at(pointer, size)


def device_write(pointer, data):
    """Write device memory, which must have been allocated."""
    if not _inside(pointer, len(data), True):
        raise SystemError(f"illegal memory access: {len(data)} bytes at {pointer:#x}")
    ctypes.memmove(pointer, data, len(data))


def enqueue(handle, work, duration_ms):
    """Do or capture a piece of work on a stream; False without such a stream."""
    stream = _get(handle, _Stream)
    if stream is None:
        complain("work on a stream that is none (or the default one)")
        return False
    if stream.capture is not None:
        stream.capture.append((work, duration_ms))
    else:
        work()
        stream.clock_ms += duration_ms
    return True


def _create(kind):
    def function(out, *_):
        out._obj.value = _add(kind())
        return 0

    return function


def _destroy(kind):
    def function(handle):
        return 0 if _get(handle, kind) is not None and _handles.pop(handle) else _INVALID_HANDLE

    return function


def _number(value):
    def function(out, *_):
        out._obj.value = value
        return 0

    return function


def _attribute(out, attribute, device):
    major, minor = os.environ.get("EDGESHIP_FAKE_SM", "8.7").split(".")
    if device != 0 or attribute not in (75, 76):
        return _INVALID_VALUE
    out._obj.value = int(major if attribute == 75 else minor)
    return 0


def _allocate(on_device):
    def function(out, size, *_):
        if size <= 0:
            return _INVALID_VALUE
        if size > int(os.environ.get("EDGESHIP_FAKE_MEMORY", 1 << 30)):
            return 2  # cudaErrorMemoryAllocation
        out._obj.value = _add(_Memory(size, on_device))
        return 0

    return function


def _free(on_device):
    def function(pointer):
        thing = _get(pointer, _Memory)
        if thing is None or thing.on_device != on_device:
            return _INVALID_VALUE
        del _handles[pointer]
        return 0

    return function


def _copy(target, source, size, kind, stream):
    if kind not in (1, 2) or not _inside(target, size, kind == 1) or not _inside(source, size, kind == 2):
        return _INVALID_VALUE
    done = enqueue(stream, lambda: ctypes.memmove(target, source, size), size * COPY_MS_PER_BYTE)
    return 0 if done else _INVALID_HANDLE


def _synchronize(handle):
    stream = _get(handle, _Stream)
    if stream is None:
        return _INVALID_HANDLE
    if stream.capture is not None:
        return _CAPTURING
    stream.synchronized_ms = stream.clock_ms
    return 0


def _record(event, stream):
    event, stream = _get(event, _Event), _get(stream, _Stream)
    if event is None or stream is None:
        return _INVALID_HANDLE
    event.stream, event.at_ms = stream, stream.clock_ms
    return 0


def _elapsed(out, start, end):
    start, end = _get(start, _Event), _get(end, _Event)
    if start is None or end is None or start.at_ms is None or end.at_ms is None:
        return _INVALID_HANDLE
    if end.at_ms > end.stream.synchronized_ms:
        return _NOT_READY
    out._obj.value = end.at_ms - start.at_ms
    return 0


def _begin(handle, mode):
    stream = _get(handle, _Stream)
    if stream is None or stream.capture is not None or mode not in (0, 1, 2):
        return _INVALID_VALUE
    stream.capture = _Work()
    return 0


def _end(handle, out):
    stream = _get(handle, _Stream)
    if stream is None or not stream.capture:
        return _INVALID_VALUE
    out._obj.value, stream.capture = _add(stream.capture), None
    return 0


def _instantiate(out, graph, _):
    work = _get(graph, _Work)
    if work is None:
        return _INVALID_VALUE
    out._obj.value = _add(_Work(work))
    return 0


def _launch(executable, handle):
    note("cudaGraphLaunch")
    work = _get(executable, _Work)
    if work is None:
        return _INVALID_HANDLE
    return (
        0
        if all(enqueue(handle, function, duration_ms) for function, duration_ms in work)
        else _INVALID_HANDLE
    )


_WORDS = {2: b"out of memory", _NOT_READY: b"device not ready"}
_DO = {
    "cudaGetDeviceCount": _number(1),
    "cudaDeviceGetAttribute": _attribute,
    "cudaRuntimeGetVersion": _number(12060),
    "cudaSetDevice": lambda device: 0 if device == 0 else _INVALID_VALUE,
    "cudaMalloc": _allocate(True),
    "cudaFree": _free(True),
    "cudaHostAlloc": _allocate(False),
    "cudaFreeHost": _free(False),
    "cudaMemcpyAsync": _copy,
    "cudaStreamCreateWithFlags": _create(_Stream),
    "cudaStreamSynchronize": _synchronize,
    "cudaStreamDestroy": _destroy(_Stream),
    "cudaEventCreateWithFlags": _create(_Event),
    "cudaEventRecord": _record,
    "cudaEventElapsedTime": _elapsed,
    "cudaEventDestroy": _destroy(_Event),
    "cudaStreamBeginCapture": _begin,
    "cudaStreamEndCapture": _end,
    "cudaGraphInstantiateWithFlags": _instantiate,
    "cudaGraphLaunch": _launch,
    "cudaGraphExecDestroy": _destroy(_Work),
    "cudaGraphDestroy": _destroy(_Work),
    "cudaGetErrorString": lambda status: _WORDS.get(status, b"fake CUDA error"),
}


class _Function:
    """A C function: refuses to be called before its types are declared as the header has them."""

    argtypes, restype = None, ctypes.c_int

    def __init__(self, name):
        self._name = name

    def __call__(self, *arguments):
        wanted = [_TYPES[letter] for letter in _HEADER[self._name]]
        result = ctypes.c_char_p if self._name == "cudaGetErrorString" else ctypes.c_int
        if self.argtypes != wanted or self.restype is not result:
            raise TypeError(
                f"{self._name}: declared {self.argtypes} -> {self.restype}, the header has {wanted}"
            )
        if len(arguments) != len(wanted):
            raise TypeError(f"{self._name} takes {len(wanted)} arguments ({len(arguments)} given)")
        for value, kind in zip(arguments, wanted):  # noqa: B905 (also runs on Python 3.8)
            kind.from_param(value)  # TypeError (ArgumentError in ctypes) where C would read nonsense
        return _DO[self._name](*arguments)


class _Library:
    def __init__(self):
        self._functions = {name: _Function(name) for name in _HEADER}

    def __getattr__(self, name):
        try:
            return self._functions[name]
        except KeyError:
            raise AttributeError(f"undefined symbol: {name}") from None


def _report_leaks():
    for thing in _handles.values():
        complain(f"leaked: {type(thing).__name__}")


_real_cdll = ctypes.CDLL
_library = _Library()


def _fake_cdll(name, *arguments, **options):
    return _library if name and "libcudart" in str(name) else _real_cdll(name, *arguments, **options)


ctypes.CDLL = _fake_cdll
atexit.register(_report_leaks)
