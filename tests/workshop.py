"""A folder like a reader's, and a runner for the examples of the pages in it.

Blocks of a page are run in order, in one folder:

- `console`: every `$ command` must end with exit code 0, or with N where the line ends in `# exit code N`.
  Lines below it must be in its output, in this order; `...` stands for any lines. Figures are compared by
  place, not by value: those of a machine differ.
- `python`: runs as it is; a `text` block right after it, marked `<!-- output -->`, is what it prints.
- `toml`: is a recipe, or a part of one.

`<!-- slow -->` before a block leaves it to the slow tests, `<!-- device -->` to those with a device on
loopback, `<!-- not run: REASON -->` to none; the reasons are listed here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sybil import Sybil
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser

from edgeship.toolkit.cli import app
from edgeship.toolkit.deploy import inventory
from edgeship.toolkit.pipeline.recipe import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
REASONS = ("needs a Jetson", "needs a package index", "needs ImageNet", "needs a camera", "needs an updater")
NOT_RUN = ("git clone ", "cd ", "make install")  # the reader has it; make install needs a package index
LANGUAGES = ("console", "python", "toml", "text", "json")
QUICK = {  # command -> options that only shorten its timing
    "run": "--set bench.duration_s=0.1 --set bench.warmup_s=0.05 --set bench.throughput_s=0",
    "bench": "--duration 0.1",
    "deploy": "--time 0.1",
}
MARK = re.compile(r"<!-- (slow|device|output|not run: [^>]*?) -->\s*\Z")
VERDICTS = ("✓", "!", "✗", "○")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
NUMBER = re.compile(r"[−-]?\d+(?:[.,]\d+)*")


def materials(folder: Path) -> None:
    """Write photos/ (train and test, one folder a class), resnet.pth and net.onnx: digits, 16 px."""
    import torch
    from sklearn.datasets import load_digits

    from edgeship.toolkit.models import export
    from edgeship.toolkit.models.resnet import architecture, build
    from edgeship.toolkit.models.train_options import TrainOptions
    from edgeship.toolkit.models.trainer import train

    digits = load_digits()
    pictures = np.kron(digits.images * (255 / 16), np.ones((2, 2))).astype(np.uint8)
    for index, (pixels, label) in enumerate(zip(pictures, digits.target, strict=True)):
        place = folder / "photos" / ("train" if index < 1200 else "test") / f"digit-{label}"
        place.mkdir(parents=True, exist_ok=True)
        if index < 400 or index >= 1200:
            Image.fromarray(pixels).convert("RGB").save(place / f"{index:04}.png")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = ((pictures[..., None] / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    model = build(architecture("resnet20", classes=10, width=8), seed=0)

    def epoch(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = np.random.default_rng(number).permutation(1200)
        for part in np.array_split(order, 1200 // 50):
            yield images[part], digits.target[part]

    options = TrainOptions(epochs=5, batch=50, learning_rate=0.1, flip=False, crop_px=1)
    train(model, epoch, options, folder / "trained", images=1200)
    torch.save(model.state_dict(), folder / "resnet.pth")
    export.export(model, folder / "net.onnx", size=16)


class Workshop:
    """Runs the examples of one page in a folder."""

    def __init__(self, folder: Path, park: Callable[[], object] | None = None) -> None:
        self.folder, self.printed = folder, ""
        self.park, self.devices = park, {}
        self.names: dict[str, object] = {"__name__": "__main__"}
        parsers = [
            CodeBlockParser(name, getattr(self, name)) for name in ("console", "python", "toml", "text")
        ]
        self.sybil = Sybil(parsers)

    def examples(self, page: Path) -> list[Example]:
        """Return the blocks of a page that can be run, with their mark."""
        return list(self.sybil.parse(page).examples())

    def console(self, example: Example) -> None:
        """Run the commands of a block and compare their output."""
        for line, expected in commands(example.parsed):
            code, output = self.run(re.sub(r"\s+# .*$", "", line))
            wanted = re.search(r"# exit code (\d+)", line)
            assert code == (int(wanted[1]) if wanted else 0), f"$ {line}\n{output}"
            compare(expected, output, line)

    def python(self, example: Example) -> None:
        """Run a block, in the names of the page."""
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile("\n" * example.line + example.parsed, example.path, "exec"), self.names)
        self.printed = stream.getvalue()

    def toml(self, example: Example) -> None:
        """Read a recipe, or a part of one."""
        file = self.folder / "part.toml"
        file.write_text(example.parsed, encoding="utf-8")
        Recipe.read(file)

    def text(self, example: Example) -> None:
        """Compare what the block before printed, where the page calls this its output."""
        if mark(example) == "output":
            compare(example.parsed.splitlines(), self.printed, "python")

    def run(self, line: str) -> tuple[int, str]:
        """Run a command as the shell would; return its exit code, and what it prints on both streams."""
        if line.startswith(NOT_RUN):
            return 0, ""
        if line.startswith("make "):
            line = made(line.split()[1])
        line = line.removeprefix(".venv/bin/")
        words = line.split()
        if words[0] == "edgeship" and "quickstart" not in words:
            line = f"{line} {QUICK.get(words[1], '')}".strip()
        if re.match(r"edgeship\b[^|>&;]*$", line):
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = left(shlex.split(line)[1:])
            self.connect(line)
            return code, output.getvalue()
        script = f'edgeship() {{ "{sys.executable}" -m edgeship.toolkit.cli.app "$@"; }}\n{line}'
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=300, check=False
        )
        return done.returncode, done.stderr + done.stdout

    def connect(self, line: str) -> None:
        """Put a server on loopback behind a device that a command just added."""
        added = re.match(r"edgeship device add (\S+) .*--target (\w+)", line)
        if added and self.park is not None and "--host local" not in line:
            path = inventory.default_path()
            entry = inventory.load(path)[added[1]]
            server = self.park().server(added[1])
            there = self.park().entry(server, added[1], python=sys.executable)
            names = ("host", "port", "user", "root", "python", "ssh_config")
            inventory.remove(path, entry.name)
            inventory.add(path, dataclasses.replace(entry, **{name: getattr(there, name) for name in names}))


def left(arguments: list[str]) -> int:
    """Run the command line in this process; return its exit code."""
    try:
        app.main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    raise AssertionError("main returns only by SystemExit")


def made(target: str) -> str:
    """Return the command of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^{target}:.*\n\t(.+)$", text, re.M)
    return line.replace("$(BIN)/", "").replace("$(OUT)", "runs/quickstart")


