"""Work of the finetune stage: distillation of the dense network into the pruned one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.pipeline import datasets
from edgeship.toolkit.pipeline.preprocessing import from_json

if TYPE_CHECKING:
    from edgeship.toolkit.pipeline.recipe import FinetuneOptions

BATCH = 32  # images decoded at once
HELD_OUT = 0.08  # part of the images that judge a fine-tuning
MOST_HELD_OUT = 256


def held_out(count: int) -> int:
    """How many of so many images judge, instead of being learned from."""
    return max(1, min(int(count * HELD_OUT), MOST_HELD_OUT))


def finetune(options: FinetuneOptions, dense: Path, pruned: Path, out: Path, checkpoint: Path) -> None:
    """Train the pruned network towards the dense one; write it and history.json."""
    from edgeship.calibration.loader import batches
    from edgeship.toolkit.models import weights
    from edgeship.toolkit.prune.finetune import DistillOptions, distill

    described = read_json(dense / "model.json")
    preprocess = from_json(described["preprocess"])
    dataset, indices = datasets.unevaluated(
        options.source, options.images, options.seed, options.exclude, datasets.aliases(described)
    )
    count = held_out(len(indices))
    learned, judges = indices[:-count], indices[-count:]  # pruning held out the last ones, too

    def epoch_batches(epoch: int) -> Iterator[tuple[FloatArray, IntArray]]:
        order = np.random.default_rng((options.seed, epoch)).permutation(learned).tolist()
        for batch in batches(dataset, order, preprocess, batch=options.batch):
            yield batch.images, batch.labels

    wanted = {each.name: getattr(options, each.name) for each in fields(DistillOptions)}
    distill(
        weights.load(pruned).model,
        weights.load(dense).model,
        epoch_batches,
        DistillOptions(**wanted),
        out,
        images=len(learned),
        held_out=[batch.images for batch in batches(dataset, judges, preprocess, batch=BATCH)],
        kept=read_json(pruned / "plan.json")["kept"],
        preprocess=preprocess,
        source=described["preprocess_source"],
        checkpoint=checkpoint,
    )
