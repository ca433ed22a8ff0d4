"""Make the pictures of README and docs: `python -m docs.pictures [RUN | drawings]`.

RUN is a folder of `edgeship run --out`; without it the quickstart runs. `drawings` makes only those that
show no run: layers and frontier. The report's screenshot needs Debian's chromium.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from docs.generators.benchmarks import RESULTS
from edgeship.toolkit.core.options import read_toml

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pages" / "pictures"
COMMAND = "edgeship run quickstart --out runs/quickstart"
SCREEN = (1200, 860)  # pixels of the screenshot
COLUMNS = 80  # of the terminal
COLOURS = ("#1f6feb", "#8b949e")  # ours, the peer's
STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:14px;fill:#24292f}"
    ".box{fill:#eef4fb;stroke:#1f6feb}.line{stroke:#57606a;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.box{fill:#12263f}.line{stroke:#8b949e}}"
)


def layers() -> str:
    """Draw the layers of the code, which the import linter checks: an import may only point downwards."""
    (contract,) = read_toml(ROOT / "pyproject.toml")["tool"]["importlinter"]["contracts"]
    rows = [[each.strip().removeprefix("edgeship.") for each in row.split("|")] for row in contract["layers"]]
    width, height, gap, parts = 900, 44, 26, []
    for number, row in enumerate(rows):
        top, part = 10 + number * (height + gap), (width - 20) / len(row)
        for place, name in enumerate(row):
            left = 10 + place * part
            box = f'x="{left + 4:.0f}" y="{top}" width="{part - 8:.0f}" height="{height}" rx="6"'
            parts.append(f'<rect class="box" {box}/>')
            parts.append(_text(left + part / 2, top + 27, name, "middle"))
        if number:
            parts.append(f'<path class="line" d="M{width / 2} {top - gap + 4}v{gap - 8}m-5 -6l5 6l5 -6"/>')
    title = "Layers of edgeship, from commands to core; an import may only point downwards"
    return _svg(width, 20 + len(rows) * (height + gap) - gap, title, parts)


def frontier() -> str:
    """Draw top-1 against the multiply-accumulates of pruned networks, from the benchmark results."""
    text = (RESULTS / "pruning-resnet18-cifar10-64px.md").read_text(encoding="utf-8")
    dense = float(re.findall(r"([\d.]+)% top-1 dense", text)[0])
    rows = re.findall(r"^\| (edgeship, MACs of|Torch-Pruning).*?\| ([\d.]+)x \| ([\d.]+)%", text, re.M)
    ours = [(1.0, dense), *((float(x), float(y)) for name, x, y in rows if name.startswith("edge"))]
    peer = [(1.0, dense), *((float(x), float(y)) for name, x, y in rows if not name.startswith("edge"))]
    left, right, top, bottom, low, high = 70, 660, 20, 330, 40.0, 86.0

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = 1 / point[0], point[1]
        return left + (1 - x) / 0.65 * (right - left), bottom - (y - low) / (high - low) * (bottom - top)

    parts = [f'<path class="line" d="M{left} {top}V{bottom}H{right}"/>']
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        x = at((1 / share, low))[0]
        parts += [
            f'<path class="line" d="M{x:.0f} {bottom}v5"/>',
            _text(x, bottom + 22, f"{share:.0%}", "middle"),
        ]
    for value in (40, 50, 60, 70, 80):
        y = at((1.0, value))[1]
        parts += [
            f'<path class="line" d="M{left} {y:.0f}h-5"/>',
            _text(left - 10, y + 5, f"{value} %", "end"),
        ]
    for points, colour, name in (
        (ours, COLOURS[0], "edgeship"),
        (peer, COLOURS[1], "Torch-Pruning, group L2"),
    ):
        places = [at(point) for point in points]
        route = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{route}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
        parts.append(_text(places[-1][0] + 10, places[-1][1] + 5, name))
    parts.append(_text((left + right) / 2, bottom + 46, "multiply-accumulates kept", "middle"))
    title = "Top-1 of a pruned ResNet-18 on CIFAR-10 at 64 px, without labels or training"
    return _svg(860, 390, title, parts)


def terminal(text: str, out: Path) -> None:
    """Draw a command and what it prints, as a terminal shows it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ {COMMAND}", style="bold"))
    console.print(Text.from_ansi(text))
    drawn = console.export_svg(title="edgeship", font_aspect_ratio=0.61)
    drawn = re.sub(r"<!--.*?-->\s*", "", drawn, flags=re.S)
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.S)  # fonts of another server
    out.write_text(re.sub(r"font-family: Fira Code", "font-family: ui-monospace", drawn), encoding="utf-8")


def screenshot(page: Path, out: Path) -> None:
    """Write the first screen of a page as PNG, in few colours."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        size = f"--window-size={SCREEN[0]},{SCREEN[1]}"
        taken = Path(folder) / "page.png"
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        subprocess.run([*command, f"--screenshot={taken}", page.resolve().as_uri()], check=True, timeout=120)
        Image.open(taken).convert("RGB").quantize(64).save(out, optimize=True)


def main() -> None:
    """Write all pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / "layers.svg").write_text(layers(), encoding="utf-8")
    (PICTURES / "frontier.svg").write_text(frontier(), encoding="utf-8")
    if sys.argv[1:] == ["drawings"]:
        return
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "quickstart"
    edgeship = [sys.executable, "-m", "edgeship.toolkit.cli.app"]
    if not run.is_dir():
        subprocess.run([*edgeship, "run", "quickstart", "--out", str(run)], check=True)
    environment = {
        "COLUMNS": str(COLUMNS),
        "FORCE_COLOR": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
    }
    shown = subprocess.run(
        [*edgeship, "report", str(run)], capture_output=True, text=True, check=True, env=environment
    )
    terminal(shown.stdout, PICTURES / "terminal.svg")
    if shutil.which("chromium"):
        screenshot(run / "report.html", PICTURES / "report.png")


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join((head, f"<title>{escape(title)}</title><style>{STYLE}</style>", *parts, "</svg>\n"))


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
