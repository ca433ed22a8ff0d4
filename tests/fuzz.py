"""Coverage-guided fuzzing of every parser: `make fuzz`, or `python tests/fuzz.py [NAME...] [--seconds 60]`.

An input that ends in anything but a ToolkitError with a hint, takes over 20 s or over 500 MB more than the
process had before, is kept in build/fuzz/NAME; put it right, and give it to `tests/parser_inputs.py` or a
test of the parser.
Inputs are written to memory: on a disk, the writing takes ten times as long as the parsing.
"""

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "fuzz"
FIGURES = KEPT / "figures.json"  # parser -> figures of its last run
MEMORY = Path("/dev/shm")  # a file system in memory
MOST_MB = 500  # of one input
SEEDS = 20


def one(name, limit):
    """Fuzz a parser in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["edgeship"], enable_loader_override=False):
        from parser_inputs import FORMS, check, encoded, mutated, mutated_inside

        from edgeship.toolkit.core.errors import ToolkitError

    make, use = FORMS[name]
    kept = KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.gettempdir())
    (folder / "corpus").mkdir()
    (folder / "corpus" / "whole").write_bytes(make())
    for seed in range(SEEDS):
        (folder / "corpus" / str(seed)).write_bytes(mutated(make(), random.Random(seed)))
    for place in ("0.png", "1.png", "2.png", "a b.png"):
        (folder / place).write_bytes(encoded("PNG"))
    warnings.simplefilter("ignore")

    def test(data):
        (folder / name).write_bytes(data)
        try:
            use(folder / name)
        except ToolkitError as error:
            check(error)

    def mutate(data, most, seed):
        """Mutate by libFuzzer, or as the default tests do: numbers at their limits, and members of a zip."""
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, len(data))
        try:
            inside = data.startswith(b"PK") and rng.random() < 0.6
            return (mutated_inside if inside else mutated)(data, rng)[:most]
        except Exception:  # no longer a zip
            return mutated(data, rng)[:most]

    (folder / name).write_bytes(make())
    use(folder / name)
    before = _peak_mb()
    print(f"stat::before_mb: {before}", file=sys.stderr, flush=True)
    limits = (limit, "-timeout=20", f"-rss_limit_mb={before + MOST_MB}", "-print_final_stats=1")
    arguments = [sys.argv[0], *limits, f"-artifact_prefix={kept}/", str(folder / "corpus")]
    atheris.Setup(arguments, test, custom_mutator=mutate)
    atheris.Fuzz()


def _peak_mb():
    """Return the largest resident memory of this process so far; ru_maxrss begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))


def fuzz(name, limit):
    """Fuzz a parser in a process of its own; return its figures and what it printed."""
    with tempfile.TemporaryDirectory(
        prefix="edgeship-fuzz-", dir=MEMORY if MEMORY.is_dir() else None
    ) as folder:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, __file__, name, f"--here={limit}"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "TMPDIR": folder},
        )
        seconds = round(time.monotonic() - began)
    stats = {
        key: int(value)
        for key, _, value in (
            line.removeprefix("stat::").partition(":")
            for line in done.stderr.splitlines()
            if line.startswith("stat::")
        )
    }
    return {
        "inputs": stats.get("number_of_executed_units", 0),
        "seconds": seconds,
        "before_mb": stats.get("before_mb"),
        "peak_mb": stats.get("peak_rss_mb"),
        "findings": int(done.returncode != 0),
    }, done.stderr


def page(figures, command):
    """Write the figures of every parser that was fuzzed, with the machine, to the benchmarks' results."""
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from _common import machine, table, write

    rows = [
        [
            *(name, each["inputs"], each["seconds"], each["peak_mb"], each["before_mb"]),
            *(max(each["peak_mb"] - each["before_mb"], 0), each["findings"]),
        ]
        for name, each in sorted(figures.items())
        if each["peak_mb"] and each["before_mb"]
    ]
    columns = ("parser", "inputs", "seconds", "peak MB", "before the inputs MB", "inputs MB", "findings")
    text = (
        "A finding: an input that ends in anything but an error with a hint, takes over 20 s or "
        f"over {MOST_MB} MB of memory. Memory is the process's largest resident set, with PyTorch and ONNX "
        "loaded; before the inputs, and after all of them."
    )
    write(
        "fuzz.md",
        f"# Fuzzing: inputs, memory and findings of every parser\n\n{machine(['atheris', 'pillow'])}\n"
        f"- Command: `{command}`\n\n{text}\n\n{table(columns, rows)}\n",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="parsers; default: all")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--seconds", type=int, default=60, help="of each parser")
    limits.add_argument("--inputs", type=int, help="of each parser, whatever time they take")
    parser.add_argument("--page", action="store_true", help="write tests/benchmarks/results/fuzz.md")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # libFuzzer's limit
    options = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError as error:
        print(f"skipped: atheris has no wheel for this Python ({sys.version.split()[0]}): {error}")
        return 0
    if options.here:
        one(options.names[0], options.here)
    from parser_inputs import FORMS

    KEPT.mkdir(parents=True, exist_ok=True)
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    failed = []
    limit = f"-runs={options.inputs}" if options.inputs else f"-max_total_time={options.seconds}"
    for name in options.names or FORMS:
        figures[name], printed = fuzz(name, limit)
        FIGURES.write_text(json.dumps(figures, indent=1))
        shown = "  ".join(f"{key} {value}" for key, value in figures[name].items())
        print(f"{name:<18} {'FAILED' if figures[name]['findings'] else 'ok'}  {shown}", flush=True)
        if figures[name]["findings"]:
            failed.append(name)
            print("\n".join(printed.splitlines()[-25:]))
    if options.page:
        page(figures, shlex.join(["python", "tests/fuzz.py", *sys.argv[1:]]))
    print(f"findings are in {KEPT}: {', '.join(failed)}" if failed else "no findings")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
