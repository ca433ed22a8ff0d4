"""Coverage-guided fuzzing of every parser: `make fuzz`, or `python tests/fuzz.py [NAME...] [--seconds 60]`.

An input that ends in anything but a ToolkitError with a hint, takes over 20 s or over 2 GB, is kept in
build/fuzz/NAME; put it right, and give it to `tests/parser_inputs.py` or a test of the parser.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "fuzz"


def one(name, seconds):
    """Fuzz a parser in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["edgeship"], enable_loader_override=False):
        from parser_inputs import FORMS, check, encoded, mutated

        from edgeship.toolkit.core.errors import ToolkitError

    make, use = FORMS[name]
    kept = KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="edgeship-fuzz-"))
    (folder / "corpus").mkdir()
    (folder / "corpus" / "whole").write_bytes(make())
    for seed in range(20):
        import random

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

    limits = (f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1")
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={kept}/", str(folder / "corpus")], test)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="parsers; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="of each parser")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError as error:
        print(f"skipped: atheris has no wheel for this Python ({sys.version.split()[0]}): {error}")
        return 0
    if options.here:
        one(options.names[0], options.seconds)
    from parser_inputs import FORMS

    failed = []
    for name in options.names or FORMS:
        command = [sys.executable, __file__, name, "--here", "--seconds", str(options.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        figures = [
            line for line in done.stderr.splitlines() if line.startswith(("stat::number_of", "stat::peak"))
        ]
        print(f"{name:<18} {'ok' if done.returncode == 0 else 'FAILED'}  {'  '.join(figures)}", flush=True)
        if done.returncode:
            failed.append(name)
            print("\n".join(done.stderr.splitlines()[-25:]))
    print(f"findings are in {KEPT}: {', '.join(failed)}" if failed else "no findings")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
