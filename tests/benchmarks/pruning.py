"""Pruning without labels, against Torch-Pruning: accuracy, distillation, INT8, latency, prediction, time.

    python tests/benchmarks/pruning.py --checkpoint net.pth --calibration train.zip --test test.zip --size 64
    python tests/benchmarks/pruning.py --sections latency,predicted,time     those that want a quiet machine

Networks and rows are kept under --work and not made again, so that sections may be run one by one; --redo
forgets the rows of the sections that are named. Torch-Pruning is no part of the product:
`pip install --no-deps torch-pruning==1.6.1`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from _common import SHARED, machine, run_fresh, table, tell, write
from pruning_tools import (
    CALIBRATION,
    Data,
    Judge,
    distilled,
    enlarged,
    for_latency,
    in_budget,
    latencies,
    pruned,
    quantized,
    torch_pruned,
)

from edgeship.toolkit.core.artifact import read_json, write_json
from edgeship.toolkit.core.statistics import paired_drop
from edgeship.toolkit.models.resnet import ResNet, macs
from edgeship.toolkit.models.weights import load
from edgeship.toolkit.prune.distill_options import DistillOptions
from edgeship.toolkit.prune.options import PruneOptions

SECTIONS = ("accuracy", "distillation", "int8", "latency", "predicted", "budget", "time")
LATENCY_SIZE = 224
TARGET_LATENCY = 0.6  # of dense INT8
TIMEOUT_S = 1800
DRAW = 16  # images that a graph is calibrated on where only its speed counts
# largest drop in points that was asked for: network -> channels kept -> pruned, after distillation
ASKED: Mapping[str, Mapping[float, tuple[float, float | None]]] = {
    "resnet18": {0.75: (0.4, 0.0), 0.5: (1.2, 0.3), 0.35: (2.6, 1.0)},
    "resnet50": {0.58: (1.5, None)},
}
BUDGET_S = 1800.0
# speed-up over FP32; part of dense INT8, by the ratio of both on the machine of the results
BUDGET_GOALS = {"resnet18": (8.0, 0.44), "resnet50": (7.0, 0.48)}
BUDGET_DROP = 0.5  # points
ASKED_SECONDS = {"resnet18": 60, "resnet50": 240}
COLUMNS = {
    "accuracy": ("method", "MACs", "top-1", "drop, pp", "95 %", "asked", "seconds"),
    "distillation": ("start", "MACs", "top-1", "drop, pp", "95 %", "asked", "seconds"),
    "int8": ("network", "FP32 drop, pp", "INT8 drop, pp", "INT8 adds, pp", "asked"),
    "latency": ("network", "ms", "against FP32", "against dense INT8", "asked"),
    "predicted": ("goal", "dense INT8, ms", "predicted", "measured", "error", "timed again", "asked"),
    "budget": (
        "goal",
        "strides of the stem",
        "INT8 over dense FP32, processor time",
        "wall time",
        "asked",
        "FP32 drop, pp",
        "INT8 drop, pp",
        "95 %",
        "asked",
        "seconds",
    ),
    "time": ("one width", "seconds", "asked", "peak memory"),
}
TITLES = {
    "accuracy": "Block-internal channels, no training, no labels, FP32",
    "distillation": "The same, then label-free distillation",
    "int8": "What INT8 adds on OpenVINO",
    "latency": f"OpenVINO, {LATENCY_SIZE} px, batch 1, one thread, in turns",
    "predicted": f"Widths for a latency, {LATENCY_SIZE} px, batch 1, one thread",
    "budget": f"Joint search, refit, INT8-aware distillation in {BUDGET_S / 60:.0f} minutes, no labels",
    "time": "Time and memory of a fresh process on all cores, decoding not counted in the seconds",
}


@dataclass(slots=True)
class Bench:
    """One network, its images, and the rows that are known."""

    dense: ResNet
    data: Data
    work: Path
    job: dict[str, Any]
    keeps: tuple[float, ...]
    epochs: int
    distill_images: int
    rows: dict[str, dict[str, list[Any]]]

    def row(self, section: str, name: str, make: Callable[[], list[Any]]) -> None:
        """Make a row, if it is not known yet, and keep it."""
        known = self.rows.setdefault(section, {})
        if name in known:
            return
        tell(f"{section}: {name}")
        try:
            known[name] = make()
        except ImportError as error:
            tell(f"  left out: {error}")
            return
        write_json(self.work / "rows.json", self.rows)

    def judged(self, model: ResNet, folder: str) -> np.ndarray:
        """Return a mask of the test images that a network gets right."""
        return Judge(self.data).network(model, self.work / folder)

    def asked(self, keep: float) -> tuple[float | None, float | None]:
        """Largest drop asked for at a part of the channels: without and with distillation."""
        return ASKED.get(self.dense.architecture.name, {}).get(keep, (None, None))

    def sensitive(self, keep: float) -> ResNet:
        """As few multiply-accumulates as that part of all channels gives, widths by sensitivity."""
        small = self.uniform(keep)
        size = self.data.preprocess.crop
        part = macs(small.architecture, size) / macs(self.dense.architecture, size)
        return pruned(self.dense, self.data, PruneOptions(macs_ratio=part), self.work / f"macs-{keep}")

    def uniform(self, keep: float) -> ResNet:
        """That part of every inner group's channels."""
        return pruned(
            self.dense,
            self.data,
            PruneOptions(keep_ratio=keep, channel_multiple=1),
            self.work / f"keep-{keep}",
        )

    def figures(self, model: ResNet, folder: str, asked: float | None) -> list[Any]:
        """MACs, top-1, drop, interval, what was asked for and seconds."""
        before, after = self.judged(self.dense, "dense"), self.judged(model, folder)
        drop, (low, high) = paired_drop(before, after)
        size = self.data.preprocess.crop
        ratio = macs(self.dense.architecture, size) / macs(model.architecture, size)
        seconds = read_json(self.work / folder / "seconds.json")
        return [
            f"{ratio:.2f}x",
            f"{after.mean():.2%}",
            f"{drop:.2f}",
            f"{low:.2f} .. {high:.2f}",
            None if asked is None else f"<= {asked:g}",
            f"{seconds:.0f}",
        ]


