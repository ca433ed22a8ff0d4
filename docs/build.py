"""Build the documentation: copy the pages, generate the reference from the code, run Zensical.

    python -m docs.build [--out build/docs]

Needs no network. The site is OUT/site; open OUT/site/index.html, or serve that folder for the search.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
GENERATORS = ("commands", "recipe", "schema", "errors", "support", "benchmarks", "python")


def assemble(out: Path) -> None:
    """Write OUT/pages (hand-written and generated pages) and OUT/zensical.toml."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "pages", out / "pages")
    for name in GENERATORS:
        for page, text in importlib.import_module(f"docs.generators.{name}").pages():
            target = out / "pages" / page
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.rstrip() + "\n", encoding="utf-8")
    for picture in (ROOT / "tests" / "benchmarks" / "results").glob("*.svg"):
        shutil.copy(picture, out / "pages" / "benchmarks")
    config = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    (out / "zensical.toml").write_text(config.replace("@ROOT@", str(ROOT)), encoding="utf-8")


def main() -> int:
    """Build the site; return the exit code: 1 for any warning of the generator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="Folder, written anew.")
    out = parser.parse_args().out.resolve()
    assemble(out)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=out, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
