"""Every row of the reference's table of failures, in its own words and in looser ones."""

# ruff: noqa: E501 (messages stay as they were printed)

import time

import pytest

from edgeship.targets.runner import failures

ROWS = [
    (
        "engine-other-version",
        "The engine plan file is not compatible with this version of TensorRT, expecting library version 8.5.2 got 10.3.0",
    ),
    (
        "engine-other-version",
        "[E] 1: [stdArchiveReader.cpp::StdArchiveReader::32] Error Code 1: Serialization (Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match)",
    ),
    (
        "engine-other-version",
        "Serialization assertion stdVersionRead == serializationVersion failed. Version tag does not match",
    ),
    (
        "engine-other-gpu",
        "The engine plan file is generated on an incompatible device, expecting compute 8.7 got compute 8.6, please rebuild.",
    ),
    ("numpy-too-new", "module 'numpy' has no attribute 'bool'."),
    ("tensorrt-missing", "No module named 'tensorrt'"),
    ("libnvinfer-missing", "libnvinfer.so.10: cannot open shared object file: No such file or directory"),
    ("tensorrt-wrong-wheel", "ERROR: No matching distribution found for tensorrt-cu12"),
    ("tensorrt-too-old", "'tensorrt.tensorrt.ICudaEngine' object has no attribute 'num_io_tensors'"),
    (
        "tensorrt-strongly-typed",
        "type object 'tensorrt_bindings.tensorrt.BuilderFlag' has no attribute 'INT8'",
    ),
    ("out-of-memory", "Killed"),
    ("out-of-memory", "Cuda Runtime (cudaErrorMemoryAllocation): out of memory"),
    (
        "out-of-memory",
        "[E] 2: [virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (no further information)",
    ),
    ("crashed", "Segmentation fault (core dumped)"),
    ("dla-missing", "Cannot create DLA engine, 0 not available"),
    ("cuda-driver", "Cuda failure: 35"),
    ("cuda-driver", "CUDA initialization failure with error: 35"),
    ("cudart-missing", "libcudart.so.12: cannot open shared object file: No such file or directory"),
    (
        "graph-missing-zero-point",
        "This version of TensorRT requires 3 inputs for the DequantizeLinear operator.",
    ),
    (
        "graph-missing-zero-point",
        "TensorRT requires 3 inputs for the INT8 QuantizeLinear/DequantizeLinear operator",
    ),
    ("graph-asymmetric", "TRT only supports symmetric quantization - zeroPt must be all zeros"),
    ("graph-asymmetric", "shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported"),
    ("graph-unsigned", "Found unsupported input type of UINT8: notInvalidType"),
    ("graph-scale", "Scale coefficients must all be positive"),
    ("graph-axis", "K == scaleSize: The number of scales is not equal to the number of output channels"),
    ("graph-int32-bias", "input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8"),
    ("graph-mixed-types", "IConvolutionLayer `input` and `bias` must be of same type"),
    ("graph-operator", "No importer registered for op: QLinearConv"),
    ("network-dynamic", "Network has dynamic or shape inputs, but no optimization profile has been defined."),
    ("disk-full", "[Errno 28] No space left on device"),
    (
        "engine-other-version",
        "[TRT] [E] 1: [stdArchiveReader.cpp::StdArchiveReader::40] Error Code 1: Serialization (Serialization assertion stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current Version: 213, Serialized Engine Version: 205)",
    ),
    ("out-of-memory", "NvMapMemAllocInternalTagged: 1075072515 error 12"),
    (
        "out-of-memory",
        "[TRT] [E] [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (In allocate at common/dispatch/defaultAllocator.cpp:31)",
    ),
    (
        "static-tls",
        "ImportError: /usr/lib/torch.libs/libgomp-d22c30c5.so.1.0.0: cannot allocate memory in static TLS block",
    ),
    (
        "static-tls",
        "OSError: /lib/aarch64-linux-gnu/libGLdispatch.so.0: cannot allocate memory in static TLS block",
    ),
    (
        "libcudla-missing",
        "ImportError: libcudla.so.1: cannot open shared object file: No such file or directory",
    ),
    (
        "libcudla-missing",
        "trtexec: error while loading shared libraries: libcudla.so.1: cannot open shared object file",
    ),
    (
        "libnvdla-missing",
        "ImportError: libnvdla_compiler.so: cannot open shared object file: No such file or directory",
    ),
    ("libnvdla-missing", "[E] [TRT] Unable to load library: libnvdla_compiler.so"),
    (
        "libcudnn-missing",
        "ImportError: libcudnn.so.8: cannot open shared object file: No such file or directory",
    ),
    (
        "libcudnn-missing",
        "Could not load library libcudnn_cnn_infer.so.8. Error: libnvrtc.so: cannot open shared object file",
    ),
    (
        "libnvinfer-missing",
        "ImportError: libnvinfer.so.8: cannot open shared object file: No such file or directory",
    ),
    ("libnvinfer-missing", "\tlibnvinfer_plugin.so.8 => not found"),
    (
        "library-missing",
        "ImportError: libopenblas.so.0: cannot open shared object file: No such file or directory",
    ),
    ("gpu-not-supported", "[TRT] [E] Target GPU SM 110 is not supported by this TensorRT release."),
    ("gpu-not-supported", "Error Code 1: Internal Error (Unsupported SM: 0x807)"),
    ("gpu-not-supported", "no kernel image is available for execution on the device"),
    (
        "no-implementation",
        "[TRT] [E] 10: [optimizer.cpp::computeCosts::3869] Error Code 10: Internal Error (Could not find any implementation for node conv1.weight + QuantizeLinear_7 + Conv_9.)",
    ),
    (
        "workspace-too-small",
        "[E] 10: Could not find any implementation for node {ForeignNode[a...b]} due to insufficient workspace. See verbose log for requested sizes.",
    ),
    ("calibration-table", "[TRT] [E] 2: Calibration table does not match calibrator algorithm type."),
    ("cuda-permission", "NvRmMemInitNvmap failed with Permission denied"),
    ("cuda-driver", "NvRmMemInitNvmap failed with No such file or directory"),
    ("illegal-instruction", "Illegal instruction (core dumped)"),
    ("crashed", "double free or corruption (out)"),
    ("crashed", "malloc(): corrupted top size"),
    (
        "tensorrt-api-removed",
        "'tensorrt_bindings.tensorrt.ICudaEngine' object has no attribute 'num_bindings'",
    ),
    (
        "tensorrt-api-removed",
        "'tensorrt.tensorrt.IExecutionContext' object has no attribute 'execute_async_v2'",
    ),
    (
        "tensorrt-api-removed",
        "'tensorrt.tensorrt.IBuilderConfig' object has no attribute 'max_workspace_size'",
    ),
    ("tensorrt-api-removed", "'tensorrt.tensorrt.ICudaEngine' object has no attribute 'get_binding_index'"),
    ("option-unknown", "[E] Unknown option: --useSpinWait"),
    (
        "shape-outside-profile",
        "Supplied binding dimension [8,3,224,224] for bindings[0] exceed min ~ max range at index 0",
    ),
    (
        "graph-static",
        "[E] Static model does not take explicit shapes since the shape of inference tensors will be determined by the model itself",
    ),
    ("plugin-missing", "[E] [TRT] 3: getPluginCreator could not find plugin: EfficientNMS_TRT version: 1"),
    ("file-not-opened", "[E] Error opening engine file: model.plan"),
    (
        "engine-not-loaded",
        "[E] [TRT] 4: [runtime.cpp::deserializeCudaEngine::50] Error Code 4: Internal Error (Engine deserialization failed.)",
    ),
]


