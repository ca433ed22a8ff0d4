"""Run mutation tests of the numeric and safety-critical modules: one small fault at a time.

Writes results.md next to this file, survivors first. A fixed list of faults that once survived runs first,
then a seeded sample of all mutations of the syntax trees.

    python tests/mutants/run.py [--count N] [--only TEXT ...] [--again]

Mutants in results.md are not run again: remove the file to start from zero.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mutations
import pytest

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).with_name("results.md")
COPIED = ("edgeship", "toolkit", "quantize", "targets", "calibration", "tests", "pyproject.toml", "README.md")
SEED, SAMPLE = 19, 200
BROKEN = 99  # exit code of a process that could not run pytest
LIMIT_S = (
    60.0  # a mutant that takes longer, and ten times as long as the module, is in an endless loop: killed
)

TESTS = {  # module -> its test files; the quick ones first
    "quantize/qparams.py": ["quantize/test_qparams.py", "quantize/test_gptq.py"],
    "quantize/placement.py": [
        "quantize/test_placement.py",
        "quantize/test_signs.py",
        "quantize/test_torch_executor.py",
    ],
    "toolkit/graph/signs.py": ["quantize/test_signs.py", "quantize/test_placement.py"],
    "quantize/bias.py": ["quantize/test_bias.py", "quantize/test_equalize.py"],
    "quantize/statistics.py": ["quantize/test_statistics.py", "quantize/test_calibrate.py"],
    "quantize/gptq.py": ["quantize/test_gptq.py"],
    "quantize/equalize.py": ["quantize/test_equalize.py"],
    "toolkit/core/statistics.py": ["core/test_paired_statistics.py"],
    "targets/tensorrt/lint.py": ["targets/test_tensorrt_lint.py", "targets/test_tensorrt_versions.py"],
    "targets/tensorrt/versions.py": [
        "targets/test_tensorrt_versions.py",
        "targets/test_tensorrt_builder.py",
        "targets/test_tensorrt_lint.py",
    ],
    "toolkit/pipeline/store.py": ["pipeline/test_store.py", "pipeline/test_runner.py"],
    "toolkit/pipeline/stage.py": ["pipeline/test_code_closure.py", "pipeline/test_runner.py"],
    "toolkit/pipeline/code_closure.py": ["pipeline/test_code_closure.py"],
    "toolkit/deploy/agent/commands.py": ["deploy/test_release.py", "deploy/test_faults.py"],
    "toolkit/deploy/agent/object_store.py": [
        "deploy/test_agent_releases.py",
        "deploy/test_release.py",
        "deploy/test_faults.py",
    ],
    "toolkit/deploy/agent/subprocesses.py": ["deploy/test_release.py", "deploy/test_faults.py"],
    "toolkit/deploy/agent/releases.py": [
        "deploy/test_agent_releases.py",
        "deploy/test_release.py",
        "deploy/test_faults.py",
    ],
    "toolkit/deploy/agent/protocol.py": ["deploy/test_release.py", "deploy/test_faults.py"],
    "toolkit/deploy/release.py": ["deploy/test_release.py", "deploy/test_faults.py"],
    "toolkit/deploy/checks.py": [
        "deploy/test_checks.py",
        "deploy/test_doubts.py",
        "deploy/test_release.py",
    ],
    "calibration/manifest.py": ["calibration/test_manifest.py"],
    "calibration/duplicates.py": ["calibration/test_duplicates.py", "calibration/test_doctor.py"],
    "toolkit/report/gates.py": ["report/test_gates.py"],
    "toolkit/report/verdict.py": ["report/test_verdict.py", "report/test_gates.py", "report/test_gather.py"],
}

REVIEW = (  # file, tests, text, replacement: faults that survived an earlier review
    (
        "toolkit/graph/signs.py",
        ["quantize/test_placement.py"],
        "all(_never_negative(each",
        "any(_never_negative(each",
    ),
    ("quantize/bias.py", ["quantize/test_bias.py"], "error.sort(0).values[cut", "error[cut"),
    ("toolkit/core/statistics.py", ["core/test_paired_statistics.py"], "math.sqrt(10)", "math.sqrt(9)"),
    (
        "toolkit/deploy/agent/releases.py",
        ["deploy/test_agent_releases.py"],
        "os.fsync(stream.fileno())",
        "pass",
    ),
    ("toolkit/deploy/agent/releases.py", ["deploy/test_agent_releases.py"], "sync_folder(self.root)", "pass"),
    (
        "toolkit/deploy/checks.py",
        ["deploy/test_checks.py"],
        'max(gates["max_gap_pp"]',
        'min(gates["max_gap_pp"]',
    ),
    (
        "toolkit/pipeline/store.py",
        ["pipeline/test_store.py"],
        "older_than_days * 86_400",
        "older_than_days * 86_400 - 3600",
    ),
    ("calibration/duplicates.py", ["calibration/test_duplicates.py"], "_DISTANCE = 8", "_DISTANCE = 4"),
    (
        "targets/tensorrt/versions.py",
        ["targets/test_tensorrt_versions.py"],
        "half_scales=modern",
        "half_scales=version >= (10, 3)",
    ),
    (
        "targets/runner/cli.py",
        ["runner/test_runner_tensorrt.py"],
        'if near["top1_agreement"] < options.top1_min:',
        "if False:",
    ),
    ("targets/_timing.py", ["targets/test_timing.py"], "count * len(images) / seconds", "count / seconds"),
    ("targets/openvino.py", ["targets/test_timing.py"], "count * len(images) / seconds", "count / seconds"),
    (
        "targets/runner/timing.py",
        ["targets/test_timing.py"],
        "runs * self.batch / self.busy_s",
        "runs / self.busy_s",
    ),
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One faulty version of a module.

    Attributes:
        module: File below the root.
        place: Start of the change, line:column, from 1.
        change: The fault.
        text: Text of the whole faulty file.
        tests: Test files below tests/ that should fail.
    """

    module: str
    place: str
    change: str
    text: str
    tests: Sequence[str]


