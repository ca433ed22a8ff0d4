"""Guarded INT8 on OpenVINO: flips on new images over draws, share that runs twice, latency.

    python tests/benchmarks/guard.py                              the networks in ../shared, CIFAR-10, an hour
    python tests/benchmarks/guard.py --threshold-images 49000     a threshold on more images
    python tests/benchmarks/guard.py --weights net.pth --size 224 --train images/train --test images/val

A draw chooses other calibration images and other threshold images, all from --train, without labels. Flips
are counted on --test, against OpenVINO FP32. Finished logits are kept under --work.

Latency is measured at --size, and with the same graphs and decisions at --latency-size.
"""

from __future__ import annotations

import resource
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from _common import SHARED, machine, table, tell, write

from edgeship import targets
from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.manifest import locate, read
from edgeship.quantization.guard import set_threshold
from edgeship.targets._memory import measure
from edgeship.targets.runner.guard import Guarded, margins
from edgeship.toolkit.core.guard_results import Threshold
from edgeship.toolkit.core.statistics import percentile, rate_interval
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.pipeline import Recipe, Store, evaluation, guarding, run
from edgeship.toolkit.runs.network import ExportedGraphs

TARGET = "openvino"
BLOCK = 25  # images of one turn of a variant
LEAD = 5  # untimed images at the start of a turn
FLOAT_TURNS = 5


@dataclass(frozen=True)
class Draw:
    """One draw of calibration and threshold images, and what it gives on the test images.

    `held_out` is the threshold on the test images themselves, and `held_out_flips` the flips with each image
    left out of its own threshold: what a source like the test images gives.
    """

    found: Threshold
    label: str
    graph: Path
    int8_logits: Any
    int8_flips: int
    flips: int
    share: float
    held_out: Threshold
    held_out_flips: int


@dataclass(frozen=True)
class Timing:
    """Latency over the test images in ms, and resident bytes; without preempted calls."""

    int8: tuple[float, float, float]  # mean, p50, p99
    fp32: tuple[float, float, float]
    guarded: tuple[float, float, float]
    once: float  # mean of the guard's calls of one run, and of two
    twice: float
    calls: int
    preempted: float
    clock: str
    int8_bytes: int
    fp32_bytes: int

    def ratio(self, share: float) -> float:
        """Return the mean latency over INT8's where a share of the images runs twice."""
        return ((1 - share) * self.once + share * self.twice) / self.int8[0]


@click.command()
@click.option("--weights", multiple=True, type=click.Path(path_type=Path), help="Checkpoints; repeatable.")
@click.option("--train", default=str(SHARED / "data/cifar10-jpeg-train.zip"), help="Images without labels.")
@click.option("--test", "evaluation_source", default=str(SHARED / "data/cifar10-jpeg-test.zip"))
@click.option("--size", default=64, show_default=True, help="Input side in pixels.")
@click.option("--draws", default=5, show_default=True)
@click.option("--images", default=300, show_default=True, help="Calibration images.")
@click.option("--threshold-images", default=19_999, show_default=True)
@click.option("--max-flips", default=1e-4, show_default=True)
@click.option("--effort", default="max", show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="Timing of each network and input side.")
@click.option("--latency-size", default=224, show_default=True, help="Second input side to time at.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    help="cpu: processor time. At a high load its ratios are too low: other work slows INT8 most.",
)
@click.option("--work", default=Path("build/guard"), type=click.Path(path_type=Path), show_default=True)
@click.option("--out", default="guard.md", show_default=True, help="Name of the report in results/.")
def main(
    *,
    weights: tuple[Path, ...],
    train: str,
    evaluation_source: str,
    size: int,
    draws: int,
    images: int,
    threshold_images: int,
    max_flips: float,
    effort: str,
    seconds: float,
    latency_size: int,
    clock: str,
    work: Path,
    out: str,
) -> None:
    """Measure guarded INT8 on several draws of its images."""
    parts = [
        "# Guarded INT8: flips, second runs and latency",
        machine() + f"\n- Command: `python {shlex.join(['tests/benchmarks/guard.py', *sys.argv[1:]])}`",
        f"- {images} calibration images, effort {effort}; threshold on {threshold_images} other training "
        f"images without labels; limit of flips {max_flips:g}; flips against OpenVINO FP32 on all images of "
        f"{Path(evaluation_source).name}, none of which was used before\n"
        "- The network was trained on the training images, so they are not exchangeable with the test "
        "images: the bound is stated for images like them; the last two columns show how far the two differ",
    ]
    for checkpoint in weights or tuple(sorted((SHARED / "checkpoints").glob("*"))):
        bench = Bench(checkpoint, train, evaluation_source, size, work / checkpoint.stem)
        done = []
        for number in range(draws):
            tell(f"{checkpoint.stem}, draw {number + 1} of {draws}")
            done.append(bench.draw(number, images, threshold_images, max_flips, effort))
        parts += [f"## {checkpoint.stem}", _draws(done, bench.test_images), _held_out(done)]
        if seconds:
            slowest = max(done, key=lambda each: each.share)
            for side in dict.fromkeys((size, latency_size)):
                tell(f"{checkpoint.stem}: latency at {side} px")
                parts.append(_timing(side, slowest, bench.time(slowest, side, seconds, clock), done))
    write(out, "\n\n".join(parts) + "\n")