def accuracy(bench: Bench) -> None:
    """Uniform widths, widths by sensitivity, and Torch-Pruning."""
    size = bench.data.preprocess.crop
    for keep in bench.keeps:
        asked = bench.asked(keep)[0]
        bench.row(
            "accuracy",
            f"edgeship, keep {keep}",
            lambda keep=keep, asked=asked: bench.figures(bench.uniform(keep), f"keep-{keep}", asked),
        )
        bench.row(
            "accuracy",
            f"edgeship, MACs of keep {keep}",
            lambda keep=keep, asked=asked: bench.figures(bench.sensitive(keep), f"macs-{keep}", asked),
        )
        bench.row(
            "accuracy",
            f"Torch-Pruning, group L2, keep {keep}",
            lambda keep=keep: bench.figures(
                torch_pruned(bench.dense, keep, size, bench.work / f"peer-{keep}"), f"peer-{keep}", None
            ),
        )


def distillation(bench: Bench) -> None:
    """Widths by sensitivity, and a few epochs over images that pruning did not see."""
    for keep in bench.keeps:

        def made(keep: float = keep) -> list[Any]:
            start, folder = bench.work / f"macs-{keep}", f"tuned-{keep}"
            tuned = distilled(
                bench.sensitive(keep),
                bench.dense,
                bench.data,
                DistillOptions(epochs=bench.epochs),
                bench.distill_images,
                start / "plan.json",
                bench.work / folder,
            )
            return bench.figures(tuned, folder, bench.asked(keep)[1])

        images = bench.distill_images or len(bench.data.rest)
        bench.row("distillation", f"MACs of keep {keep}, {bench.epochs} epochs of {images} images", made)


def int8(bench: Bench) -> None:
    """The drop in FP32, and after quantization."""
    reference = bench.judged(bench.dense, "dense")
    networks: dict[str, Callable[[], ResNet]] = {"dense": lambda: bench.dense}
    for keep in bench.keeps:
        networks |= {f"keep-{keep}": lambda keep=keep: bench.uniform(keep)}
        networks |= {f"macs-{keep}": lambda keep=keep: bench.sensitive(keep)}
    for name, network in networks.items():

        def made(name: str = name, network: Callable[[], ResNet] = network) -> list[Any]:
            model, folder = network(), bench.work / name
            images = bench.data.unlabelled(bench.data.chosen[:CALIBRATION])
            _, rounded = quantized(model, bench.data.preprocess.crop, images, folder / "graphs")
            plain = paired_drop(reference, bench.judged(model, name))[0]
            drop = paired_drop(reference, Judge(bench.data).graph(rounded, "int8"))[0]
            return [
                f"{plain:.2f}",
                f"{drop:.2f}",
                f"{drop - plain:.2f}",
                "<= 0.2" if name != "dense" else None,
            ]

        bench.row("int8", name, made)


