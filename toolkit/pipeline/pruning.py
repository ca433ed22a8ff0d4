"""Prune a network: images, measured latencies for a latency goal, and plan.json."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from edgeship.toolkit.core.artifact import write_json
from edgeship.toolkit.core.errors import ModelError, RecipeError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.pipeline import datasets
from edgeship.toolkit.pipeline.latency_table import LatencyTable
from edgeship.toolkit.runs.network import ModelInfo

if TYPE_CHECKING:
    from edgeship.toolkit import prune as pruner
    from edgeship.toolkit.core.tensors import Preprocess
    from edgeship.toolkit.models.resnet import ResNet
    from edgeship.toolkit.pipeline.recipe import PruneOptions

GOALS = ("keep_ratio", "macs_ratio", "latency_ratio", "max_expected_drop_pp")
BATCH = 32  # images per batch


def check(options: PruneOptions) -> None:
    """Raise if a pruning goal is set but `prune.method` is "none".

    Raises:
        RecipeError: It is.
    """
    goals = [name for name in GOALS if getattr(options, name) is not None]
    if goals and options.method == "none":
        raise RecipeError(f"prune.{goals[0]} is set, but prune.method is none", hint="--set prune.method=obs")


def prune(options: PruneOptions, folder: Path, out: Path, checkpoint: Path) -> None:
    """Prune the network of a folder; write it and plan.json.

    Args:
        options: Goal and method.
        folder: Folder of the load stage.
        out: Folder for the network and plan.json.
        checkpoint: Folder for the state of an interrupted pass; latencies are written to its parent.

    Raises:
        ModelError: The network is an ONNX graph, or the goal cannot be met.
    """
    from edgeship.toolkit import prune as pruner
    from edgeship.toolkit.models import weights

    model, preprocess = network_of(folder)
    pictures = stream(options, preprocess)
    with ExitStack() as stack:
        measure = None
        if options.latency_ratio is not None:
            table = checkpoint.with_name("latencies.json")
            measure = stack.enter_context(
                LatencyTable(options.targets, preprocess.crop, options.threads, table)
            )
        smaller, plan = pruner.prune(model, pictures, options_of(options), measure, checkpoint=checkpoint)
    weights.save(smaller, out, preprocess, source=ModelInfo.read(folder).preprocess_source)
    write_json(out / "plan.json", plan)


def network_of(folder: Path) -> tuple[ResNet, Preprocess]:
    """Read the network of the load stage and its preprocessing.

    Raises:
        ModelError: The network is an ONNX graph.
    """
    from edgeship.toolkit.models import weights

    if not (folder / weights.WIDTHS).is_file():
        raise ModelError(
            "an ONNX file cannot be pruned: its channels are not known to belong together",
            hint="give load.weights of a ResNet instead of load.model=file.onnx, or set prune.method=none",
        )
    return weights.load(folder).model, ModelInfo.read(folder).preprocess


def stream(options: PruneOptions, preprocess: Preprocess) -> Iterator[FloatArray]:
    """Yield batches of the images for pruning."""
    dataset, indices = datasets.training_images(options.source, options.images, options.seed, options.exclude)
    return datasets.stream(dataset, indices, preprocess, BATCH, "reading images to prune with")


def options_of(options: PruneOptions) -> pruner.PruneOptions:
    """Convert the prune section to options of the pruner."""
    from edgeship.toolkit import prune as pruner

    return pruner.PruneOptions(
        **{each.name: getattr(options, each.name) for each in fields(pruner.PruneOptions)}
    )