@pytest.mark.parametrize(("code", "message"), ROWS, ids=[f"{code}-{i}" for i, (code, _) in enumerate(ROWS)])
def test_known_messages_get_their_own_cause_and_cure(code, message):
    row = failures.translate(message)
    assert row is not None
    assert row.code == code
    assert row.cause
    assert row.cure


def test_causes_and_cures_are_not_shared_by_accident():
    assert len({row.code for row in failures.TABLE}) == len(failures.TABLE)
    assert len({row.cause for row in failures.TABLE}) == len(failures.TABLE)


@pytest.mark.parametrize(
    ("status", "code"), [(-9, "out-of-memory"), (137, "out-of-memory"), (-11, "crashed"), (139, "crashed")]
)
def test_a_runner_that_died_is_explained_by_its_exit_status(status, code):
    assert failures.translate_exit(status).code == code


def test_ordinary_exits_are_not_explained_as_crashes():
    assert [failures.translate_exit(status) for status in (0, 1, 2, 3, 75, -15, 255)] == [None] * 7


def test_an_unknown_error_says_so_and_keeps_its_words():
    failure = failures.from_error(RuntimeError("the moon is full"))
    assert (failure.code, str(failure)) == ("unknown", "the moon is full")


def test_what_the_sdk_logged_explains_an_error_without_words():
    log = "[builder.cpp] something\nThe engine plan file is generated on an incompatible device, expecting compute 8.7"
    failure = failures.from_error(RuntimeError("TensorRT gave nothing back"), log, "loading the engine")
    assert failure.code == "engine-other-gpu"
    assert "incompatible device" in str(failure)


