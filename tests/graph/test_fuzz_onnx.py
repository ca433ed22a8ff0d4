"""Damaged and contradictory ONNX files: an error with a hint or a graph that loads, no traceback, no hang."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
SECONDS = 60  # of one mutant, on a busy machine
MEMORY_MIB = 2048


def outcomes(first, last, folder):
    """Outcome lines of mutants; a child that dies or hangs is a fault of the mutant it was at."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    lines = []
    with (folder / "errors.txt").open("w") as errors:
        while first < last:
            command = [sys.executable, str(TESTS / "onnx_mutants.py"), str(first), str(last)]
            limit = SECONDS + (last - first) * 5
            try:
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=errors, env=environment, timeout=limit, text=True
                )
                output, ending = done.stdout, f"fault: exit code {done.returncode}"
            except subprocess.TimeoutExpired as late:
                output, ending = (late.stdout or b"").decode(), "fault: hangs"
            new = [json.loads(line) for line in output.splitlines()]
            lines += new
            first += len(new)
            if first < last:
                lines.append({"seed": first, "outcome": ending, "seconds": 0.0, "memory_mib": 0})
                first += 1
    return lines, (folder / "errors.txt").read_text()


def check(first, last, folder):
    lines, errors = outcomes(first, last, folder)
    faults = [line for line in lines if not line["outcome"].startswith(("valid", "refused: "))]
    assert not faults, faults[:10]
    assert "Traceback" not in errors
    assert max(line["seconds"] for line in lines) < SECONDS
    assert max(line["memory_mib"] for line in lines) < MEMORY_MIB
    kinds = Counter(line["outcome"] for line in lines)
    assert kinds["valid"] >= (last - first) // 12, kinds  # they are not all refused at the first byte
    assert kinds["refused: ModelError"] >= (last - first) // 4, kinds


def test_150_mutants(tmp_path):
    check(0, 150, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(10))
def test_10_000_mutants(part, tmp_path):
    check(part * 1000, (part + 1) * 1000, tmp_path)