def reviewed() -> Iterator[Mutant]:
    """Return the faults of the review."""
    for module, tests, before, after in REVIEW:
        text = (ROOT / module).read_text(encoding="utf-8")
        start = text.index(before)
        faulty = text[:start] + after + text[start + len(before) :]
        place = f"{text[:start].count(chr(10)) + 1}:{start - text.rfind(chr(10), 0, start)}"
        yield Mutant(module, place, f"{before} -> {after}", faulty, tests)


def sample() -> list[Mutant]:
    """Return all mutants in a seeded order that changes only for the mutants of an edited module."""
    every = []
    for module, tests in TESTS.items():
        for place, change, faulty in mutations.of((ROOT / module).read_text(encoding="utf-8")):
            order = hashlib.sha256(f"{SEED} {module} {place} {change}".encode()).digest()
            every.append((order, Mutant(module, place, change, faulty, tests)))
    return [mutant for _, mutant in sorted(every, key=lambda each: each[0])]


def _pytest(tree: Path, tests: Sequence[str]) -> int:
    os.setsid()
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    log = os.open(tree / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    arguments = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={tree}"]
    return int(pytest.main([*arguments, *(f"tests/{name}" for name in tests)]))


def run_tests(tree: Path, tests: Sequence[str], limit_s: float) -> tuple[str, float]:
    """Run test files in a copy of the tree, in a process that inherits the imported libraries.

    Returns:
        "survived", "killed", "killed (time)" or "broken", and the seconds it took.
    """
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os._exit(_pytest(tree, tests))
        except BaseException:
            traceback.print_exc()
        os._exit(BROKEN)  # skip the clean-up handlers of the parent
    while time.monotonic() - started < limit_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            result = {0: "survived", BROKEN: "broken"}.get(os.waitstatus_to_exitcode(status), "killed")
            return result, time.monotonic() - started
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed (time)", limit_s


def earlier() -> dict[tuple[str, str, str], str]:
    """Return the results of earlier runs: (module, place, change) -> result."""
    if not RESULTS.is_file():
        return {}
    rows = re.findall(
        r"^\| (\S+?):(\d+:\d+) \| `(.*)` \| (.*) \|$", RESULTS.read_text(encoding="utf-8"), re.M
    )
    return {(module, place, change): result for module, place, change, result in rows}


def key(mutant: Mutant) -> tuple[str, str, str]:
    """Return the key of a mutant in results.md: module, line:column and change."""
    return mutant.module, mutant.place, mutant.change.replace("|", "/").replace("`", "'")


def write(results: dict[tuple[str, str, str], str]) -> None:
    """Write results.md."""
    review = {key(mutant) for mutant in reviewed()}
    present = review | {key(mutant) for mutant in sample()}  # places move as modules change
    results = {each: result for each, result in results.items() if each in present}
    lines = [
        "# Mutation tests",
        "",
        "`make mutants` writes this page. A mutant survives if no test of its module fails.",
    ]
    for title, keys in (("Faults of a review", results.keys() & review), ("Sample", results.keys() - review)):
        alive = sum(results[each].startswith("survived") for each in keys)
        lines += ["", f"## {title}", "", f"{len(keys)} tried, {alive} survived."]
        lines += ["", "| where | change | result |", "|---|---|---|"]
        for module, place, change in sorted(keys, key=lambda each: (not results[each].startswith("s"), each)):
            lines.append(f"| {module}:{place} | `{change}` | {results[module, place, change]} |")
    whole = RESULTS.with_suffix(f".{os.getpid()}")  # a parallel run reads the file
    whole.write_text("\n".join(lines) + "\n", encoding="utf-8")
    whole.replace(RESULTS)


def main() -> None:
    """Run the mutants that have no result yet and print each result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=SAMPLE, help="Size of the sample.")
    parser.add_argument("--only", nargs="*", default=[""], help="Modules whose path contains one of these.")
    parser.add_argument("--again", action="store_true", help="Run the survivors instead of the sample.")
    options = parser.parse_args()
    results_before, listed = earlier(), sample()
    if options.again:
        every = [*reviewed(), *listed]
        chosen = [mutant for mutant in every if results_before.get(key(mutant), "").startswith("survived")]
    else:
        chosen = [*reviewed(), *listed[: options.count]]
        chosen = [mutant for mutant in chosen if key(mutant) not in results_before]
    chosen = [mutant for mutant in chosen if any(part in mutant.module for part in options.only)]
    results: dict[tuple[str, str, str], str] = {}
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    for library in ("numpy", "torch", "onnx", "onnx_ir", "PIL.Image"):  # imports that start no thread
        __import__(library)
    limits: dict[tuple[str, ...], float | None] = {}  # None: the tests fail without a fault
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
            else:
                shutil.copyfile(ROOT / name, tree / name)
        os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
        for mutant in chosen:
            tests = tuple(mutant.tests)
            if tests not in limits:
                result, seconds = run_tests(tree, tests, limit_s=1800)
                limits[tests] = max(LIMIT_S, 10 * seconds) if result == "survived" else None
                print(f"unchanged: {', '.join(tests)}: {result} in {seconds:.0f} s", flush=True)
                if limits[tests] is None:
                    print((tree / "log.txt").read_text(encoding="utf-8")[-2000:], flush=True)
            if (limit_s := limits[tests]) is None:
                continue
            file = tree / mutant.module
            original = file.read_text(encoding="utf-8")
            file.write_text(mutant.text, encoding="utf-8")
            result, seconds = run_tests(tree, tests, limit_s)
            file.write_text(original, encoding="utf-8")
            results[key(mutant)] = result
            print(f"{result} ({seconds:.0f} s): {mutant.module}:{mutant.place} {mutant.change}", flush=True)
            write(earlier() | results)  # a parallel run may have added results


if __name__ == "__main__":
    main()