def test_a_full_disk_is_known_by_its_number_in_any_language():
    failure = failures.from_error(OSError(28, "Auf dem Gerät ist kein Speicherplatz mehr verfügbar"))
    assert failure.code == "disk-full"


HEADER = """&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --loadEngine=model.plan --int8
[11/20/2024-10:00:00] [I] === Build Options ===
[11/20/2024-10:00:00] [I] ONNX kENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA flag: Disabled
[11/20/2024-10:00:01] [W] [TRT] CUDA lazy loading is not enabled. See `CUDA_MODULE_LOADING`
[11/20/2024-10:00:01] [W] [TRT] Tactic Device request: 4096MB. insufficient memory on requested of size 4294967296.
[11/20/2024-10:00:01] [I] [TRT] Scale coefficients must all be positive
"""
TAIL = "&&&& FAILED TensorRT.trtexec [TensorRT v8502] # trtexec --loadEngine=model.plan --int8\n"
LOGS = [
    (None, "", ""),
    (None, "[11/20/2024-10:00:02] [E] the moon is full", "[E] the moon is full"),
    (
        "gpu-not-supported",
        "[11/20/2024-10:00:02] [E] Error[1]: [caskUtils.cpp::trtSmToCask::114] Error Code 1: Internal Error "
        "(Unsupported SM: 0x807)\n[11/20/2024-10:00:02] [E] Inference set up failed",
        "[E] Error[1]: [caskUtils.cpp::trtSmToCask::114] Error Code 1: Internal Error (Unsupported SM: 0x807); "
        "[E] Inference set up failed",
    ),
    (
        "option-unknown",
        "[E] Unknown option: --useSpinWait\n=== Model Options ===\n  --onnx=<file>   ONNX model, UINT8 out of date",
        "[E] Unknown option: --useSpinWait",
    ),
    (
        "engine-other-version",
        "[11/20/2024-10:00:02] [E] Error[1]: Version tag does not match\n[11/20/2024-10:00:02] [E] Error[4]: "
        "[runtime.cpp::deserializeCudaEngine::50] Error Code 4: Internal Error (Engine deserialization failed.)",
        None,
    ),
    (
        "out-of-memory",
        "NvMapMemAllocInternalTagged: 1075072515 error 12\n[E] Engine could not be created",
        None,
    ),
    ("crashed", "Segmentation fault (core dumped)", "Segmentation fault (core dumped)"),
    (
        "graph-scale",
        "2024-11-20 10:00:02.1 [E:onnxruntime:, x.cc] Scale coefficients must all be positive",
        None,
    ),
]


@pytest.mark.parametrize(("code", "body", "quoted"), LOGS, ids=[str(number) for number in range(len(LOGS))])
def test_the_cause_of_a_log_is_in_its_error_lines(code, body, quoted):
    """Option listings, warnings, information and the command line are no errors."""
    log = HEADER + body + "\n" + TAIL
    row = failures.translate(log)
    assert (row.code if row else None) == code
    if quoted is not None:
        assert failures.quote(log) == quoted


def test_an_unknown_error_after_which_nothing_is_known_is_quoted():
    failure = failures.from_error(RuntimeError("no engine"), "first words\nlast words")
    assert failure.code == "unknown"
    assert "no known cause" in failure.cause and failure.cause.endswith("last words")


@pytest.mark.parametrize(
    "word", ["NvMap", "deserialize", "libcudnn", "/dev/nv", "profile ", "[E] ", "Unable to load "]
)
def test_long_logs_are_searched_in_bounded_time(word):
    start = time.process_time()
    failures.translate(word * 200_000)
    failures.translate(f"[E] {word * 3}\n" * 2000)
    assert time.process_time() - start < 5


def test_the_command_line_of_a_log_is_no_error():
    line = "&&&& FAILED TensorRT.trtexec [TensorRT v8502] # trtexec --onnx=truncated.onnx"
    assert failures.translate(line) is None
    assert failures.quote(line) == ""