def mark(example: Example) -> str:
    """Return the mark before a block: slow, device, output, "not run: REASON", or nothing."""
    before = MARK.search(example.document.text[: example.region.start])
    return before[1] if before else ""


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every command of a console block with the lines that it prints."""
    for part in re.split(r"^\$ ", re.sub(r"\\\n\s*", "", block), flags=re.M)[1:]:
        line, *output = part.rstrip().splitlines()
        yield line, output


def compare(expected: list[str], output: str, line: str) -> None:
    """Check that the output has the expected lines, in this order."""
    if "other work disturbed the timing" in output:  # a busy machine: no verdict on speed, but all else
        expected = list(itertools.takewhile(lambda each: not each.startswith(VERDICTS), expected))
    printed = [plain(each) for each in output.splitlines()]
    place = 0
    for each in filter(None, map(str.strip, expected)):
        if each == "...":
            continue
        rest = printed[place:]
        assert plain(each) in rest, f"$ {line}\nnot in its output: {each}\n\n{output}"
        place += rest.index(plain(each)) + 1


def plain(line: str) -> str:
    """Return a line without colours, with one space for several, one sign for rules, 0 for every figure."""
    return re.sub(r"─+", "─", " ".join(NUMBER.sub("0", COLOUR.sub("", line)).split()))
