"""Known failures on a device: error message -> cause and cure."""

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
    """A known failure; `pattern` is searched in each error line of the SDK or the system."""

    code: str
    pattern: str
    cause: str
    cure: str


_CONTAINER = "; in a container: start it with --runtime nvidia, with an image made for this JetPack"
_REQUANTIZE = "export the graph with the TensorRT scheme: int8, zero point 0, float bias, axis written"


def _missing(library: str) -> str:
    """Return the pattern of messages about a shared library that is not found."""
    return (rf"\b{library}[^ ]*: (cannot open shared object|.*No such file|not found)|{library}[^ ]* => not found"
            r"|([Uu]nable|[Cc]ould not|[Ff]ailed) (to )?(load|open|find) (shared |dynamic )?(library|object)?:?.{0,3}"
            + library)  # fmt: skip


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
    Row("engine-damaged",
        r"^(?!.*(double free|malloc\(|corrupted size)).*(unexpected end|truncat|corrupt|checksum|CRC\b)",
        "the engine file is cut off or damaged", "delete it and build again"),
    # The Python side.
    Row("numpy-too-new", r"module 'numpy' has no attribute '(bool|object|int|float)'",
        "TensorRT 8.4 or older uses names that numpy 1.24 removed",
        "install numpy below 1.24; this runner itself never calls trt.nptype"),
    Row("tensorrt-wrong-wheel",
        r"wheel_stub|tensorrt[-_]cu1\d.*(x86|platform)|No matching distribution found for tensorrt"
        r"|invalid ELF header|wrong ELF class|cannot open shared object file.*x86",
        "a tensorrt from pip hides the device's own: that wheel is for x86 or server machines",
        "pip uninstall tensorrt, then sudo apt install python3-libnvinfer"),
    # Shared libraries; libnvinfer.so.N where the JetPack has another N.
    Row("static-tls", r"static TLS block",
        "libgomp was loaded too late: the space for thread-local data is used up",
        "load it first: export LD_PRELOAD=/usr/lib/aarch64-linux-gnu/libgomp.so.1 (or the file in the message)"),
    Row("libnvdla-missing", _missing("libnvdla_compiler"), "the DLA compiler is not installed",
        "sudo apt install nvidia-l4t-dla-compiler" + _CONTAINER),
    Row("libcudla-missing", _missing("libcudla"), "the CUDA library of the DLA is not installed",
        "sudo apt install libcudla-12-6 (JetPack 6; libcudla-11-4 for JetPack 5)" + _CONTAINER),
    Row("libcudnn-missing", _missing("libcudnn"), "cuDNN is missing, or is another major version",
        "sudo apt install nvidia-cudnn (JetPack's own)" + _CONTAINER),
    Row("libnvinfer-missing", _missing("lib(nvinfer|nvonnxparser|nvparsers)"),
        "TensorRT's library is missing or is another major version: the program was made for another JetPack, a "
        "tensorrt from pip hides the device's own, or the container has no GPU runtime",
        "use the system's python3 with python3-libnvinfer (pip uninstall tensorrt), rebuild for this JetPack, or "
        "sudo apt install tensorrt" + _CONTAINER),
    Row("tensorrt-missing", r"No module named '?tensorrt",
        "this Python cannot see the device's tensorrt, which belongs to the system's Python",
        "use /usr/bin/python3, or make the venv with --system-site-packages; if TensorRT itself is absent: "
        "sudo apt install nvidia-jetpack"),
    Row("openvino-missing", r"No module named '?openvino", "OpenVINO is not installed", "pip install openvino"),
    Row("onnxruntime-missing", r"No module named '?onnxruntime", "ONNX Runtime is not installed",
        "pip install onnxruntime"),
    Row("numpy-missing", r"No module named '?numpy", "this SDK needs numpy",
        "pip install numpy (or apt install python3-numpy)"),
    Row("tensorrt-too-old", r"no attribute '(num_io_tensors|get_tensor_name|execute_async_v3|set_tensor_address)'",
        "TensorRT 8.4 or older (JetPack 4.6, 5.0) has no tensor-name interface",
        "upgrade to JetPack 5.1 or later, or run the graph with --backend onnxruntime"),
    Row("tensorrt-api-removed",
        r"no attribute '(num_bindings|get_binding_\w+|binding_is_input|set_binding_shape|all_binding_\w+"
        r"|execute_async(_v2)?|execute|build_engine|build_cuda_engine|max_workspace_size|max_batch_size"
        r"|has_implicit_batch_dimension|get_profile_shape\w*|EXPLICIT_BATCH)'",
        "the script uses an interface that TensorRT 10 or 11 removed",
        "use tensor names (num_io_tensors, set_tensor_address, execute_async_v3) and build_serialized_network"),
    Row("tensorrt-strongly-typed", r"BuilderFlag.* has no attribute '(INT8|FP16)'|no attribute '(INT8|FP16)'",
        "TensorRT 11 has no INT8 or FP16 flags: types come from the graph",
        "give it the Q/DQ graph (typed FP16 for FP16), without precision flags"),
    # Memory and driver.
    Row("out-of-memory",
        r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|\bKilled\b|[Cc]annot allocate memory|bad_alloc"
        r"|MemoryError|cuMemAlloc|insufficient memory|NvMap\w*:?.*\berror 12\b|defaultAllocator\.cpp"
        r"|Cuda Runtime \(In allocate",
        "the device ran out of memory, which CPU and GPU share on a Jetson",
        "build with a smaller --workspace-mib, stop the desktop (sudo systemctl isolate multi-user.target), "
        "close other programs, or add swap"),
    Row("workspace-too-small", r"insufficient workspace|workspace (is|size is)? ?too small",
        "no kernel of a layer fits in the workspace",
        "build with a larger --workspace-mib (trtexec: --memPoolSize=workspace:MIB)"),
    Row("no-implementation", r"[Cc]ould not find any implementation for node",
        "no kernel could be built or timed for a layer: too little memory or workspace, or a type or shape that this "
        "GPU and TensorRT have no kernel for",
        "close other programs and build with a larger --workspace-mib; else run trtexec --verbose on that layer"),
    Row("gpu-not-supported",
        r"SM:? ?(0x)?\w+ is not supported|Unsupported SM|trtSmToCask|no kernel image is available"
        r"|GPU .*not supported by this TensorRT",
        "this TensorRT has no kernels for this GPU",
        "install the TensorRT of the device's own JetPack, or one that lists this GPU"),
    Row("calibration-table", r"[Cc]alibration (table|cache).*(does not match|algorithm|mismatch|different)",
        "the calibration cache was written by another calibration algorithm",
        "delete the cache and calibrate again, or use the calibrator named in its first line"),
    Row("dla-missing", r"Cannot create DLA engine|DLA core.*not (available|valid)|num_DLA_cores.*0",
        "this module has no DLA (Orin Nano and Thor have none)", "build for the GPU"),
    Row("cuda-driver",
        r"cudaErrorInsufficientDriver|driver version is insufficient|CUDA initialization failure"
        r"|cudaErrorNoDevice|no CUDA-capable device|[Cc]uda failure: 35|error(?: code)?:? 35\b|cudaError 35"
        r"|NvRmMemInit\w* failed with (?![Pp]ermission)",
        "there is no GPU here that this CUDA runtime can use",
        "run on the device itself; in a container, start it with --runtime nvidia; after an upgrade, reboot"),
    Row("cuda-permission",
        r"NvRmMem\w*.*[Pp]ermission denied|nvmap.*[Pp]ermission denied|/dev/nv\w*.*[Pp]ermission denied",
        "this user may not use the GPU", "sudo usermod -aG video,render $USER, then log in again"),
    Row("cudart-missing", r"libcudart[^ ]*: cannot open shared object|no libcudart found",
        "the CUDA runtime library was not found",
        "sudo apt install nvidia-jetpack (or set LD_LIBRARY_PATH to CUDA's lib64)"),
    # Graphs that the parser refuses.
    Row("graph-missing-zero-point", r"requires 3 inputs for the (INT8 )?(De)?[Qq]uantize",
        "TensorRT 8 requires a zero point at every Q and DQ", _REQUANTIZE),
    Row("graph-asymmetric", r"only supports symmetric quantization|Non-zero zero point|shiftIsAllZeros",
        "the graph has zero points other than 0", _REQUANTIZE),
    Row("graph-unsigned", r"notInvalidType|\bUINT8\b|[Uu]nsigned.*[Qq]uantiz", "the graph has uint8 tensors",
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
    Row("ir-damaged", r"in bin file|bin file cannot be found|pugi::status_ok|xml_deserialize_util|[Ff]ailed to read IR",
        "model.xml or model.bin of OpenVINO is missing or cut off, or they are of two models",
        "copy both files of the engine again"),
    Row("int8-flag-missing", r"int8 is not configured in the builder|[Ii]nt8 precision has been set",
        "a Q/DQ graph was built without INT8", "build it with --precision int8"),
    Row("network-dynamic",
        r"no optimization profile|profile .*(missing|not (been )?(defined|set))|dynamic (or shape )?inputs?.*profile",
        "the graph has a dynamic batch and no range for it", "build with --profile MIN:OPT:MAX"),
    Row("shape-outside-profile",
        r"min ?~ ?max range|outside the engine's profile|[Ss]upplied (binding )?dim|dimension in profile",
        "the batch is outside the range that the engine was built for",
        "use a batch of that range, or build with --profile MIN:OPT:MAX"),
    Row("graph-static", r"[Ss]tatic model does not take explicit shapes",
        "the graph has a fixed batch, and shapes were given", "leave out --shapes and --profile"),
    Row("plugin-missing", r"could not find plugin|[Pp]lugin (creator )?not found|getPluginCreator",
        "the graph needs a plugin that is not loaded",
        "load its library (trtexec --staticPlugins=FILE), or export the graph without it"),
    Row("option-unknown", r"[Uu]nknown option|[Uu]nrecognized (option|argument)",
        "this version of the tool does not have that option", "leave it out, or see the tool's --help"),
    Row("file-not-opened", r"([Cc]ould not|[Ff]ailed to|[Ee]rror) open(ing)?( the)?( engine)? file",
        "the tool could not open a file", "check its path and permissions"),
    # Files.
    Row("disk-full", r"No space left on device|ENOSPC|[Dd]isk quota exceeded", "the disk is full",
        "free space: remove old releases and engines"),
    Row("illegal-instruction", r"[Ii]llegal instruction|SIGILL",
        "a library uses instructions that this processor lacks: on a Jetson mostly numpy's OpenBLAS",
        "export OPENBLAS_CORETYPE=ARMV8 in the login shell, or install another numpy"),
    # General ones: what stands above explains them where both are logged.
    Row("library-missing", r"lib[\w.+-]+: cannot open shared object file",
        "a shared library is not installed, or not on the search path",
        "install its package (apt-file search NAME), or set LD_LIBRARY_PATH" + _CONTAINER),
    Row("engine-not-loaded", r"deserializ\w*.*([Ff]ail|[Ee]rror)",
        "the engine could not be loaded, and no error names the reason", "delete it and build again on this device"),
    Row("crashed", r"[Ss]egmentation fault|SIGSEGV|core dumped|double free|malloc\(\)|corrupted size",
        "the SDK crashed: often a logger or runtime object that was freed too early, or a driver of another "
        "version than the libraries", "run `probe` and compare the versions; reinstall with apt after an upgrade"),
)
_SEVERITY = re.compile(r"(?:^|\s)\[([EFIWVD])[\]:]|^(ERROR|FATAL|WARNING|INFO|VERBOSE|DEBUG)\b", re.MULTILINE)
_SYSTEM = re.compile(
    r"^NvMap|^NvRm|^Killed|Segmentation fault|[Ii]llegal instruction|core dumped|cannot open shared object"
    r"|static TLS|bad_alloc|terminate called|what\(\):|^\w*(Error|Exception): |No space left|[Pp]ermission denied"
    r"|out of memory|double free|malloc\(\)"
)
_LINES, _CHARACTERS = 20000, 1000  # searched at most


