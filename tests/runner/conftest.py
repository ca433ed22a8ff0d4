"""The assembled runner as a file, run as a subprocess the way a device runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeship.targets import runner

FAKES = Path(__file__).parent / "fakes"


@dataclass
class Answer:
    """Result of one run of the runner."""

    exit_code: int
    lines: list[dict[str, Any]]
    stderr: str
    calls: list[list[Any]] = field(default_factory=list)  # of the fake SDK, in order

    @property
    def result(self) -> dict[str, Any]:
        return self.lines[-1]


@pytest.fixture(scope="session")
def runner_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runner") / runner.FILE_NAME
    path.write_bytes(runner.source())
    return path


def run_file(
    runner_file: Path, *arguments: object, python: tuple[str, ...] = (sys.executable,), **variables: str
) -> Answer:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [*python, str(runner_file), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.stdout, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]  # every line is JSON
    assert [line["event"] for line in lines] == ["progress"] * (len(lines) - 1) + ["result"]
    return Answer(done.returncode, lines, done.stderr)


@pytest.fixture
def run(runner_file: Path) -> Callable[..., Answer]:
    """Run a command with the SDKs of this machine."""

    def call(*arguments: object, **variables: str) -> Answer:
        return run_file(runner_file, *arguments, **variables)

    return call


@pytest.fixture
def run_fake(runner_file: Path, tmp_path: Path) -> Callable[..., Answer]:
    """Run a command against the fake TensorRT, by default on a Python without NumPy or anything installed."""

    def call(
        version: str, *arguments: object, python: tuple[str, ...] = (sys.executable, "-S"), **more: str
    ) -> Answer:
        log = tmp_path / "calls.jsonl"
        log.unlink(missing_ok=True)
        variables = {
            "PYTHONPATH": str(FAKES),
            "EDGESHIP_FAKE_TENSORRT": version,
            "EDGESHIP_FAKE_LOG": str(log),
            **more,
        }
        answer = run_file(runner_file, *arguments, python=python, **variables)
        answer.calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        assert [call for call in answer.calls if call[0] == "MISTAKE"] == []
        return answer

    return call
