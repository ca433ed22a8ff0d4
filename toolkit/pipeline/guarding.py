"""Guard INT8 variants: set their thresholds, and evaluate them from the logits of both engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgeship.targets.runner.guard import margins
from edgeship.targets.runner.guard_record import FILE
from edgeship.toolkit.core.artifact import write_json
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.core.threads import ordered_map
from edgeship.toolkit.pipeline import evaluation
from edgeship.toolkit.runs import guarded
from edgeship.toolkit.runs.compiled import CompiledVariant, CompiledVariants
from edgeship.toolkit.runs.guarded import Guard, GuardedRun, GuardedRuns, Guards
from edgeship.toolkit.runs.variant_id import VariantId

if TYPE_CHECKING:
    from edgeship.calibration.datasets import Dataset
    from edgeship.toolkit.core.results import Precision
    from edgeship.toolkit.pipeline.recipe import Recipe
    from edgeship.toolkit.pipeline.stage import Inputs

TRAFFIC_BYTES = 256 << 20  # of prepared images for timing
TRAFFIC_IMAGES = 5000


def set_guards(recipe: Recipe, inputs: Inputs, preprocess: Preprocess, out: Path) -> Guards:
    """Set the threshold of every INT8 variant on unlabelled images; write guard.json of each.

    Args:
        recipe: Bound, images, reference.
        inputs: Folders of the stages compile, export, quantize and select.
        preprocess: Preprocessing of an image.
        out: Parent of the folders of the guarded variants.

    Raises:
        RecipeError: The images are too few for the bound, or an engine is missing.
    """
    from edgeship.quantization.guard import check_enough, set_threshold

    options, limit = recipe.guard, recipe.guard.max_flips
    assert limit is not None
    built = CompiledVariants.read(inputs["compile"]).built()
    chosen = _guarded(built, options.reference)
    source = options.source or recipe.select.source
    dataset, indices = _images(recipe, inputs, source, limit)
    check_enough(limit, len(indices), dataset.name)
    needed = {
        each: built[each]
        for variant in chosen
        for each in (
            guarded.exact(variant),
            guarded.fast(variant),
            guarded.reference(variant, options.reference),
        )
    }
    work = evaluation.Work(
        evaluation.engines(needed, inputs),
        source,
        None,
        preprocess,
        recipe.evaluate.batch,
        recipe.select.skip_unreadable,
        use="train",
    )
    outcome, _ = evaluation.run(
        work,
        indices,
        workers=recipe.evaluate.workers,
        backend=recipe.evaluate.backend,
        label="setting the guard",
    )
    guards = {}
    for variant in chosen:
        second = guarded.reference(variant, options.reference)
        exact, int8 = outcome.logits[guarded.exact(variant).name], outcome.logits[guarded.fast(variant).name]
        found = set_threshold(
            margins(int8),
            _differ(int8, exact),
            _differ(outcome.logits[second.name], exact),
            limit,
            dataset.name,
        )
        guards[variant.name] = Guard(
            **asdict(found),
            max_flips=limit,
            reference=options.reference,
            source=dataset.name,
            own_images=bool(options.source),
            simulated=not (built[guarded.fast(variant)].runs_here and built[second].runs_here),
        )
        (out / variant.name).mkdir()
        write_json(out / variant.name / FILE, guards[variant.name].for_device())
    return Guards(guards)


def evaluate(outcome: evaluation.Outcome, guards: Guards) -> GuardedRuns:
    """Add the logits of the guarded variants to those of both engines; return what the guards did."""
    runs = {}
    for variant, guard in guards.by_id().items():
        int8 = outcome.logits[guarded.fast(variant).name]
        exact = outcome.logits[guarded.exact(variant).name]
        second = outcome.logits[guarded.reference(variant, guard.reference).name]
        logits = outcome.logits[variant.name] = guarded_logits(int8, second, guard.threshold)
        runs[variant.name] = GuardedRun(
            images=len(int8),
            rerun=int((margins(int8) <= guard.threshold).sum()),
            flips=int(_differ(logits, exact).sum()),
            int8_flips=int(_differ(int8, exact).sum()),
        )
    return GuardedRuns(runs)


def guarded_logits(int8: FloatArray, second: FloatArray, threshold: float) -> FloatArray:
    """Return the logits (N, classes) of a guarded variant from those of both its engines."""
    logits: FloatArray = np.where((margins(int8) <= threshold)[:, None], second, int8)
    return logits


def traffic(dataset: Dataset, preprocess: Preprocess, *, pixels: bool) -> FloatArray | PixelArray:
    """Return evaluation images, evenly spread, as inputs of timed engines.

    Args:
        dataset: The evaluation images.
        preprocess: Preprocessing of an image.
        pixels: True: uint8 (N, H, W, C); else float32 (N, C, H, W).
    """
    from edgeship.calibration.loader import batches

    height, width = preprocess.sides
    size = height * width * len(preprocess.mean) * (1 if pixels else 4)
    count = max(min(len(dataset), TRAFFIC_IMAGES, TRAFFIC_BYTES // size), 1)
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    order = np.random.default_rng(0).permutation(indices).tolist()
    stream = batches(dataset, order, preprocess, batch=evaluation.BATCH, skip_bad=True, label="decoding")
    return np.concatenate([part.pixels if pixels else part.images for part in stream])


def _guarded(built: Mapping[VariantId, CompiledVariant], reference: Precision) -> list[VariantId]:
    """Return the guarded variants: one for each INT8 variant.

    Raises:
        RecipeError: There is no INT8 variant, or one has no reference.
    """
    variants = [
        VariantId(each.target, each.precision, each.pruned, guarded=True)
        for each in built
        if each.precision == "int8"
    ]
    if not variants:
        raise RecipeError(
            "guard.max_flips is set, and no INT8 variant was built",
            hint="add int8 to compile.precisions, or set guard.max_flips=none",
        )
    for variant in variants:
        second = guarded.reference(variant, reference)
        if second not in built:
            raise RecipeError(
                f"guard.reference = {reference}, and {second.name} was not built",
                hint=f"set guard.reference=fp32, or add {reference} to compile.precisions",
            )
    return variants


def _images(recipe: Recipe, inputs: Inputs, source: str, limit: float) -> tuple[Dataset, Sequence[int]]:
    """Return images in random order, without calibration and evaluation images, compared by content."""
    from edgeship.calibration import manifest
    from edgeship.calibration.datasets import open_dataset
    from edgeship.quantization.guard import fewest_images

    options = recipe.guard
    dataset = open_dataset(source, use="train")
    used = {entry.digest for entry in manifest.read(inputs["select"] / "manifest.json").entries}
    if recipe.evaluate.source:
        evaluated = open_dataset(recipe.evaluate.source, use="evaluate")
        used.update(ordered_map(evaluated.digest, range(len(evaluated))))
    order = np.random.default_rng(options.seed).permutation(len(dataset)).tolist()
    wanted = fewest_images(limit) if options.images is None else options.images
    with closing(ordered_map(dataset.digest, order)) as digests:
        free = (index for index, digest in zip(order, digests, strict=False) if digest not in used)
        return dataset, list(islice(free, None if wanted == "all" else wanted))


def _differ(logits: FloatArray, others: FloatArray) -> npt.NDArray[np.bool_]:
    different: npt.NDArray[np.bool_] = logits.argmax(1) != others.argmax(1)
    return different