def error_lines(text: str) -> list[str]:
    """Return the lines of a log that report errors, without option listings, warnings and command lines.

    Args:
        text: A message, whose lines all count, or a log with severities ("[E]", "[W]", "ERROR:"). Of a log, lines of
            severity E and F count, and lines of the system and of Python, which have no severity.
    """
    lines = [line.strip()[:_CHARACTERS] for line in text.split("\n")[-_LINES:]]
    lines = [line for line in lines if line and not line.startswith("&&&&")]
    marks = [_SEVERITY.search(line) for line in lines]
    if not any(marks):
        return lines
    return [
        line for line, mark in zip(lines, marks)
        if (mark is None and _SYSTEM.search(line)) or (mark is not None and (mark[1] or mark[2])[0] in "EF")
    ]  # fmt: skip


def last_error(text: str) -> str:
    """Return the last error line of a log, without its time stamp; empty where there is none."""
    lines = error_lines(text)
    return re.sub(r"^(\[[\d/: -]+\]\s*)+", "", lines[-1]) if lines else ""


def _match(text: str) -> tuple[Row, str] | None:
    lines = error_lines(text)
    return next(((row, line) for row in TABLE for line in lines if re.search(row.pattern, line)), None)


def translate(text: str) -> Row | None:
    """Return the known failure of a message or a log."""
    match = _match(text)
    return match[0] if match else None


