"""Every row of the reference's table of failures, in its own words and in looser ones."""

# ruff: noqa: E501 (messages stay as they were printed)

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
    ("tensorrt-wrong-wheel", "libnvinfer.so.10: cannot open shared object file: No such file or directory"),
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
    (
        "first-run-slow",
        "CUDA lazy loading is not enabled. Enabling it can significantly reduce device memory usage.",
    ),
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
    said = "[builder.cpp] something\nThe engine plan file is generated on an incompatible device, expecting compute 8.7"
    failure = failures.from_error(RuntimeError("TensorRT gave nothing back"), said, "loading the engine")
    assert failure.code == "engine-other-gpu"
    assert "incompatible device" in str(failure)


def test_a_full_disk_is_known_by_its_number_in_any_language():
    failure = failures.from_error(OSError(28, "Auf dem Gerät ist kein Speicherplatz mehr verfügbar"))
    assert failure.code == "disk-full"