class Bench:
    """One network: its float graph, and logits that are computed once."""

    def __init__(self, checkpoint: Path, train: str, test: str, size: int, work: Path) -> None:
        self.checkpoint, self.sources, self.size, self.work = checkpoint, (train, test), size, work
        self.train = open_dataset(train, use="train")
        self.test_images = len(open_dataset(test, use="evaluate"))
        work.mkdir(parents=True, exist_ok=True)
        self.preprocess: Preprocess
        self.float_graph: Path

    def draw(self, number: int, images: int, threshold_images: int, max_flips: float, effort: str) -> Draw:
        """Quantize with one draw of calibration images, and set the threshold on a draw of others."""
        recipe = Recipe.build(
            {
                "load": {"weights": str(self.checkpoint)},
                "export": {"size": self.size},
                "select": {"source": self.sources[0], "images": images, "seed": number},
                "quantize": {"effort": effort},
                "compile": {"targets": [TARGET], "precisions": ["int8"]},
                "evaluate": {"source": self.sources[1]},
            }
        )
        finished = run(recipe, until="quantize", store=Store(self.work / "store"))
        self.preprocess = ExportedGraphs.read(finished.folder("export")).preprocess
        self.float_graph = finished.folder("export") / "float.onnx"
        graph, name = finished.folder("quantize") / f"{TARGET}.onnx", f"{effort}-{images}-{number}"
        floats, engine = self._engine(self.float_graph, "fp32", "fp32"), self._engine(graph, "int8", name)
        used = set(locate(read(finished.folder("select") / "manifest.json"), self.train))
        order = np.random.default_rng(number).permutation(len(self.train))
        chosen = [int(index) for index in order if int(index) not in used][:threshold_images]
        pair = [
            self._logits(file, label, "train", chosen) for file, label in ((floats, "fp32"), (engine, name))
        ]
        found = set_threshold(
            margins(pair[1]), _differ(*pair), np.zeros(len(chosen), bool), max_flips, "the training images"
        )
        places = list(range(self.test_images))
        exact, int8 = (
            self._logits(file, label, "evaluate", places)
            for file, label in ((floats, "fp32"), (engine, name))
        )
        composite = guarding.guarded_logits(int8, exact, found.threshold)
        flipped = _differ(int8, exact)
        largest = np.sort(margins(int8)[flipped])[-2:]
        return Draw(
            found,
            name,
            graph,
            int8,
            int(flipped.sum()),
            int(_differ(composite, exact).sum()),
            float((margins(int8) <= found.threshold).mean()),
            set_threshold(
                margins(int8), flipped, np.zeros(len(places), bool), 1 / len(places), "the test images"
            ),
            int(len(largest) > 0 and (len(largest) == 1 or largest[1] > largest[0])),
        )

    def time(self, draw: Draw, side: int, seconds: float, clock: str) -> Timing:
        """Time INT8 and the guard in turns, then FP32, on the test images, one image a call, one thread.

        At another side than the network's the images are enlarged, and the guard decides by their logits at
        that of the network.

        By the wall clock preempted calls are left out. Processor time counts all; at a load of 12
        INT8 was 2.4 times as slow, and the guard's price under half of that of the quiet machine.
        """
        now = time.process_time_ns if clock == "cpu" else time.perf_counter_ns
        images = guarding.traffic(
            open_dataset(self.sources[1], use="evaluate"), self.preprocess, pixels=False
        )
        files = (
            self._engine(self._sized(draw.graph, draw.label, side), "int8", self._label(draw.label, side)),
            self._engine(self._sized(self.float_graph, "fp32", side), "fp32", self._label("fp32", side)),
        )
        taken: dict[str, list[tuple[float, bool, bool]]] = {"int8": [], "fp32": [], "guarded": []}
        with ExitStack() as stack:
            int8, exact = (stack.enter_context(targets.get(TARGET).open(file, threads=1)) for file in files)
            current = 0

            def decide(image: Any) -> Any:
                found = int8.infer(image)
                return found if side == self.size else draw.int8_logits[current : current + 1]

            guard = Guarded(decide, exact.infer, draw.found.threshold)
            runs: dict[str, Callable[[Any], Any]] = {"int8": int8.infer, "guarded": guard}

            def block(name: str, infer: Callable[[Any], Any], start: int) -> None:
                nonlocal current
                for place in range(start, start + BLOCK):
                    current = place % len(images)
                    image = _enlarged(images[current][None], side)
                    before, paused = guard.rerun, _pauses()
                    began = now()
                    infer(image)
                    took_ms = (now() - began) / 1e6
                    if place >= start + LEAD:
                        disturbed = clock == "wall" and _pauses() > paused
                        taken[name].append((took_ms, guard.rerun > before, disturbed))

            end, start = time.perf_counter() + seconds, 0
            while time.perf_counter() < end:
                for name in list(runs) if start // (BLOCK - LEAD) % 2 else list(runs)[::-1]:
                    block(name, runs[name], start)
                start += BLOCK - LEAD
            for turn in range(FLOAT_TURNS):  # last, since FP32 weights evict those of INT8
                block("fp32", exact.infer, turn * BLOCK)
        calls = [each for part in taken.values() for each in part]
        calm = {name: [ms for ms, _, paused in part if not paused] for name, part in taken.items()}
        once, twice = (
            [ms for ms, again, paused in taken["guarded"] if not paused and again is wanted]
            for wanted in (False, True)
        )
        image = _enlarged(images[:1], side)
        sizes = [measure(TARGET, file, image, 1)["resident_bytes"] for file in files]
        return Timing(
            _summary(calm["int8"]),
            _summary(calm["fp32"]),
            _mixed(once, twice, draw.share),
            float(np.mean(once)),
            float(np.mean(twice)),
            len(calls),
            sum(paused for _, _, paused in calls) / len(calls),
            clock,
            *sizes,
        )

    def _engine(self, graph: Path, precision: Any, name: str) -> Path:
        folder = self.work / "engines" / name
        engine = folder / "model.xml"
        return (
            engine
            if engine.is_file()
            else folder / targets.get(TARGET).compile(graph, folder, precision).file
        )

    def _label(self, label: str, side: int) -> str:
        return label if side == self.size else f"{label}-{side}px"

    def _sized(self, graph: Path, label: str, side: int) -> Path:
        """Return the graph with another input side; its layers are those of the network's own side."""
        if side == self.size:
            return graph
        path = self.work / f"{self._label(label, side)}.onnx"
        model = onnx.load(graph)
        for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
            dimension.dim_value = side
        del model.graph.value_info[:]
        onnx.save(model, path)
        return path

    def _logits(self, engine: Path, label: str, use: Any, indices: Sequence[int]) -> Any:
        """Return the logits of images; those that an earlier call computed are kept."""
        source = self.sources[use == "evaluate"]
        path = self.work / f"{label}-{use}.npz"
        kept = dict(np.load(path)) if path.is_file() else {}
        known = {int(index): row for row, index in enumerate(kept.get("indices", ()))}
        absent = [index for index in indices if index not in known]
        if absent:
            job = evaluation.Work(
                (("engine", evaluation.Engine(engine, TARGET)),), source, None, self.preprocess, 32, use=use
            )
            outcome, _ = evaluation.run(job, absent, workers=None, backend="threading", label=label)
            new = {"indices": outcome.indices, "logits": outcome.logits["engine"]}
            kept = {key: np.concatenate([kept[key], new[key]]) if kept else new[key] for key in new}
            np.savez(path, **kept)
            known = {int(index): row for row, index in enumerate(kept["indices"])}
        return kept["logits"][[known[index] for index in indices]]