def quote(text: str) -> str:
    """Return the error line that `translate` explains, and the last one."""
    match, last = _match(text), last_error(text)
    first = last_error(match[1]) if match else ""
    return first if last in first or not last else f"{first}; {last}" if first else last


def translate_exit(status: int) -> Row | None:
    """Return the known failure of the exit status of a runner that ended without its last line.

    Args:
        status: As `subprocess` gives it (-9) or as a shell does (137).
    """
    signal = -status if status < 0 else status - 128
    words = {4: "Illegal instruction", 9: "Killed", 11: "Segmentation fault", 6: "core dumped", 7: "core dumped"}
    return translate(words[signal]) if signal in words else None


def from_error(error: BaseException, logged: str = "", doing: str = "") -> Failure:
    """Return an exception as a failure: translated where it is known, marked unknown where it is not.

    Args:
        error: The exception.
        logged: Errors logged by the SDK before; searched as well, and quoted where no cause is known.
        doing: The action that failed, for the message.
    """
    if isinstance(error, Failure):
        return error
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = "No space left on device: " + message
    if isinstance(error, MemoryError):
        message = "out of memory"
    known = translate(f"{type(error).__name__}: {message}") or translate(logged)
    if known is not None and translate(message) is None and logged:
        message = quote(logged)
    message = f"{doing}: {message}" if doing else message
    if known is not None:
        return Failure(known.code, message, known.cause, known.cure)
    if isinstance(error, FileNotFoundError):
        return Failure("file-missing", message, f"there is no file {error.filename}", "check the path")
    if isinstance(error, OSError):
        return Failure("file-unusable", message, "the system refused the file", "check path and permissions")
    last = last_error(logged) or f"{type(error).__name__}: {error}"
    return Failure("unknown", message, f"no known cause; the last error is: {last}", "read the log on stderr; run `probe` for what the device lacks")


def problem(row_code: str, **more: Any) -> dict[str, Any]:
    """Return a row as an entry of a probe's "problems"."""
    row = next(row for row in TABLE if row.code == row_code)
    return {"code": row.code, "cause": row.cause, "cure": row.cure, **more}
