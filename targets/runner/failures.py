"""Every failure of a device that is known, as a cause and a cure."""

from __future__ import annotations

import errno
import re
from typing import Any, NamedTuple


class Failure(Exception):
    """A failure the user can act on; the last line of output carries it."""

    def __init__(self, code: str, message: str, cause: str, cure: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.code, self.cause, self.cure, self.exit_code = code, cause, cure, exit_code

    def to_json(self) -> dict[str, str]:
        """The value of "error" in the last line."""
        return {"code": self.code, "message": str(self), "cause": self.cause, "cure": self.cure}


class Row(NamedTuple):
    """One known failure: `pattern` is searched in what the SDK or the system said."""

    code: str
    pattern: str
    cause: str
    cure: str


_REQUANTIZE = "export the graph with the TensorRT scheme: int8, zero point 0, float bias, axis written"

# The first row that matches wins: specific ones stand above general ones. Vendors reword their
# messages between versions, so the patterns are loose.
TABLE = (
    # Engines are bound to the version and the GPU they were built with.
    Row("engine-other-gpu", r"incompatible device|expecting compute [\d.]+ got compute",
        "the engine was built on another GPU", "rebuild it on this device"),
    Row("engine-other-version",
        r"not compatible with this version of TensorRT|expecting library version|magicTag|[Ss]erialization"
        r"[ _][Vv]ersion|stdVersionRead|safeVersionRead|[Vv]ersion tag does not match",
        "the engine was built by another TensorRT version", "rebuild it on this device"),
    Row("engine-damaged", r"(unexpected end|truncat|corrupt|checksum|CRC).*|deserialize.*(fail|error)",
        "the engine file is cut off or damaged", "delete it and build again"),
    # The Python side.
    Row("numpy-too-new", r"module 'numpy' has no attribute '(bool|object|int|float)'",
        "TensorRT 8.4 or older uses names that numpy 1.24 removed",
        "install numpy below 1.24; this runner itself never calls trt.nptype"),
    Row("tensorrt-wrong-wheel",
        r"wheel_stub|tensorrt[-_]cu1\d.*(x86|platform)|No matching distribution found for tensorrt"
        r"|invalid ELF header|wrong ELF class|cannot open shared object file.*x86"
        r"|libnvinfer[^ ]*: cannot open shared object",
        "a tensorrt from pip hides the device's own: that wheel is for x86 or server machines",
        "pip uninstall tensorrt, then sudo apt install python3-libnvinfer"),
    Row("tensorrt-missing", r"No module named '?tensorrt",
        "this Python cannot see the device's tensorrt, which belongs to the system's Python",
        "use /usr/bin/python3, or make the venv with --system-site-packages; if TensorRT itself is absent: "
        "sudo apt install nvidia-jetpack"),
    Row("openvino-missing", r"No module named '?openvino", "OpenVINO is not installed", "pip install openvino"),
    Row("onnxruntime-missing", r"No module named '?onnxruntime", "ONNX Runtime is not installed",
        "pip install onnxruntime"),
    Row("numpy-missing", r"No module named '?numpy", "this SDK needs numpy",
        "pip install numpy (or apt install python3-numpy)"),
    Row("tensorrt-too-old", r"no attribute '(num_io_tensors|get_tensor_name|execute_async_v3|num_bindings)'",
        "TensorRT 8.4 or older (JetPack 4.6, 5.0) has no tensor-name interface",
        "upgrade to JetPack 5.1 or later, or run the graph with --backend onnxruntime"),
    Row("tensorrt-strongly-typed", r"BuilderFlag.* has no attribute '(INT8|FP16)'|no attribute '(INT8|FP16)'",
        "TensorRT 11 has no INT8 or FP16 flags: types come from the graph",
        "give it the Q/DQ graph (typed FP16 for FP16), without precision flags"),
    # Memory and driver.
    Row("out-of-memory",
        r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|\bKilled\b|[Cc]annot allocate memory|bad_alloc"
        r"|MemoryError|cuMemAlloc|insufficient memory",
        "the device ran out of memory, which CPU and GPU share on a Jetson",
        "build with a smaller --workspace-mib, stop the desktop (sudo systemctl isolate multi-user.target), "
        "close other programs, or add swap"),
    Row("dla-missing", r"Cannot create DLA engine|DLA core.*not (available|valid)|num_DLA_cores.*0",
        "this module has no DLA (Orin Nano and Thor have none)", "build for the GPU"),
    Row("cuda-driver",
        r"cudaErrorInsufficientDriver|driver version is insufficient|CUDA initialization failure"
        r"|cudaErrorNoDevice|no CUDA-capable device|[Cc]uda failure: 35|error(?: code)?:? 35\b|cudaError 35",
        "there is no GPU here that this CUDA runtime can use",
        "run on the device itself; in a container, start it with --runtime nvidia; after an upgrade, reboot"),
    Row("cuda-permission", r"NvRmMemInit|nvmap.*[Pp]ermission denied|/dev/nv\w*.*[Pp]ermission denied",
        "this user may not use the GPU", "sudo usermod -aG video,render $USER, then log in again"),
    Row("cudart-missing", r"libcudart[^ ]*: cannot open shared object|no libcudart found",
        "the CUDA runtime library was not found",
        "sudo apt install nvidia-jetpack (or set LD_LIBRARY_PATH to CUDA's lib64)"),
    # Graphs that the parser refuses.
    Row("graph-missing-zero-point", r"requires 3 inputs for the (INT8 )?(De)?[Qq]uantize",
        "TensorRT 8 wants a zero point at every Q and DQ", _REQUANTIZE),
    Row("graph-asymmetric", r"only supports symmetric quantization|Non-zero zero point|shiftIsAllZeros",
        "the graph has zero points other than 0", _REQUANTIZE),
    Row("graph-unsigned", r"notInvalidType|UINT8|[Uu]nsigned.*[Qq]uantiz", "the graph has uint8 tensors",
        _REQUANTIZE),
    Row("graph-scale", r"[Ss]cale coefficients must all be positive|scale.*(positive|must be >)",
        "a scale is 0 or negative", _REQUANTIZE),
    Row("graph-axis", r"K == scaleSize|number of scales is not equal",
        "per-channel scales stand on the wrong axis, or the axis is not written", _REQUANTIZE),
    Row("graph-int32-bias", r"has type Int32 but must have type", "the bias is quantized to int32", _REQUANTIZE),
    Row("graph-mixed-types", r"must be of same type|must have same (data )?type",
        "FP16 and FP32 tensors meet in one layer", "type data, scales, weights and bias alike"),
    Row("graph-operator", r"No importer registered for op|[Uu]nsupported op|not supported operator"
        r"|Failed to find kernel|NOT_IMPLEMENTED|is not a registered function/op|doesn't support operator",
        "the runtime has no kernel for an operator of the graph", "export with opset 17 or lower, without "
        "integer operators (QLinearConv, ConvInteger): Q and DQ instead"),
    Row("graph-opset", r"[Uu]nsupported (model )?(IR|opset)|opset.*(not supported|is under development|greater)"
        r"|Unsupported model IR version",
        "the graph is newer than this runtime", "export with opset 17 (13 for TensorRT 8.2), or upgrade"),
    Row("graph-damaged", r"[Pp]rotobuf parsing failed|INVALID_PROTOBUF|[Ff]ailed to parse (the )?(ONNX|model)"
        r"|ModelProto does not have a graph|No graph was found|Model.*is not valid ONNX|not a(n)? valid (ONNX|model)"
        r"|Unable to read the model|Failed to load model",
        "the graph file is cut off, or is no ONNX file", "upload it again and compare its sha256"),
    Row("int8-flag-missing", r"int8 is not configured in the builder|[Ii]nt8 precision has been set",
        "a Q/DQ graph was built without INT8", "build it with --precision int8"),
    Row("network-dynamic", r"optimization profile|dynamic (or shape )?inputs?.*profile",
        "the graph has a dynamic batch and no range for it", "build with --profile MIN:OPT:MAX"),
    # Files.
    Row("disk-full", r"No space left on device|ENOSPC|[Dd]isk quota exceeded", "the disk is full",
        "free space: remove old releases and engines"),
    Row("illegal-instruction", r"[Ii]llegal instruction|SIGILL",
        "a library uses instructions that this processor lacks: on a Jetson mostly numpy's OpenBLAS",
        "export OPENBLAS_CORETYPE=ARMV8 in the login shell, or install another numpy"),
    Row("crashed", r"[Ss]egmentation fault|SIGSEGV|core dumped",
        "the SDK crashed: often a logger or runtime object that was freed too early, or a driver of another "
        "version than the libraries", "run `probe` and compare the versions; reinstall with apt after an upgrade"),
    Row("first-run-slow", r"lazy loading|CUDA_MODULE_LOADING",
        "kernels are loaded at their first use, so the first runs are slow",
        "warm up before serving; CUDA_MODULE_LOADING=LAZY (CUDA 11.7 and later) lowers memory"),
)


def translate(text: str) -> Row | None:
    """The known failure that a message tells of."""
    for row in TABLE:
        if re.search(row.pattern, text):
            return row
    return None


def translate_exit(status: int) -> Row | None:
    """The known failure behind the exit status of a runner that ended without its last line.

    Args:
        status: As `subprocess` gives it (-9) or as a shell does (137).
    """
    signal = -status if status < 0 else status - 128
    words = {4: "Illegal instruction", 9: "Killed", 11: "Segmentation fault", 6: "core dumped", 7: "core dumped"}
    return translate(words[signal]) if signal in words else None


def from_error(error: BaseException, said: str = "", doing: str = "") -> Failure:
    """Any exception as a failure: translated where it is known, marked unknown where it is not.

    Args:
        error: What was raised.
        said: What the SDK logged before; searched as well, and quoted when nothing else helps.
        doing: What was attempted, for the message.
    """
    if isinstance(error, Failure):
        return error
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = "No space left on device: " + message
    if isinstance(error, MemoryError):
        message = "out of memory"
    known = translate(f"{type(error).__name__}: {message}") or translate(said)
    if known is not None and translate(message) is None and said:
        message = said.strip().splitlines()[-1]
    message = f"{doing}: {message}" if doing else message
    if known is not None:
        return Failure(known.code, message, known.cause, known.cure)
    if isinstance(error, FileNotFoundError):
        return Failure("file-missing", message, f"there is no file {error.filename}", "check the path")
    if isinstance(error, OSError):
        return Failure("file-unusable", message, "the system refused the file", "check path and permissions")
    unknown = f"{type(error).__name__}: {error}; not in the list of known failures"
    cause = said.strip().splitlines()[-1] if said.strip() else unknown
    return Failure("unknown", message, cause, "read the log on stderr; run `probe` for what the device lacks")


def problem(row_code: str, **more: Any) -> dict[str, Any]:
    """A row as an entry of a probe's "problems"."""
    row = next(row for row in TABLE if row.code == row_code)
    return {"code": row.code, "cause": row.cause, "cure": row.cure, **more}
