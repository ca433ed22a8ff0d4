"""Generate the benchmark pages from tests/benchmarks/results, and the summary that the README shows."""

from __future__ import annotations

import re
from collections.abc import Iterator

from docs.generators import ROOT, cell, page, table

RESULTS = ROOT / "tests" / "benchmarks" / "results"
Row = dict[str, str]
SHOWN = (  # file, network, target, row, name in the summary
    ("quantization-accuracy", "resnet18", "OpenVINO", "edgeship balanced", "edgeship"),
    ("quantization-accuracy", "resnet18", "OpenVINO", "edgeship max", "edgeship, `effort=max`"),
    ("quantization-accuracy", "resnet18", "OpenVINO", "NNCF default", "NNCF, default"),
    (
        "quantization-peers-resnet18",
        "resnet18",
        "OpenVINO",
        "NNCF accuracy control",
        "NNCF, accuracy control",
    ),
    (
        "quantization-peers-resnet18",
        "resnet18",
        "OpenVINO",
        "ONNX Runtime percentile",
        "ONNX Runtime, best of 3",
    ),
    ("quantization-accuracy", "resnet18", "TensorRT graph", "edgeship balanced", "edgeship"),
    ("quantization-accuracy", "resnet18", "TensorRT graph", "edgeship max", "edgeship, `effort=max`"),
    ("quantization-peers-resnet18", "resnet18", "TensorRT graph", "AIMET tf-enhanced", "AIMET, best of 3"),
    (
        *("quantization-peers-resnet18", "resnet18", "TensorRT graph"),
        *("Model Optimizer entropy", "Model Optimizer, entropy"),
    ),
    ("quantization-accuracy", "resnet50", "OpenVINO", "edgeship balanced", "edgeship"),
    ("quantization-accuracy", "resnet50", "OpenVINO", "edgeship max", "edgeship, `effort=max`"),
    ("quantization-accuracy", "resnet50", "OpenVINO", "NNCF default", "NNCF, default"),
)


def pages() -> Iterator[tuple[str, str]]:
    """Yield one page for each file of results, and their list."""
    rows = []
    for file in sorted(RESULTS.glob("*.md")):
        text = file.read_text(encoding="utf-8")
        title = file.stem.replace("-", " ")
        body = re.sub(r"^# .*\n", "", text, count=1)
        yield f"benchmarks/{file.stem}.md", page(title.capitalize(), body)
        rows.append(
            (f"[{title}]({file.stem}.md)", _line(text, "Date"), _line(text, "Load average when it began"))
        )
    yield (
        "benchmarks/index.md",
        page(
            "Benchmarks",
            "Every figure below is copied from a file of `tests/benchmarks/results`, with its machine, "
            "versions, date and command. CIFAR-10 at 64 px, 300 calibration images, all 10,000 test images. "
            "Intervals of these files are Tango's (1998); reports have exact ones "
            "([statistics](../methods/statistics.md)).",
            "## INT8 accuracy and peers",
            summary(),
            "TensorRT graphs were simulated in ONNX Runtime: no Jetson was used.",
            "## Calibration images",
            "Which images calibrate moves the agreement by about a tenth of a point:",
            draws(),
            "## Files",
            table(("results", "date", "load average at the start"), rows),
            "## Run them",
            "`make bench`, `make bench-peers` and `make bench-pruning` do the same work with the peers in "
            "the same run, on any checkpoint and folder: `make bench ARGS='--weights FILE --size N'`; "
            "`make bench-guard` that of the guard.",
        ),
    )


def summary() -> str:
    """Return the table of accuracy with the peers."""
    rows = []
    for file, network, target, row, name in SHOWN:
        figures = rows_of(file, network, target)[row]
        where = "TensorRT, simulated" if target == "TensorRT graph" else target
        drop = figures["drop pp (95 %)"].replace("+", "").replace("-", "−")
        shown = (f"{figures['agreement %']} %", f"{figures['SQNR dB']} dB")
        rows.append((network.replace("resnet", "ResNet-"), where, name, drop, *shown))
    header = ("network", "target", "tool", "#drop, pp [95 %]", "#agreement", "#SQNR")
    return table(header, rows)


def draws() -> str:
    """Return the table of the mean agreement over draws of calibration images."""
    rows = []
    for network in ("resnet18", "resnet50"):
        for name, figures in rows_of("quantization-draws", network, "flipped").items():
            mean = figures["mean agreement %"]
            flipped = figures["in each draw"]
            rows.append((network.replace("resnet", "ResNet-"), name, f"{mean} %", flipped))
    return table(("network", "tool", "#mean agreement", "flipped predictions in each draw"), rows)


def rows_of(file: str, network: str, first: str) -> dict[str, Row]:
    """Return the rows of a table of results: name of the row -> header -> cell.

    Args:
        file: Name of the file without suffix.
        network: Beginning of the section's heading.
        first: Beginning of the table's first header.
    """
    text = (RESULTS / f"{file}.md").read_text(encoding="utf-8")
    (part,) = re.findall(rf"^## {network}.*?(?=^## |\Z)", text, re.M | re.S)
    (block,) = re.findall(rf"^\| {first}.*?(?=\n\n|\Z)", part, re.M | re.S)
    header, _, *lines = [[each.strip() for each in line.strip("|").split("|")] for line in block.splitlines()]
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)}


def _line(text: str, name: str) -> str:
    found = re.search(rf"^- {name}: (.*)$", text, re.M)
    return cell(found[1].replace("**", "")) if found else "unknown"
