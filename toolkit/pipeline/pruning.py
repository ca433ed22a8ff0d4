"""Prune a network: images, measured latencies for a latency goal, and plan.json."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeship.toolkit.core.artifact import write_json
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.pipeline import datasets, distillation_time
from edgeship.toolkit.pipeline.latency_table import LatencyTable
from edgeship.toolkit.runs.network import ModelInfo

if TYPE_CHECKING:
    from edgeship.calibration.datasets import Dataset
    from edgeship.toolkit.core.tensors import Preprocess
    from edgeship.toolkit.models.resnet import ResNet
    from edgeship.toolkit.pipeline.recipe import Recipe
    from edgeship.toolkit.prune.time_budget import TimeBudget

BATCH = 32  # images per batch


def prune(recipe: Recipe, folder: Path, out: Path, checkpoint: Path) -> None:
    """Prune the network of a folder; write it and plan.json.

    Args:
        recipe: Goal, method and images.
        folder: Folder of the load stage.
        out: Folder for the network and plan.json.
        checkpoint: Folder for the state of an interrupted pass; latencies are written to its parent.

    Raises:
        ModelError: The network is an ONNX graph, or the goal cannot be met.
    """
    from edgeship import targets
    from edgeship.toolkit.models import weights
    from edgeship.toolkit.prune import pruner

    model, preprocess = network_of(folder)
    budget = distillation_time.time_budget(recipe, checkpoint.with_name(distillation_time.CLOCK))
    pictures = stream(recipe, preprocess)
    with ExitStack() as stack:
        measure = None
        if recipe.prune.latency_ratio is not None:
            table = checkpoint.with_name("latencies.json")
            measure = stack.enter_context(
                LatencyTable(recipe.compile.targets, preprocess.crop, recipe.bench.threads, table)
            )
        smaller, plan = pruner.prune(
            model, pictures, recipe.prune, measure, checkpoint=checkpoint, budget=budget
        )
    if budget is not None:
        plan = replace(plan, warnings=plan.warnings + _without_distillation(budget))
        write_json(out / distillation_time.SCHEME, targets.get(recipe.compile.targets[0]).scheme())
        write_json(out / distillation_time.CLOCK, budget.elapsed_s)
    weights.save(smaller, out, preprocess, source=ModelInfo.read(folder).preprocess_source)
    write_json(out / "plan.json", plan)


def _without_distillation(budget: TimeBudget) -> tuple[str, ...]:
    """Return a warning if search and refit left no time for the distillation."""
    from edgeship.toolkit.prune.time_budget import in_words

    if budget.left_s > distillation_time.LEAST * budget.limit_s:
        return ()
    return (
        f"prune.budget_s: search and refit took {budget.elapsed_s:.0f} of {budget.limit_s:.0f} s; "
        "distillation is left out, which needs as long again: set prune.budget_s="
        + in_words(2 * budget.elapsed_s),
    )


def network_of(folder: Path) -> tuple[ResNet, Preprocess]:
    """Read the network of the load stage and its preprocessing.

    Raises:
        ModelError: The network is an ONNX graph.
    """
    from edgeship.toolkit.models import weights

    if not (folder / weights.WIDTHS).is_file():
        raise ModelError(
            "an ONNX file cannot be pruned: its channels are not known to belong together",
            hint="give load.weights of a ResNet: its checkpoint, not an ONNX file",
        )
    return weights.load(folder).model, ModelInfo.read(folder).preprocess


def images(recipe: Recipe) -> tuple[Dataset, list[int]]:
    """Select the images for pruning, in random order; return data set and positions."""
    how = recipe.prune
    return datasets.training_images(recipe.prune_source, how.images, how.seed, recipe.evaluate.source)


def stream(recipe: Recipe, preprocess: Preprocess) -> Iterator[FloatArray]:
    """Yield batches of the images for pruning."""
    return datasets.stream(*images(recipe), preprocess, BATCH, "reading images to prune with")
