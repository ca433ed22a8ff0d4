"""Distill the dense network into the pruned one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.quant import FloatArray, IntArray, QuantScheme
from edgeship.toolkit.core.typed_json import read_as
from edgeship.toolkit.pipeline import datasets, distillation_time
from edgeship.toolkit.runs.network import ModelInfo

if TYPE_CHECKING:
    from edgeship.toolkit.pipeline.recipe import Recipe

BATCH = 32  # images per batch
HELD_OUT = 0.08  # part of the images for validation
MOST_HELD_OUT = 256


def validation_count(count: int) -> int:
    """Return the number of validation images among a number of images."""
    return max(1, min(int(count * HELD_OUT), MOST_HELD_OUT))


def finetune(recipe: Recipe, dense: Path, pruned: Path, out: Path, checkpoint: Path) -> None:
    """Distill the dense network into the pruned one; write it and history.json."""
    from edgeship.calibration.loader import batches
    from edgeship.toolkit.models import weights
    from edgeship.toolkit.prune.finetune import distill

    options, info = recipe.finetune, ModelInfo.read(dense)
    budget, scheme = None, None
    if recipe.prune.budget_s is not None:
        used_s = float(read_json(pruned / distillation_time.CLOCK))
        budget = distillation_time.time_budget(recipe, checkpoint.with_name(distillation_time.CLOCK), used_s)
        scheme = read_as(pruned / distillation_time.SCHEME, QuantScheme)
    preprocess = info.preprocess
    dataset, indices = datasets.training_images(
        recipe.finetune_source, options.images, options.seed, recipe.evaluate.source, info.class_names
    )
    count = validation_count(len(indices))
    train, validation = indices[:-count], indices[-count:]  # pruning holds out the last ones, too

    def epoch_batches(epoch: int) -> Iterator[tuple[FloatArray, IntArray]]:
        order = np.random.default_rng((options.seed, epoch)).permutation(train).tolist()
        for batch in batches(dataset, order, preprocess, batch=options.batch):
            yield batch.images, batch.labels

    distill(
        weights.load(pruned).model,
        weights.load(dense).model,
        epoch_batches,
        options,
        out,
        images=len(train),
        held_out=[batch.images for batch in batches(dataset, validation, preprocess, batch=BATCH)],
        kept=read_json(pruned / "plan.json")["kept"],
        preprocess=preprocess,
        source=info.preprocess_source,
        checkpoint=checkpoint,
        budget=budget,
        scheme=scheme,
    )
