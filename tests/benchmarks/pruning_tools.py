"""Tools of the pruning benchmark: images, networks in folders, judges, clocks, Torch-Pruning.

Run as a program it prunes once, as a job (`_common.run_fresh`) says: seconds and memory of a fresh process.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _common import peak_bytes

from edgeship import quantization, targets
from edgeship.calibration.datasets import Dataset, open_dataset
from edgeship.calibration.loader import batches
from edgeship.calibration.manifest import locate, select
from edgeship.quantization.calibrate import collect
from edgeship.targets._timing import interleave
from edgeship.toolkit.core.artifact import read_json, write_json
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models.export import export
from edgeship.toolkit.models.resnet import ResNet, resize
from edgeship.toolkit.models.weights import load, save
from edgeship.toolkit.pipeline.latency_table import LatencyTable
from edgeship.toolkit.prune.apply import widths_of
from edgeship.toolkit.prune.distill_options import DistillOptions
from edgeship.toolkit.prune.finetune import distill
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.pruner import prune
from edgeship.toolkit.prune.time_budget import TimeBudget

TARGET = "openvino"
BATCH = 50  # images at once
CALIBRATION = 300  # images that INT8 is calibrated on
HELD_OUT = 256  # images that judge a distillation


@dataclass(slots=True)
class Data:
    """Unlabelled images to prune with, more of them to distil on, labelled ones to judge with.

    Attributes:
        train: Where the unlabelled ones come from.
        test: The labelled ones.
        chosen: Positions of those to prune with.
        rest: Positions of all others, in a random order.
        preprocess: How they are prepared.
    """

    train: Dataset
    test: Dataset
    chosen: list[int]
    rest: list[int]
    preprocess: Preprocess
    judged: list[int]

    @classmethod
    def open(cls, calibration: str, test: str, size: int, count: int, limit: int) -> Data:
        """Choose so many images of `calibration`, none of them of `test`, of which `limit` (0: all) judge."""
        train, labelled = open_dataset(calibration), open_dataset(test, labelled=True)
        chosen = locate(select(train, count, 0, exclude=labelled), train)
        rest = np.random.default_rng(1).permutation(sorted(set(range(len(train))) - set(chosen))).tolist()
        judged = np.random.default_rng(0).permutation(len(labelled))[: limit or None].tolist()
        return cls(train, labelled, chosen, rest, Preprocess(resize=size, crop=size), judged)

    def unlabelled(self, indices: Sequence[int], batch: int = BATCH) -> Iterator[np.ndarray]:
        """Images of the first source, in batches."""
        return (each.images for each in batches(self.train, indices, self.preprocess, batch=batch))

    def pruning(self) -> list[np.ndarray]:
        """The images to prune with."""
        return list(self.unlabelled(self.chosen))


class Judge:
    """Return a mask of the test images that a graph gets right on OpenVINO."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def network(self, model: ResNet, folder: Path) -> np.ndarray:
        """Of a network in FP32; remembered in the folder."""
        known = folder / "right.npy"
        if not known.is_file():
            with tempfile.TemporaryDirectory() as name:
                graph = Path(name) / "float.onnx"
                export(model, graph, size=self._data.preprocess.crop, batch=None)
                right = self.graph(graph, "fp32")
            folder.mkdir(exist_ok=True)
            np.save(known, right)
        return np.load(known)

    def graph(self, path: Path, precision: str) -> np.ndarray:
        """Of a graph."""
        target, data = targets.get(TARGET), self._data
        with tempfile.TemporaryDirectory() as folder:
            built = target.compile(path, Path(folder), precision)
            with target.open(Path(folder) / built.file) as session:
                stream = batches(data.test, data.judged, data.preprocess, batch=100)
                hits = [session.infer(each.images).argmax(1) == each.labels for each in stream]
        return np.concatenate(hits)


def pruned(dense: ResNet, data: Data, options: PruneOptions, folder: Path) -> ResNet:
    """Prune into a folder, with plan.json and the seconds it took; made once."""
    if not (folder / "seconds.json").is_file():
        images = data.pruning()
        start = time.perf_counter()
        small, plan = prune(dense, images, options)
        seconds = time.perf_counter() - start
        save(small, folder)
        write_json(folder / "plan.json", plan)
        write_json(folder / "seconds.json", seconds)
    return load(folder).model


