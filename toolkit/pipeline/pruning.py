"""The prune and finetune stages' work: images, a stopwatch on this machine, and what is handed on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.core.artifact import plain, read_json, write_json
from toolkit.core.errors import ModelError, RecipeError
from toolkit.core.quant import FloatArray, IntArray
from toolkit.core.statistics import percentile
from toolkit.pipeline import images
from toolkit.pipeline.preprocessing import from_json
from toolkit.pipeline.recipe import FinetuneOptions, PruneOptions

if TYPE_CHECKING:
    from toolkit.models.resnet import Architecture

GOALS = ("keep", "macs", "target_latency", "max_drop_pp")
BATCH = 32  # images decoded at once
HELD_OUT = 0.08  # part of the images that judge a fine-tuning
MOST_HELD_OUT = 256
STOPWATCH_SECONDS = 0.4  # for each network that is timed


def check(options: PruneOptions) -> None:
    """Refuse a goal without a method: it would be passed over in silence.

    Raises:
        RecipeError: So it is.
    """
    goals = [name for name in GOALS if getattr(options, name) is not None]
    if goals and options.method == "none":
        raise RecipeError(f"prune.{goals[0]} is set, but prune.method is none", hint="--set prune.method=obs")


def prune(options: PruneOptions, folder: Path, out: Path, checkpoint: Path) -> None:
    """Prune the network of a folder; write it and plan.json.

    Raises:
        ModelError: There is only a graph, or the goal cannot be met.
    """
    from toolkit import prune as pruner
    from toolkit.models import weights

    if not (folder / weights.WIDTHS).is_file():
        raise ModelError(
            "an ONNX file cannot be pruned: its channels are not known to belong together",
            hint="give load.weights of a ResNet instead of load.model=file.onnx, or set prune.method=none",
        )
    preprocess = from_json(read_json(folder / "model.json")["preprocess"])
    dataset, indices = images.unevaluated(options.source, options.images, options.seed, options.exclude)
    stream = images.stream(dataset, indices, preprocess, BATCH, "reading images to prune with")
    measure = None
    if options.target_latency is not None:
        measure = stopwatch(options.targets, preprocess.crop, options.threads)
    wanted = {each.name: getattr(options, each.name) for each in fields(pruner.PruneOptions)}
    model = weights.load(folder).model
    smaller, plan = pruner.prune(model, stream, pruner.PruneOptions(**wanted), measure, checkpoint=checkpoint)
    weights.save(smaller, out, preprocess)
    write_json(out / "plan.json", plan)


def finetune(options: FinetuneOptions, dense: Path, pruned: Path, out: Path, checkpoint: Path) -> None:
    """Train the pruned network towards the dense one; write it and history.json."""
    from calibration.loader import batches
    from toolkit import prune as pruner
    from toolkit.models import weights

    preprocess = from_json(read_json(dense / "model.json")["preprocess"])
    dataset, indices = images.unevaluated(options.source, options.images, options.seed, options.exclude)
    count = max(1, min(round(len(indices) * HELD_OUT), MOST_HELD_OUT))
    judges, learned = indices[:count], indices[count:]

    def epoch_batches(epoch: int) -> Iterator[tuple[FloatArray, IntArray]]:
        order = np.random.default_rng((options.seed, epoch)).permutation(learned).tolist()
        for batch in batches(dataset, order, preprocess, batch=options.batch):
            yield batch.images, batch.labels

    wanted = {each.name: getattr(options, each.name) for each in fields(pruner.DistillOptions)}
    pruner.distill(
        weights.load(pruned).model,
        weights.load(dense).model,
        epoch_batches,
        pruner.DistillOptions(**wanted),
        out,
        images=len(learned),
        held_out=[batch.images for batch in batches(dataset, judges, preprocess, batch=BATCH)],
        kept=read_json(pruned / "plan.json")["kept"],
        preprocess=preprocess,
        checkpoint=checkpoint,
    )


def stopwatch(names: tuple[str, ...], size: int, threads: int) -> Callable[[Architecture], float]:
    """A function that tells the INT8 latency of an architecture on this machine, in milliseconds.

    Weights do not matter for it, so random ones are exported, quantized with the least effort and
    compiled for the first of the targets that runs here.

    Args:
        names: Targets, in order of preference.
        size: Input height and width in pixels.
        threads: CPU threads.
    """
    import targets
    from quantize import QuantizeOptions, quantize
    from quantize.collect import collect
    from targets._timing import interleave
    from toolkit.models import export, resnet

    noise = np.random.default_rng(0).normal(size=(4, 3, size, size)).astype(np.float32)
    seen: dict[Any, float] = {}

    def measure(arch: Architecture) -> float:
        key = plain(arch.widths)
        if str(key) in seen:
            return seen[str(key)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            export.export(resnet.ResNet(arch).eval(), folder / "float.onnx", size=size)
            statistics = collect(folder / "float.onnx", [noise])
            how = QuantizeOptions(observer="minmax", effort="fast")
            for target in map(targets.get, names):
                quantize(folder / "float.onnx", statistics, target.scheme, how, folder / "int8.onnx")
                built = target.compile(folder / "int8.onnx", folder / "engine", "int8")
                if built.runs_here:
                    break
            else:
                raise ModelError(
                    f"prune.target_latency: none of {', '.join(names)} runs on this machine",
                    hint="set prune.macs, or run on the device",
                )
            with target.open(folder / "engine" / built.file, threads=threads) as session:
                samples = interleave({"it": lambda: session.infer(noise[:1])}, duration_s=STOPWATCH_SECONDS)
        seen[str(key)] = percentile(samples["it"], 50)
        return seen[str(key)]

    return measure
