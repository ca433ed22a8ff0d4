"""The CUDA runtime through ctypes: only what building, running and timing need."""

from __future__ import annotations

import ctypes
import ctypes.util
import glob
import os
import sys
from typing import Any

from .failures import Failure, translate

_SONAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2")
_FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/aarch64-linux/lib")

_POINTER, _SIZE, _INT, _UNSIGNED = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint
_OUT_POINTER, _OUT_INT = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
SIGNATURES: dict[str, tuple[Any, ...]] = {  # from cuda_runtime_api.h; every one returns cudaError_t
    "cudaGetDeviceCount": (_OUT_INT,),
    "cudaDeviceGetAttribute": (_OUT_INT, _INT, _INT),
    "cudaRuntimeGetVersion": (_OUT_INT,),
    "cudaSetDevice": (_INT,),
    "cudaMalloc": (_OUT_POINTER, _SIZE),
    "cudaFree": (_POINTER,),
    "cudaHostAlloc": (_OUT_POINTER, _SIZE, _UNSIGNED),
    "cudaFreeHost": (_POINTER,),
    "cudaMemcpyAsync": (_POINTER, _POINTER, _SIZE, _INT, _POINTER),
    "cudaStreamCreateWithFlags": (_OUT_POINTER, _UNSIGNED),
    "cudaStreamSynchronize": (_POINTER,),
    "cudaStreamDestroy": (_POINTER,),
    "cudaEventCreateWithFlags": (_OUT_POINTER, _UNSIGNED),
    "cudaEventRecord": (_POINTER, _POINTER),
    "cudaEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER),
    "cudaEventDestroy": (_POINTER,),
    "cudaStreamBeginCapture": (_POINTER, _INT),
    "cudaStreamEndCapture": (_POINTER, _OUT_POINTER),
    # The form with three arguments is the same in CUDA 11.4 to 13; cudaGraphInstantiate itself changed.
    "cudaGraphInstantiateWithFlags": (_OUT_POINTER, _POINTER, ctypes.c_ulonglong),
    "cudaGraphLaunch": (_POINTER, _POINTER),
    "cudaGraphExecDestroy": (_POINTER,),
    "cudaGraphDestroy": (_POINTER,),
}
_TO_DEVICE, _TO_HOST = 1, 2
_NON_BLOCKING, _THREAD_LOCAL_CAPTURE = 1, 1
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapability*: stable, unlike the layout of cudaDeviceProp


class Cuda:
    """libcudart with checked calls; device memory, streams and events are plain integers.

    Raises:
        Failure: No libcudart, or a call that failed, with CUDA's own words.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._library.cudaGetErrorString.argtypes = [ctypes.c_int]
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of SIGNATURES, and raise when it does not return cudaSuccess."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise Failure(
                "cuda-too-old", f"{name} is not in this CUDA runtime", "this CUDA runtime is older than 11.4",
                "run without --cuda-graph, or upgrade to JetPack 5.1",
            ) from None  # fmt: skip
        function.argtypes = list(SIGNATURES[name])
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status != 0:
            words = (self._library.cudaGetErrorString(status) or b"").decode("ascii", "replace")
            message = f"{name}: {words or 'CUDA error'} (cudaError {status})"
            known = translate(message)
            if known is None:
                raise Failure("cuda-error", message, words or "CUDA refused a call", "see the log on stderr")
            raise Failure(known.code, message, known.cause, known.cure)

    def _int(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def _handle(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_void_p()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def version(self) -> str:
        """Version of the runtime, as "12.6"."""
        number = self._int("cudaRuntimeGetVersion")
        return f"{number // 1000}.{number % 1000 // 10}"

    def sm(self) -> str:
        """Compute capability of the first GPU, as "8.7"."""
        if self._int("cudaGetDeviceCount") == 0:
            raise Failure(
                "cuda-driver", "no CUDA-capable device", "CUDA sees no GPU",
                "run on the device itself; in a container, start it with --runtime nvidia",
            )  # fmt: skip
        major, minor = (self._int("cudaDeviceGetAttribute", number, 0) for number in (_MAJOR, _MINOR))
        return f"{major}.{minor}"

    def use_first_device(self) -> None:
        """Make the first GPU current for this thread."""
        self.call("cudaSetDevice", 0)

    def malloc(self, size_bytes: int) -> int:
        """Device memory."""
        return self._handle("cudaMalloc", size_bytes)

    def free(self, pointer: int) -> None:
        """Give device memory back."""
        self.call("cudaFree", pointer)

    def host_alloc(self, size_bytes: int) -> int:
        """Page-locked host memory: what an asynchronous copy needs."""
        return self._handle("cudaHostAlloc", size_bytes, 0)

    def host_free(self, pointer: int) -> None:
        """Give page-locked memory back."""
        self.call("cudaFreeHost", pointer)

    def copy(self, target: int, source: int, size_bytes: int, stream: int, *, to_device: bool) -> None:
        """Copy between host and device, in order of the stream."""
        kind = _TO_DEVICE if to_device else _TO_HOST
        self.call("cudaMemcpyAsync", target, source, size_bytes, kind, stream)

    def stream(self) -> int:
        """A stream of its own: TensorRT loses speed on the default one."""
        return self._handle("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait for all work of a stream."""
        self.call("cudaStreamSynchronize", stream)

    def event(self) -> int:
        """An event that keeps time."""
        return self._handle("cudaEventCreateWithFlags", 0)

    def record(self, event: int, stream: int) -> None:
        """Take the time when the stream comes to this point."""
        self.call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Time between two recorded events that the stream has passed."""
        value = ctypes.c_float()
        self.call("cudaEventElapsedTime", ctypes.byref(value), start, end)
        return value.value

    def begin_capture(self, stream: int) -> None:
        """Record the stream's next work as a graph instead of doing it."""
        self.call("cudaStreamBeginCapture", stream, _THREAD_LOCAL_CAPTURE)

    def end_capture(self, stream: int) -> tuple[int, int]:
        """The captured graph and its executable."""
        graph = ctypes.c_void_p()
        self.call("cudaStreamEndCapture", stream, ctypes.byref(graph))  # the only one that gives its handle last
        return graph.value or 0, self._handle("cudaGraphInstantiateWithFlags", graph.value, 0)


def _load() -> Any:
    names = list(_SONAMES)
    found = ctypes.util.find_library("cudart")
    if found:
        names.append(found)
    for folder in _FOLDERS:
        names += sorted(glob.glob(folder + "/libcudart.so*"), reverse=True)
    for folder in sys.path:  # NVIDIA's wheels
        names += sorted(glob.glob(os.path.join(folder, "nvidia", "*", "lib", "libcudart.so*")), reverse=True)
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    known = translate("no libcudart found")
    assert known is not None
    raise Failure(known.code, "no libcudart found", known.cause, known.cure)