def distilled(
    small: ResNet, dense: ResNet, data: Data, options: DistillOptions, count: int, plan: Path, folder: Path
) -> ResNet:
    """Distil on so many images that pruning did not see (0: all); others judge; made once."""
    if not (folder / "seconds.json").is_file():
        judges, learned = data.rest[:HELD_OUT], data.rest[HELD_OUT:][: count or None]

        def feed(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            order = np.random.default_rng(epoch).permutation(learned).tolist()
            for images in data.unlabelled(order, options.batch):
                yield images, np.full(len(images), -1)

        start = time.perf_counter()
        distill(
            small,
            dense,
            feed,
            options,
            folder,
            images=len(learned),
            held_out=list(data.unlabelled(judges)),
            kept=read_json(plan)["kept"],
        )
        write_json(folder / "seconds.json", time.perf_counter() - start)
    return load(folder).model


def torch_pruned(dense: ResNet, keep: float, size: int, folder: Path) -> ResNet:
    """Torch-Pruning of the channels inside blocks by group L2 norm, without training.

    Raises:
        ImportError: It is not installed.
    """
    import torch_pruning as tp

    peer = ResNet(dense.architecture)
    peer.load_state_dict(dense.state_dict())
    peer.eval()
    streams = [peer.conv1, peer.fc]
    for _, _, _, block in peer.blocks():
        streams.append(block.conv(block.depth))
        streams.extend(list(block.projection)[:1] if block.projection is not None else [])
    example = torch.randn(1, dense.architecture.channels, size, size)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    start = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        peer, example, importance=importance, pruning_ratio=1 - keep, ignored_layers=streams
    )
    pruner.step()
    seconds = time.perf_counter() - start
    small = ResNet(resize(dense.architecture, widths_of(peer)))
    small.load_state_dict(peer.state_dict())
    save(small.eval(), folder)
    write_json(folder / "seconds.json", seconds)
    return small


def quantized(
    model: ResNet, size: int, images: Iterable[np.ndarray], folder: Path, batch: int | None = None
) -> tuple[Path, Path]:
    """The float graph and the INT8 one; a batch of None is dynamic."""
    folder.mkdir(parents=True, exist_ok=True)
    plain, rounded = folder / "float.onnx", folder / "int8.onnx"
    export(model, plain, size=size, batch=batch)
    scheme = targets.get(TARGET).scheme()
    quantization.quantize(plain, collect(plain, images), scheme, quantization.QuantizeOptions(), rounded)
    return plain, rounded


def enlarged(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Images at another size, one at once."""
    for part in torch.split(torch.from_numpy(images), 1):
        yield torch.nn.functional.interpolate(part, (size, size), mode="bilinear").numpy()


def latencies(
    graphs: dict[str, Path],
    size: int,
    seconds: float,
    folder: Path,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, float]:
    """Median milliseconds of graphs in turns; batch 1, one thread. A name that ends in INT8 is one."""
    target, image = targets.get(TARGET), np.zeros((1, 3, size, size), np.float32)
    with ExitStack() as stack:
        runs = {}
        for number, (name, graph) in enumerate(graphs.items()):
            out = folder / str(number)
            built = target.compile(graph, out, "int8" if name.endswith("INT8") else "fp32")
            session = stack.enter_context(target.open(out / built.file, threads=1))
            runs[name] = partial(session.infer, image)
        samples = interleave(runs, warmup_s=0.5, duration_s=seconds, clock_ns=clock_ns)
    return {name: float(np.median(values)) for name, values in samples.items()}


def for_latency(dense: ResNet, data: Data, part: float, size: int, folder: Path) -> dict[str, float | None]:
    """Prune for a part of the latency at a size; milliseconds before, predicted, measured, and once more."""
    with LatencyTable((TARGET,), size, 1, folder / "latencies.json") as measure:
        small, plan = prune(
            dense,
            data.pruning(),
            PruneOptions(latency_ratio=part),
            measure,
            checkpoint=folder / "states",
        )
        again = measure(small.architecture)
    save(small, folder)
    write_json(folder / "plan.json", plan)
    return {
        "before": plan.latency_before_ms,
        "predicted": plan.latency_predicted_ms,
        "measured": plan.latency_after_ms,
        "again": again,
    }


def in_budget(
    dense: ResNet, data: Data, ratio: float, size: int, seconds: float, folder: Path
) -> tuple[ResNet, float]:
    """Search jointly for a part of the latency, refit and distil in a time; the network and the seconds.

    Resumed after an interruption; the seconds of all processes are counted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "seconds.json").is_file():
        budget = TimeBudget(seconds, folder / "clock.json")
        options = PruneOptions(latency_ratio=ratio, scope="joint", budget_s=seconds)
        with LatencyTable((TARGET,), size, 1, folder / "latencies.json") as measure:
            small, plan = prune(
                dense,
                data.pruning(),
                options,
                measure,
                checkpoint=folder / "states",
                budget=budget,
                latency_size=size,
            )
        write_json(folder / "plan.json", plan)
        judges, learned = data.rest[:HELD_OUT], data.rest[HELD_OUT:]

        def feed(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            order = np.random.default_rng(number).permutation(learned).tolist()
            for images in data.unlabelled(order, DistillOptions().batch):
                yield images, np.full(len(images), -1)

        distill(
            small,
            dense,
            feed,
            DistillOptions(),
            folder,
            images=len(learned),
            held_out=list(data.unlabelled(judges)),
            kept=plan.kept,
            budget=budget,
            scheme=targets.get(TARGET).scheme(),
        )
        write_json(folder / "seconds.json", budget.elapsed_s)
    return load(folder).model, float(read_json(folder / "seconds.json"))


def work(job: Path) -> None:
    """Prune once in this process; seconds and the largest resident memory beyond the images'."""
    order = json.loads(job.read_text(encoding="utf-8"))
    data = Data.open(order["calibration"], order["test"], order["size"], order["images"], 1)
    dense, images = load(Path(order["weights"])).model, data.pruning()
    start = time.perf_counter()
    prune(dense, images, PruneOptions(keep_ratio=order["keep"]))
    result = {"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes()}
    Path(order["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