def _enlarged(image: Any, side: int) -> Any:
    """Return a batch of images (1, C, H, W) at another side, by its nearest pixels."""
    if image.shape[-1] == side:
        return image
    places = np.arange(side) * image.shape[-1] // side
    return np.ascontiguousarray(image[:, :, places][..., places])


def _differ(one: Any, other: Any) -> Any:
    return one.argmax(1) != other.argmax(1)


def _pauses() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _summary(samples: Sequence[float]) -> tuple[float, float, float]:
    return float(np.mean(samples)), percentile(samples, 50), percentile(samples, 99)


def _mixed(once: Sequence[float], twice: Sequence[float], share: float) -> tuple[float, float, float]:
    """Return mean, p50 and p99 of calls of which `share` run twice.

    The images that run twice are rare in the timing and longer, so more often preempted: their weight is the
    share of all test images, not their number among the calls.
    """
    times = np.concatenate([once, twice])
    weights = np.concatenate(
        [np.full(len(once), (1 - share) / len(once)), np.full(len(twice), share / max(len(twice), 1))]
    )
    order = np.argsort(times)
    reached = np.cumsum(weights[order])
    quantiles = [float(times[order][np.searchsorted(reached, each * reached[-1])]) for each in (0.5, 0.99)]
    return float((times * weights).sum() / weights.sum()), quantiles[0], quantiles[1]


