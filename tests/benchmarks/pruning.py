"""Pruning without labels, beside Torch-Pruning: accuracy, multiply-accumulates, seconds, INT8 latency.

    python tests/benchmarks/pruning.py --checkpoint net.pth --calibration train.zip --test test.zip --size 64

Torch-Pruning is not part of the product: `pip install --no-deps torch-pruning==1.6.1`.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

import quantize
import targets
from calibration.datasets import open_dataset
from calibration.loader import batches
from calibration.manifest import locate, select
from quantize.collect import collect
from targets._timing import interleave
from toolkit.core.statistics import paired_drop
from toolkit.core.tensors import Preprocess
from toolkit.models.export import export
from toolkit.models.resnet import ResNet, macs, resize
from toolkit.models.weights import load
from toolkit.prune import DistillOptions, PruneOptions, distill, prune
from toolkit.prune.apply import widths_of

KEEPS = (0.75, 0.5, 0.35)
EVAL_BATCH = 100
LATENCY_SIZE = 224
RUNS = 100


@dataclass(slots=True)
class Images:
    """Unlabelled images to prune with, labelled ones to judge with, as arrays."""

    calibration: list[np.ndarray]
    test: list[np.ndarray]
    labels: np.ndarray
    distill: tuple[np.ndarray, ...]


@click.command()
@click.option("--checkpoint", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--calibration", required=True, help="Folder, archive or CSV; labels are not read.")
@click.option("--test", required=True, help="Folder, archive or CSV with labels.")
@click.option("--size", default=224, show_default=True, help="Input height and width, in pixels.")
@click.option("--images", default=1000, show_default=True, help="Images to prune with.")
@click.option("--limit", default=0, help="Judge on so many test images only; 0 is all.")
@click.option("--epochs", default=0, show_default=True, help="Epochs of distillation after pruning.")
@click.option("--distill-images", default=0, help="Images of an epoch; 0 is all of --calibration.")
@click.option("--int8/--no-int8", default=True, show_default=True, help="OpenVINO INT8 at 224 px, keep 0.5.")
def main(checkpoint, calibration, test, size, images, limit, epochs, distill_images, int8):
    """Print one row for each method and degree of pruning."""
    dense = load(checkpoint).model
    preprocess = Preprocess(resize=size, crop=size)
    seen = read(calibration, test, preprocess, images, limit, distill_images if epochs else None)
    right = judge(dense, seen, size)
    top1 = right.mean()
    click.echo(f"{dense.architecture.name}: {top1:.2%} top-1 on {len(right)} images, {images} to prune with")
    click.echo(f"{'method':<34}{'MACs':>7}{'top-1':>9}{'drop pp':>9}{'95 % interval':>18}{'seconds':>9}")

    def row(name, model, seconds, before=right):
        after = judge(model, seen, size)
        drop, (low, high) = paired_drop(before, after)
        ratio = macs(dense.architecture, size) / macs(model.architecture, size)
        interval = f"{low:.2f} .. {high:.2f}"
        click.echo(f"{name:<34}{ratio:>6.2f}x{after.mean():>9.2%}{drop:>9.2f}{interval:>18}{seconds:>9.0f}")

    half = None
    for keep in KEEPS:
        small, _, seconds = timed(dense, seen, PruneOptions(keep=keep, step=1))
        row(f"keep {keep}", small, seconds)
        half = small if keep == 0.5 else half
        part = macs(small.architecture, size) / macs(dense.architecture, size)
        free, plan, seconds = timed(dense, seen, PruneOptions(macs=part))
        row(f"macs {part:.3f}, widths by sensitivity", free, seconds)
        if epochs:
            start = time.perf_counter()
            tuned = tune(free, dense, seen, epochs, plan)
            row(f"  and {epochs} epochs of distillation", tuned, time.perf_counter() - start)
        start = time.perf_counter()
        peer = torch_pruning(dense, keep, size)
        row(f"Torch-Pruning, group L2, {keep}", peer, time.perf_counter() - start) if peer else click.echo(
            "Torch-Pruning: not installed"
        )
    if int8:
        latency(dense, half, seen)


def read(calibration, test, preprocess, count, limit, distill_images):
    """Decode everything once."""
    train, judged = open_dataset(calibration), open_dataset(test, labelled=True)
    chosen = locate(select(train, count, 0, exclude=judged), train)
    unlabelled = [batch.images for batch in batches(train, chosen, preprocess, batch=50)]
    order = np.random.default_rng(0).permutation(len(judged))[: limit or None]
    labelled = list(batches(judged, order.tolist(), preprocess, batch=EVAL_BATCH))
    more: tuple[np.ndarray, ...] = ()
    if distill_images is not None:
        rest = sorted(set(range(len(train))) - set(chosen))
        rest = np.random.default_rng(1).permutation(rest)[: distill_images or None].tolist()
        more = tuple(batch.images for batch in batches(train, rest, preprocess, batch=64))
    return Images(
        unlabelled, [b.images for b in labelled], np.concatenate([b.labels for b in labelled]), more
    )


def judge(model, seen, size):
    """Which test images a network gets right."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        export(model, path, size=size, batch=None)
        logits = run(path, seen.test, "fp32")
    return logits.argmax(1) == seen.labels