def latency(bench: Bench) -> None:
    """Dense and pruned networks in FP32 and INT8, all in turns."""
    if bench.rows.get("latency"):
        return
    tell("latency")
    picture = bench.data.pruning()[0][:DRAW]
    folder = bench.work / "latency"
    networks = {"dense": bench.dense}
    for keep in bench.keeps:
        networks |= {f"keep {keep}": bench.uniform(keep), f"MACs of keep {keep}": bench.sensitive(keep)}
    graphs = {}
    for name, model in networks.items():
        images = enlarged(picture, LATENCY_SIZE)
        plain, rounded = quantized(model, LATENCY_SIZE, images, folder / name, batch=1)
        graphs |= {f"{name}, FP32": plain, f"{name}, INT8": rounded}
    found = latencies(graphs, LATENCY_SIZE, 1.0 * len(graphs), folder)
    for name, ms in found.items():
        figures = [f"{ms:.3f}", f"{found['dense, FP32'] / ms:.2f}x", f"{found['dense, INT8'] / ms:.2f}x"]
        is_asked = name == "keep 0.5, INT8" and bench.dense.architecture.name == "resnet18"
        asked = ">= 5.5x of FP32" if is_asked else None
        bench.row("latency", name, lambda figures=figures, asked=asked: [*figures, asked])


def predicted(bench: Bench) -> None:
    """The table's word for the latency of the widths it chose, and the clock's."""

    def made() -> list[Any]:
        folder = bench.work / "predicted"
        folder.mkdir(exist_ok=True)
        found = for_latency(bench.dense, bench.data, TARGET_LATENCY, LATENCY_SIZE, folder)
        error = abs(found["predicted"] / found["measured"] - 1)
        times = [f"{found[name]:.3f}" for name in ("before", "predicted", "measured")]
        return [*times, f"{error:.1%}", f"{found['again']:.3f}", "<= 5 %"]

    bench.row("predicted", f"{TARGET_LATENCY} of dense INT8", made)


def budget(bench: Bench) -> None:
    """Search, refit and distillation in one time budget, for a part of the latency of dense INT8."""
    speedup, part = BUDGET_GOALS.get(bench.dense.architecture.name, (None, 0.42))

    def made() -> list[Any]:
        folder = bench.work / "budget"
        model, seconds = in_budget(bench.dense, bench.data, part, LATENCY_SIZE, BUDGET_S, folder)
        reference = bench.judged(bench.dense, "dense")
        calibration = bench.data.unlabelled(bench.data.chosen[:CALIBRATION])
        _, rounded = quantized(model, bench.data.preprocess.crop, calibration, folder / "graphs")
        plain = paired_drop(reference, bench.judged(model, "budget"))[0]
        drop, (low, high) = paired_drop(reference, Judge(bench.data).graph(rounded, "int8"))
        picture, graphs = bench.data.pruning()[0][:DRAW], {}
        for name, network in (("dense", bench.dense), ("small", model)):
            images = enlarged(picture, LATENCY_SIZE)
            graphs[f"{name}, FP32"], graphs[f"{name}, INT8"] = quantized(
                network, LATENCY_SIZE, images, folder / name, batch=1
            )
        clocks = (time.process_time_ns, time.perf_counter_ns)
        found = [latencies(graphs, LATENCY_SIZE, 4.0, folder, clock) for clock in clocks]
        return [
            ", ".join(map(str, model.architecture.steps)),
            *(f"{each['dense, FP32'] / each['small, INT8']:.2f}x" for each in found),
            None if speedup is None else f">= {speedup:g}x",
            f"{plain:.2f}",
            f"{drop:.2f}",
            f"{low:.2f} .. {high:.2f}",
            f"<= {BUDGET_DROP:g}",
            f"{seconds:.0f}",
        ]

    bench.row("budget", f"{part:g} of dense INT8", made)


