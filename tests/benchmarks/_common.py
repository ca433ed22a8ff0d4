"""Shared by the benchmarks: the machine in words, Markdown tables, fresh processes, intervals of ratios."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgeship.targets._device import this_device
from edgeship.toolkit.core.statistics import T95_9

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).resolve().parents[3] / "shared"  # next to the repository; may be absent
REASON_LENGTH = 160  # characters
SESSIONS = 10  # separate measurements that an interval is made of


def tell(text: str) -> None:
    """Say on stderr what is being done; results go to stdout."""
    print(text, file=sys.stderr, flush=True)


def machine(distributions: Iterable[str] = ()) -> str:
    """The machine, how busy it is, and versions of what is installed, as Markdown."""
    here = this_device()
    versions = {"Python": platform.python_version(), **here.versions}
    for name in distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    load = os.getloadavg()[0]
    busy = " (**busy: times are not to be trusted**)" if load > 0.75 * here.cores else ""
    return "\n".join(
        [
            f"- Machine: {here.name}, {here.cores} cores, {here.memory_bytes / 2**30:.0f} GiB, "
            f"{', '.join(here.instruction_sets)}",
            f"- Load average when it began: {load:.1f}{busy}",
            f"- Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
            f"- Date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        ]
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column is text, the others are figures; None is a dash."""
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += [f"| {' | '.join('-' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def write(name: str, text: str) -> None:
    """Print a report and keep it under results/."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)
    tell(f"written to {RESULTS / name}")


def run_fresh(script: Path, job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
    """Run `script JOB.json` in a process of its own; the script writes its results to job["result"].

    Args:
        script: The program.
        job: What it is to do, as JSON; "result" is added.
        folder: Where job, log and result go; made if absent.
        timeout_s: After so many seconds it is given up.

    Returns:
        What the script wrote, and "process_s": seconds from start to end; or {"reason": why it failed}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    (folder / "job.json").write_text(json.dumps({**job, "result": str(result)}), encoding="utf-8")
    before = time.perf_counter()
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                [sys.executable, str(script), str(folder / "job.json")],
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"reason": f"given up after {timeout_s:.0f} s"}
    seconds = time.perf_counter() - before
    if done.returncode or not result.exists():
        return {"reason": _reason(log.read_text(errors="replace"), done.returncode)}
    return {**json.loads(result.read_text(encoding="utf-8")), "process_s": seconds}


def _reason(log: str, code: int) -> str:
    """The exception a program ended with, on one line; some say more on the lines that follow."""
    raised = [
        line for line in log.splitlines() if re.match(r"[\w.]+(Error|Exception|Fail|Interrupt)\b", line)
    ]
    return raised[-1].replace("|", "/")[:REASON_LENGTH] if raised else f"ended with code {code}"


def peak_bytes() -> int:
    """Largest resident memory of this process so far.

    Linux's VmHWM; `ru_maxrss` would begin at the memory of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def ratio_interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the ratios of `SESSIONS` separate measurements, and the 95 % interval of that mean."""
    assert len(ratios) == SESSIONS
    middle = float(np.mean(ratios))
    half = T95_9 * float(np.std(ratios, ddof=1)) / SESSIONS**0.5
    return middle, middle - half, middle + half
