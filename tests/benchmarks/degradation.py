"""Plain and residual networks of two depths on the same data and budget: the degradation of deep plain nets.

    python tests/benchmarks/degradation.py                        CIFAR-10 of ../shared, half an hour
    python tests/benchmarks/degradation.py --source digits:train --test digits:test --images 500 --epochs 3
    python tests/benchmarks/degradation.py --extended             shortcuts A, B and C, and pre-activation

Training error is that of the augmented images while an epoch runs, as in Figure 6 of He et al. 2015
(arXiv:1512.03385); test error is measured after every epoch. Finished epochs are kept under --work.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from _common import RESULTS, SHARED, machine, table, tell, write

from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.loader import batches
from edgeship.toolkit.core.artifact import read_json, write_json, write_text
from edgeship.toolkit.core.statistics import paired_drop, wilson
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models import trainer
from edgeship.toolkit.models.resnet import ResNet, architecture, macs
from edgeship.toolkit.models.train_options import TrainOptions

SIZE = 32
PREPROCESS = Preprocess(SIZE, SIZE, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
BATCH, CHUNK = 128, 500
NAME = "degradation-cifar10"
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#7f7f7f")


@dataclass(frozen=True)
class Net:
    """A network of the comparison: its name, architecture and shortcut (None: the usual one)."""

    name: str
    model: str
    shortcut: str | None = None


def networks(shallow: int, deep: int, *, extended: bool) -> list[Net]:
    """Return the networks: plain and residual in both depths, with `extended` also the variants."""
    depths = (shallow, deep)
    kinds = {"plain": "plain_", "ResNet": ""}
    nets = [
        Net(f"{name}-{each}", f"{prefix}resnet{each}") for name, prefix in kinds.items() for each in depths
    ]
    if extended:
        nets += [Net(f"ResNet-{shallow} {each}", f"resnet{shallow}", each) for each in ("B", "C")]
        nets += [Net(f"pre-activation-{depth}", f"preact_resnet{depth}") for depth in depths]
    return nets


@dataclass(frozen=True)
class Images:
    """Preprocessed images (N, C, H, W) and N labels."""

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, source: str, count: int, use: str) -> Images:
        """Decode `count` images of a source, evenly spread over it."""
        dataset = open_dataset(source, labelled=True, use=use)
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()
        parts = list(batches(dataset, chosen, PREPROCESS, batch=CHUNK))
        return cls(
            np.concatenate([each.images for each in parts]), np.concatenate([each.labels for each in parts])
        )

    def epoch(self, seed: int, number: int):
        """Yield the batches of an epoch in random order."""
        order = np.random.default_rng((seed, number)).permutation(len(self.labels))
        for start in range(0, len(order) - 1, BATCH):
            part = order[start : start + BATCH]
            yield self.images[part], self.labels[part]


def predicted(model: ResNet, images: np.ndarray) -> np.ndarray:
    """Return the classes of images."""
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(images[i : i + CHUNK])).argmax(1) for i in range(0, len(images), CHUNK)
        ]
    return torch.cat(parts).numpy()


def trained(net: Net, train: Images, test: Images, options: TrainOptions, classes: int, work: Path) -> dict:
    """Train a network, or read its result: errors of every epoch, and the last classes of the test images."""
    folder = work / net.name.replace(" ", "-")
    key = {
        "net": asdict(net),
        "options": asdict(options),
        "images": len(train.labels),
        "test": len(test.labels),
    }
    result = folder / "result.json"
    if result.is_file() and (kept := read_json(result))["key"] == key:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    model = ResNet(architecture(net.model, classes=classes, shortcut=net.shortcut))
    last: list[np.ndarray] = []

    def error() -> float:
        last[:] = [predicted(model, test.images)]
        tell(f"{net.name}: test error {100 * float((last[0] != test.labels).mean()):.1f} %")
        return float((last[0] != test.labels).mean())

    continued = (folder / "checkpoint.pt").exists()  # then the seconds of the earlier process are not known
    began = time.perf_counter()
    history = trainer.fit(
        model,
        lambda number: train.epoch(options.seed, number),
        options,
        trainer.label_loss,
        images=len(train.labels),
        checkpoint=folder / "checkpoint.pt",
        score=error,
        label=net.name,
    )
    outcome = {
        "key": key,
        "train_error": [1 - each for each in history.accuracy],
        "test_error": list(history.score[1:]),
        "classes": last[0].tolist(),
        "macs": macs(model.architecture, SIZE),
        "seconds": None if continued else time.perf_counter() - began,
    }
    write_json(result, outcome)
    return outcome


def curves(results: dict[str, dict]) -> str:
    """Return an SVG of the errors by epoch: training dashed, test solid."""
    left, top, width, height = 60, 20, 560, 360
    epochs = max(len(each["test_error"]) for each in results.values())
    most = min(1.0, 1.05 * max(max(each["test_error"] + each["train_error"]) for each in results.values()))

    def line(values: list[float], colour: str, dashed: bool) -> str:
        points = " ".join(
            f"{left + width * (place + 1) / epochs:.1f},{top + height * (1 - value / most):.1f}"
            for place, value in enumerate(values)
        )
        style = ' stroke-dasharray="5 4"' if dashed else ' stroke-width="2"'
        return f'<polyline points="{points}" fill="none" stroke="{colour}"{style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 240} {height + 70}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="black"/>',
        f'<text x="{left + width / 2}" y="{top + height + 40}">epoch</text>',
        f'<text x="14" y="{top + height / 2}" transform="rotate(-90 14 {top + height / 2})">error, %</text>',
    ]
    for step in range(6):
        y = top + height * (1 - step / 5)
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * most * step / 5:.0f}</text>'
        )
    for number in sorted({1, epochs, max(1, epochs // 2)}):
        parts.append(
            f'<text x="{left + width * number / epochs:.1f}" y="{top + height + 18}">{number}</text>'
        )
    for place, (name, each) in enumerate(results.items()):
        colour = COLOURS[place % len(COLOURS)]
        parts += [line(each["train_error"], colour, True), line(each["test_error"], colour, False)]
        y = top + 20 * (place + 1)
        parts.append(f'<path d="M{left + width + 20} {y - 4}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + width + 50}" y="{y}">{name}</text>')
    parts.append(f'<text x="{left + width + 20}" y="{top + height}">dashed: training</text></svg>')
    return "\n".join(parts) + "\n"


def report(results: dict[str, dict], test: Images, about: str, setup: str, shallow: int, deep: int) -> str:
    """Return the page: errors with intervals, and the change from the shallow to the deep net of a kind."""
    rows = []
    for name, each in results.items():
        wrong = np.array(each["classes"]) != test.labels
        error, low, high = (100 * value for value in wilson(int(wrong.sum()), len(wrong)))
        rows.append(
            (name, f"{each['macs'] / 1e6:.1f} M", f"{100 * each['train_error'][-1]:.1f} %", f"{error:.1f} %",
             f"[{low:.1f}, {high:.1f}]", None if each["seconds"] is None else f"{each['seconds']:.0f}")
        )  # fmt: skip
    changes = []
    for kind in ("plain", "ResNet", "pre-activation"):
        pair = [results.get(f"{kind}-{depth}") for depth in (shallow, deep)]
        if None in pair:
            continue
        right = [np.array(each["classes"]) == test.labels for each in pair]
        change, (low, high) = paired_drop(*right)
        by_training = 100 * (pair[1]["train_error"][-1] - pair[0]["train_error"][-1])
        changes.append((kind, f"{by_training:+.1f}", f"{change:+.1f}", f"[{low:.1f}, {high:.1f}]"))
    return "\n\n".join(
        [
            f"# Plain and residual networks of {shallow} and {deep} layers",
            about,
            setup,
            table(("network", "MACs", "training error", "test error", "95 %", "seconds"), rows),
            f"Change of the error from {shallow} to {deep} layers, in points (above 0: it is worse):",
            table(("kind", "training", "test", "95 %"), changes),
            f"![Errors by epoch]({NAME}.svg)",
        ]
    ) + "\n"  # fmt: skip


@click.command()
@click.option("--source", default=str(SHARED / "data/cifar10-jpeg-train.zip"), show_default=True)
@click.option("--test", "test_source", default=str(SHARED / "data/cifar10-jpeg-test.zip"), show_default=True)
@click.option("--images", default=20_000, show_default=True, type=click.IntRange(2))
@click.option("--test-images", default=4_000, show_default=True, type=click.IntRange(2))
@click.option("--epochs", default=8, show_default=True, type=click.IntRange(1))
@click.option("--depths", default=(20, 56), show_default=True, nargs=2, type=int)
@click.option("--extended", is_flag=True, help="Shortcuts B and C, and pre-activation too.")
@click.option("--seed", default=0, show_default=True)
@click.option("--work", default="build/degradation", show_default=True, type=click.Path(path_type=Path))
def main(
    source: str, test_source: str, images: int, test_images: int, epochs: int, depths: tuple[int, int],
    extended: bool, seed: int, work: Path,
) -> None:  # fmt: skip
    """Train the networks and write results/degradation-cifar10.md and .svg."""
    about = (
        machine() + f"\n- Command: `python {shlex.join(['tests/benchmarks/degradation.py', *sys.argv[1:]])}`"
    )
    shallow, deep = depths
    train, test = Images.of(source, images, "train"), Images.of(test_source, test_images, "evaluate")
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    options = TrainOptions(epochs=epochs, batch=BATCH, learning_rate=0.1, weight_decay=1e-4, seed=seed)
    results = {
        net.name: trained(net, train, test, options, classes, work)
        for net in networks(shallow, deep, extended=extended)
    }
    setup = (
        f"{len(train.labels):,} training and {len(test.labels):,} test images of {SIZE} px, {epochs} epochs "
        f"of batches of {BATCH}, SGD with a one-cycle rate up to {options.learning_rate}, seed {seed}."
    )
    write_text(RESULTS / f"{NAME}.svg", curves(results))
    write(f"{NAME}.md", report(results, test, about, setup, shallow, deep))


if __name__ == "__main__":
    main()