def seconds(bench: Bench) -> None:
    """One width in a fresh process on every core."""

    def made() -> list[Any]:
        script = Path(__file__).with_name("pruning_tools.py")
        found = run_fresh(script, {**bench.job, "keep": 0.5}, bench.work / "time", TIMEOUT_S)
        if "reason" in found:
            raise click.ClickException(found["reason"])
        asked = ASKED_SECONDS.get(bench.dense.architecture.name)
        memory = f"{found['peak_bytes'] / 2**30:.2f} GiB"
        return [f"{found['seconds']:.0f}", None if asked is None else f"<= {asked}", memory]

    bench.row("time", "keep 0.5", made)


RUN = dict(zip(SECTIONS, (accuracy, distillation, int8, latency, predicted, budget, seconds), strict=True))


@click.command()
@click.option("--checkpoint", default=str(SHARED / "checkpoints/resnet18-cifar10-64px.pth"))
@click.option(
    "--calibration", default=str(SHARED / "data/cifar10-jpeg-train.zip"), help="Labels are not read."
)
@click.option("--test", default=str(SHARED / "data/cifar10-jpeg-test.zip"), help="With labels.")
@click.option("--size", default=64, show_default=True, help="Input height and width, in pixels.")
@click.option("--images", default=1000, show_default=True, help="Images to prune with.")
@click.option("--limit", default=0, help="Judge on so many test images only; 0 is all.")
@click.option("--keeps", default="0.75,0.5,0.35", show_default=True, help="Parts of the inner channels.")
@click.option("--epochs", default=2, show_default=True, help="Epochs of distillation after pruning.")
@click.option("--distill-images", default=0, help="Images of an epoch; 0 is all of --calibration.")
@click.option("--sections", default=",".join(SECTIONS), show_default=True)
@click.option("--redo", is_flag=True, help="Forget the rows of these sections.")
@click.option("--work", type=click.Path(path_type=Path), help="Networks and rows.  [default: runs/bench-...]")
def main(
    *,
    checkpoint: str,
    calibration: str,
    test: str,
    size: int,
    images: int,
    limit: int,
    keeps: str,
    epochs: int,
    distill_images: int,
    sections: str,
    redo: bool,
    work: Path | None,
) -> None:
    """Make the rows of the named sections, and print every row that is known as Markdown."""
    for path in (checkpoint, calibration, test):
        if not Path(path).exists():
            raise click.ClickException(f"{path} is absent: name --checkpoint, --calibration and --test")
    wanted = sections.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        raise click.ClickException(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    name = Path(checkpoint).stem
    work = work or Path("runs") / f"bench-pruning-{name}"
    work.mkdir(parents=True, exist_ok=True)
    rows = read_json(work / "rows.json") if (work / "rows.json").is_file() else {}
    if redo:
        rows = {section: known for section, known in rows.items() if section not in wanted}
    job = {
        "weights": str(Path(checkpoint).absolute()),
        "calibration": str(Path(calibration).absolute()),
        "test": str(Path(test).absolute()),
        "size": size,
        "images": images,
    }
    settings = {**job, "limit": limit, "epochs": epochs, "distill_images": distill_images}
    if (work / "settings.json").is_file() and read_json(work / "settings.json") != settings:
        raise click.ClickException(f"{work} holds rows of other settings: name another --work")
    write_json(work / "settings.json", settings)
    bench = Bench(
        load(Path(checkpoint)).model.eval(),
        Data.open(calibration, test, size, images, limit),
        work,
        job,
        tuple(float(part) for part in keeps.split(",")),
        epochs,
        distill_images,
        rows,
    )
    about = machine(["torch", "openvino", "torch-pruning"])
    start = time.perf_counter()
    for section in SECTIONS:
        if section in wanted:
            RUN[section](bench)
    tell(f"{time.perf_counter() - start:.0f} s")
    top1 = bench.judged(bench.dense, "dense")
    lines = [f"# Pruning {name}", "", about, ""]
    lines += [f"{top1.mean():.2%} top-1 dense on {len(top1)} images; {images} unlabelled ones to prune with."]
    for section in SECTIONS:
        if known := bench.rows.get(section):
            figures = table(COLUMNS[section], [[row, *cells] for row, cells in known.items()])
            lines += ["", f"## {TITLES[section]}", "", figures]
    page = "pruning-budget" if wanted == ["budget"] else "pruning"  # the budget needs a machine of its own
    write(f"{page}-{name}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