def run(path, images, precision):
    """Logits of an ONNX file on OpenVINO."""
    target = targets.get("openvino")
    with tempfile.TemporaryDirectory() as folder:
        compiled = target.compile(path, Path(folder), precision)
        with target.open(Path(folder) / compiled.file) as session:
            return np.concatenate([session.infer(batch) for batch in images])


def timed(dense, seen, options):
    """Prune, with the time it takes."""
    start = time.perf_counter()
    small, plan = prune(dense, seen.calibration, options)
    return small, plan, time.perf_counter() - start


def tune(small, dense, seen, epochs, plan):
    """Distil on the images that pruning did not see; those it saw judge."""

    def feed(epoch):
        for number in np.random.default_rng(epoch).permutation(len(seen.distill)):
            yield seen.distill[number], np.full(len(seen.distill[number]), -1)

    with tempfile.TemporaryDirectory() as folder:
        count = sum(len(batch) for batch in seen.distill)
        options = DistillOptions(epochs=epochs)
        held_out = seen.calibration[:6]
        tuned, _ = distill(
            small, dense, feed, options, Path(folder), images=count, held_out=held_out, kept=plan.kept
        )
    return tuned


def torch_pruning(dense, keep, size):
    """Torch-Pruning of the channels inside blocks by group L2 norm; None where it is not installed."""
    try:
        import torch_pruning as tp
    except ImportError:
        return None
    peer = ResNet(dense.architecture)
    peer.load_state_dict(dense.state_dict())
    peer.eval()
    streams = [peer.conv1, peer.fc]
    for _, _, _, block in peer.blocks():
        streams.append(block.conv(block.depth))
        streams.extend(list(block.projection)[:1] if block.projection is not None else [])
    example = torch.randn(1, dense.architecture.channels, size, size)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(
        peer, example, importance=importance, pruning_ratio=1 - keep, ignored_layers=streams
    )
    pruner.step()
    small = ResNet(resize(dense.architecture, widths_of(peer)))
    small.load_state_dict(peer.state_dict())
    return small.eval()


def latency(dense, half, seen):
    """Dense FP32 and INT8, and half the channels in INT8: latency at 224 px, and the drop INT8 adds."""
    target = targets.get("openvino")
    click.echo(f"OpenVINO, batch 1, one thread, {LATENCY_SIZE} px, {RUNS} interleaved runs:")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {}
        size = seen.test[0].shape[2]
        for label, model in (("dense", dense), ("keep 0.5", half)):
            small, large = folder / f"{label}-small.onnx", folder / f"{label}.onnx"
            export(model, small, size=size, batch=None)
            export(model, large, size=LATENCY_SIZE)
            files[f"{label} fp32"] = large
            for graph, images in ((small, seen.calibration[:6]), (large, enlarged(seen.calibration[0][:16]))):
                statistics = collect(graph, images)
                out = graph.with_name(f"{graph.stem}-int8.onnx")
                quantize.quantize(graph, statistics, target.scheme, quantize.QuantizeOptions(), out)
            files[f"{label} int8"] = large.with_name(f"{large.stem}-int8.onnx")
            before = run(small, seen.test, "fp32").argmax(1) == seen.labels
            after = (
                run(small.with_name(f"{small.stem}-int8.onnx"), seen.test, "int8").argmax(1) == seen.labels
            )
            drop, interval = paired_drop(before, after)
            click.echo(f"  INT8 of {label}: drop {drop:.2f} pp ({interval[0]:.2f} .. {interval[1]:.2f})")
        samples = measure(target, files, folder)
        reference = np.median(samples["dense fp32"])
        for label, values in samples.items():
            ms = float(np.median(values))
            click.echo(f"  {label:<16}{ms:>9.3f} ms{reference / ms:>8.2f}x")


def enlarged(images):
    """Images at the latency's size, one a batch."""
    larger = torch.nn.functional.interpolate(
        torch.from_numpy(images), (LATENCY_SIZE, LATENCY_SIZE), mode="bilinear"
    )
    return [image[None].numpy() for image in larger]


def measure(target, files, folder):
    """Interleaved latencies of several graphs."""
    image = np.zeros((1, 3, LATENCY_SIZE, LATENCY_SIZE), np.float32)
    with ExitStack() as stack:
        sessions = {}
        for label, path in files.items():
            out = folder / label
            compiled = target.compile(path, out, "int8" if label.endswith("int8") else "fp32")
            sessions[label] = stack.enter_context(target.open(out / compiled.file, threads=1))
        runs = {label: partial(session.infer, image) for label, session in sessions.items()}
        return interleave(runs, count=RUNS)


if __name__ == "__main__":
    main()