def _draws(done: Sequence[Draw], images: int) -> str:
    """Return the table of the draws."""
    rows = []
    for number, each in enumerate(done):
        low, high = rate_interval(each.flips, images)
        rows.append(
            (
                number + 1,
                f"{each.found.flips} of {each.found.images}",
                each.found.left,
                f"{1e4 * each.found.bound:.2f}",
                f"{1e4 * each.found.bound95:.2f}",
                f"{each.found.threshold:.3f}",
                each.int8_flips,
                each.flips,
                f"{1e4 * low:.2f} to {1e4 * high:.2f}",
                f"{100 * each.found.rerun_share:.2f}",
                f"{100 * each.share:.2f}",
            )
        )
    columns = (
        "draw",
        "flips on threshold images",
        "left",
        "bound, in 10,000",
        "of this draw (95 %)",
        "margin",
        "INT8 flips, test",
        "guarded flips, test",
        "in 10,000 (95 %)",
        "run twice %, threshold images",
        "run twice %, test",
    )
    return table(columns, rows)


def _held_out(done: Sequence[Draw]) -> str:
    """Return the table of thresholds on images like the test images."""
    rows = [
        (
            number + 1,
            f"{each.held_out.threshold:.3f}",
            f"{each.held_out_flips} of {each.held_out.images}",
            f"{100 * each.held_out.rerun_share:.2f}",
        )
        for number, each in enumerate(done)
    ]
    columns = ("draw", "margin", "flips, each image by the threshold on all others", "run twice %, test")
    return f"With images that are exchangeable, the test images themselves:\n\n{table(columns, rows)}"


def _timing(side: int, draw: Draw, timing: Timing, done: Sequence[Draw]) -> str:
    """Return the latency of the draw that runs most images twice, and the ratio of every draw."""
    rows = [
        (name, *(f"{each:.3f}" for each in figures), f"{figures[0] / timing.int8[0]:.3f}")
        for name, figures in (("INT8", timing.int8), ("guarded", timing.guarded), ("FP32", timing.fp32))
    ]
    unit = "ms" if timing.clock == "wall" else "ms of processor time"
    latency = table((f"{unit}, one image, one thread", "mean", "p50", "p99", "mean / INT8's"), rows)
    ratios = ", ".join(f"{timing.ratio(each.share):.3f}" for each in done)
    held_out = ", ".join(f"{timing.ratio(each.held_out.rerun_share):.3f}" for each in done)
    return (
        f"### Latency at {side} px\n\n{latency}\n\n"
        f"Of the draw that runs most images twice ({100 * draw.share:.2f} %; the least: "
        f"{100 * min(each.share for each in done):.2f} %). {timing.calls} timed calls, in turns of "
        f"{BLOCK - LEAD} test images; {100 * timing.preempted:.1f} % were preempted and left out. Mean "
        f"latency over INT8's, by the share of each draw: {ratios}; with exchangeable images: {held_out}. "
        f"Resident: INT8 {timing.int8_bytes / 1e6:.0f} MB, FP32 {timing.fp32_bytes / 1e6:.0f} MB; a "
        "guard has both."
    )


if __name__ == "__main__":
    main()
