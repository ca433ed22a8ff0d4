"""Cross-check of the runner's times by trtexec on the same engine, where the device has it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from typing import Any

from . import failures, sysfs
from .failures import Failure
from .timing import Subject, summary

PATH = "/usr/src/tensorrt/bin/trtexec"  # of the package libnvinfer-bin; not on PATH
PARTS = {"gpu_ms": "computeMs", "h2d_ms": "h2dMs", "d2h_ms": "d2hMs", "latency_ms": "latencyMs"}
LARGEST_DIFFERENCE = 0.1  # a larger difference is marked
_LONGEST_MS = 1e9  # 11 days: a longer time is damage, and sums of them overflow
_GRACE_S = 300.0  # loading an engine from a slow card, beyond the time it is timed for


def find(tree: sysfs.Tree, given: str) -> str:
    """Return the path of trtexec.

    Args:
        tree: The device's files.
        given: A path; empty: the path of JetPack.

    Raises:
        Failure: It is not there.
    """
    path = given or tree.path(PATH)
    if os.access(path, os.X_OK) and os.path.isfile(path):
        return path
    raise Failure("trtexec-missing", f"no trtexec at {path}", "trtexec is not installed, or is elsewhere",
                  "sudo apt install libnvinfer-bin, or name it: --trtexec PATH")  # fmt: skip


def arguments(
    version: str, engine: str, shape: str | None, warmup_ms: float, duration_s: float, transfers: bool,
    cuda_graph: bool,
) -> list[str]:  # fmt: skip
    """Return trtexec's arguments for the runner's own measurement; {times} stands for its file of samples.

    Version 11 turned its defaults around, so all is written on either side of it.

    Args:
        version: TensorRT's.
        engine: The plan.
        shape: "images:8x3x224x224" of a dynamic batch.
        warmup_ms: Untimed runs before.
        duration_s: Timed runs.
        transfers: Each run copies its input and output.
        cuda_graph: A graph is launched instead of the layers one by one.

    Source:
        NVIDIA/TensorRT samples/common/sampleOptions.cpp of the release branches.
    """
    words = [f"--loadEngine={engine}", "--exportTimes={times}", f"--warmUp={round(warmup_ms)}",
            f"--duration={max(1, round(duration_s))}"]  # fmt: skip
    if shape is not None:
        words.append(f"--shapes={shape}")
    if int(version.split(".")[0]) >= 11:
        words += ["--includeDataTransfers"] if transfers else []
        words += [] if cuda_graph else ["--noCudaGraph"]
    else:
        words += [] if transfers else ["--noDataTransfers"]
        words += ["--useCudaGraph"] if cuda_graph else []
        words.append("--useSpinWait")  # as the runner waits
    return words


def cross_check(path: str, subject: Subject, words: list[str], limit_s: float) -> dict[str, Any]:
    """Return trtexec's figures of an engine, and the difference of the runner's.

    Returns:
        "runs", the parts as the runner has them, and "difference" (the runner's median GPU time over
        trtexec's, minus 1); or "error", since the runner's own figures stand without.
    """
    try:
        figures = _parse(_run(path, words, limit_s))
    except Failure as failure:
        return {"path": path, "error": failure.to_json()}
    middle = summary(subject.samples["gpu_ms"])
    theirs = figures["gpu_ms"]["median"]
    difference = None if middle is None or not theirs else middle["median"] / theirs - 1
    return {"path": path, "arguments": words, **figures, "difference": difference}


def mark(checked: dict[str, Any]) -> list[str]:
    """Return a warning where the two figures differ by more than 10 %."""
    difference = checked.get("difference")
    if difference is None or abs(difference) <= LARGEST_DIFFERENCE:
        return []
    return [f"trtexec's median is {checked['gpu_ms']['median']:.4g} ms, this runner's is {difference:+.0%} from it: "
            "clocks that changed in between? lock them and repeat"]  # fmt: skip


def _run(path: str, words: list[str], limit_s: float) -> str:
    """Return trtexec's file of times."""
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        times = os.path.join(scratch, "times.json")
        try:
            done = subprocess.run(
                [path, *[word.replace("{times}", times) for word in words]], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s + _GRACE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failure("trtexec-failed", f"trtexec did not end within {error.timeout:g} s", "it hangs",
                          "run it by hand; reboot") from error  # fmt: skip
        except OSError as error:
            raise failures.from_error(error, doing="running trtexec") from error
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode != 0:
            raise _failed(done.returncode, output)
        try:
            with open(times, encoding="utf-8") as stream:
                return stream.read()
        except (OSError, ValueError) as error:
            raise _unreadable(str(error)) from error


def _failed(status: int, output: str) -> Failure:
    """Return the failure of a run by its error lines, by its exit status where those explain nothing."""
    known = failures.translate(output)
    if known is None or known.code == "crashed":
        known = failures.translate_exit(status) or known
    quoted = failures.quote(output) or f"exit code {status}, no error line"
    return Failure("trtexec-failed", f"trtexec: {quoted}",
                   known.cause if known else f"no known cause; the last error of trtexec is: {quoted}",
                   known.cure if known else "run it by hand to see more")  # fmt: skip


def _parse(text: str) -> dict[str, Any]:
    """Return runs and parts of the file that --exportTimes writes: a list of samples.

    Raises:
        Failure: It is cut off, or is something else.
    """
    try:
        record = json.loads(text)
        samples = {
            part: [_milliseconds(item, key) for item in record]
            for part, key in PARTS.items()
            if part == "gpu_ms" or all(key in item for item in record)  # names of the others have changed before
        }
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _unreadable(str(error)) from error
    if not samples["gpu_ms"]:
        raise _unreadable("it holds no sample")
    return {"runs": len(samples["gpu_ms"]), **{part: summary(samples.get(part, [])) for part in PARTS}}


def _milliseconds(item: Any, key: str) -> float:
    value = item[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LONGEST_MS:
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def _unreadable(why: str) -> Failure:
    return Failure("trtexec-failed", f"trtexec's file of times cannot be read: {why}",
                   "trtexec was stopped, or writes another format", "run it by hand with --exportTimes")  # fmt: skip
