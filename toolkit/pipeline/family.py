"""Compare pruned networks with the dense one: accuracy and latency in FP32 and INT8, and the knee."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgeship import targets
from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.artifact import canonical_json, read_json, sha256_bytes, sha256_tree, write_json
from edgeship.toolkit.core.errors import ModelError, RecipeError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.pipeline import datasets, evaluation, finetuning, load_and_export, measure, pruning
from edgeship.toolkit.pipeline.recipe import Recipe
from edgeship.toolkit.runs.network import ModelInfo

DENSE = "dense"
UNFINISHED = ".edgeship-unfinished"  # folder with the state of an interrupted command
BATCH = 8  # images per batch of calibration and evaluation


def check(parts: Sequence[float]) -> None:
    """Check the keep ratios.

    Raises:
        RecipeError: A ratio is not between 0 and 1, or is given twice.
    """
    for part in parts:
        if not 0 < part < 1:
            raise RecipeError(
                f"a width of {part:g} is not between 0 and 1",
                hint="give ratios of channels to keep, e.g. 0.9,0.75,0.6; the dense network is included",
            )
    if len(set(parts)) < len(parts):
        raise RecipeError("a width is given twice", hint="name each once")


def folders(parts: Sequence[float], out: Path) -> dict[str, Path]:
    """Return the folders of networks of these widths, widest first; without widths, that of the goal."""
    return {f"keep-{part:g}": out / f"keep-{part:g}" for part in sorted(parts, reverse=True)} or {
        "pruned": out
    }


def prune(recipe: Recipe, parts: Sequence[float], dense: Path, out: Path) -> dict[str, Path]:
    """Prune the network of a folder for the recipe's goal, or to several widths in one pass.

    The channels of each width are a subset of the wider ones. An interrupted pass resumes; `done` removes its
    state.

    Args:
        recipe: The recipe.
        parts: Ratios of the channels inside blocks to keep; empty: the recipe's goal.
        dense: Folder of the load stage.
        out: Folder for the network and plan.json; with widths, one folder each.

    Returns:
        Name -> folder, widest first.

    Raises:
        ModelError: The network is an ONNX graph, or has nothing to prune.
    """
    check(parts)
    places = folders(parts, out)
    finished, state = out / UNFINISHED / "pruned.json", out / UNFINISHED / "states"
    work = _identity(recipe, parts, dense)
    if finished.is_file() and read_json(finished) == work and _complete(places.values()):
        return places
    if not parts:
        pruning.prune(recipe, dense, out, checkpoint=state)
    else:
        _prune_family(recipe, parts, dense, places, state)
    write_json(finished, work)
    return places


def done(out: Path) -> None:
    """Remove the state of an interrupted pass."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)


def _prune_family(
    recipe: Recipe, parts: Sequence[float], dense: Path, folders: Mapping[str, Path], state: Path
) -> None:
    from edgeship.toolkit.models import weights
    from edgeship.toolkit.prune import pruner

    model, preprocess = pruning.network_of(dense)
    source = ModelInfo.read(dense).preprocess_source
    pictures = pruning.stream(recipe, preprocess)
    networks = pruner.family(model, pictures, parts, recipe.prune, checkpoint=state)
    for folder, (smaller, plan) in zip(folders.values(), networks, strict=True):
        weights.save(smaller, folder, preprocess, source=source)
        write_json(folder / "plan.json", plan)


def _identity(recipe: Recipe, parts: Sequence[float], dense: Path) -> dict[str, Any]:
    """Return a digest of everything that the pruning depends on, with weights and images."""
    dataset, indices = pruning.images(recipe)
    digest = datasets.identity(dataset, np.asarray(indices)).digest
    work = {"how": recipe.prune, "parts": parts, "model": sha256_tree(dense), "images": digest}
    return {"work": sha256_bytes(canonical_json(work).encode())}


def _complete(folders: Iterable[Path]) -> bool:
    return all((folder / "plan.json").is_file() for folder in folders)


def compare(recipe: Recipe, dense: Path, pruned: Mapping[str, Path]) -> dict[str, Any]:
    """Quantize, evaluate and time the dense and the pruned networks, interleaved.

    Args:
        recipe: The recipe. Without `evaluate.source` the images held out by pruning are used, and the
            drop is estimated without labels.
        dense: Folder of the load stage.
        pruned: Name -> folder with a network.

    Returns:
        Content of family.json: `frontier`, the INT8 rows with the dense one as competitor, and `float`.

    Raises:
        ModelError: The target does not run on this machine.
    """
    from edgeship.calibration.loader import batches
    from edgeship.targets._device import this_device

    info = ModelInfo.read(dense)
    preprocess = info.preprocess
    target = recipe.compile.targets[0]
    dataset, indices = pruning.images(recipe)
    evaluated, places = dataset, indices[-finetuning.validation_count(len(indices)) :]
    if recipe.evaluate.source:
        evaluated = datasets.open_evaluation(recipe.evaluate.source, info.classes, names=info.class_names)
        places = datasets.subset(evaluated, recipe.evaluate.images)
    chosen = indices[: recipe.select.images]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        engines: dict[str, tuple[str, Path]] = {}
        for label, folder in {DENSE: dense, **pruned}.items():
            built = Path(name) / label
            graph = built / "float.onnx"
            exported, _ = load_and_export.export(recipe.export, folder, info, graph)
            stream = datasets.stream(dataset, chosen, preprocess, BATCH, f"calibrating {label}")
            quantized = _quantize(graph, stream, target)
            graphs: dict[Precision, Path] = {"fp32": graph, "int8": quantized}
            for precision, graph in graphs.items():
                engines[f"{label}-{precision}"] = target, _compile(graph, target, precision)
                rows[f"{label}-{precision}"] = {
                    "name": label,
                    "precision": precision,
                    "macs": exported.macs,
                    "parameters": exported.parameters,
                }
        shape = (1, len(preprocess.mean), *preprocess.sides)
        noise = np.random.default_rng(0).normal(size=shape)
        timed = measure.time_all(recipe.bench, engines, noise.astype(np.float32))
        opened = {
            label: stack.enter_context(targets.get(target).open(engine))
            for label, (_, engine) in engines.items()
        }
        outcome = evaluation.infer(
            opened, batches(evaluated, places, preprocess, batch=BATCH, label="evaluating")
        )
    labelled = bool(recipe.evaluate.source) and bool((outcome.labels >= 0).all())
    for label, row in rows.items():
        measured = timed.variants[label]
        row["latency_ms"] = statistics.percentile(measured.samples_ms, 50)
        row["noise"] = measured.warning
        row.update(_accuracy(outcome, label, labelled=labelled))
    frontier = sorted(
        (row for row in rows.values() if row["precision"] == "int8"), key=lambda row: row["latency_ms"]
    )
    _mark_knee(frontier)
    return {
        "schema": 1,
        "model": info.name,
        "target": target,
        "size": preprocess.crop,
        "threads": timed.threads,
        "batch": timed.batch,
        "included": timed.included,
        "device": this_device(),
        "judged": {
            "source": evaluated.name,
            "images": len(places),
            "labelled": labelled,
        },
        "pruning_images": len(indices),
        "calibration_images": len(chosen),
        "frontier": frontier,
        "float": [row for row in rows.values() if row["precision"] == "fp32"],
    }


def _quantize(graph: Path, stream: Iterable[FloatArray], target: str) -> Path:
    from edgeship import quantization
    from edgeship.quantization.calibrate import collect

    out = graph.with_name("int8.onnx")
    scheme = targets.get(target).scheme()
    quantization.quantize(graph, collect(graph, stream), scheme, quantization.QuantizeOptions(), out)
    return out


def _compile(graph: Path, target: str, precision: Precision) -> Path:
    folder = graph.parent / precision
    built = targets.get(target).compile(graph, folder, precision)
    if not built.runs_here:
        raise ModelError(
            f"{target} does not run on this machine: there is nothing to measure",
            hint="prune with --no-compare, or on the device",
        )
    return folder / built.file


def _accuracy(outcome: evaluation.Outcome, label: str, *, labelled: bool) -> dict[str, Any]:
    """Return the accuracy of a network, paired with the dense network in FP32."""
    from edgeship.toolkit.prune.execute import expected_drop_pp

    reference: FloatArray = outcome.logits[f"{DENSE}-fp32"]
    logits = outcome.logits[label]
    row: dict[str, Any] = {
        "top1": None,
        "drop_pp": None,
        "drop_ci95_pp": None,
        "agreement": statistics.agreement(reference, logits),
        "expected_drop_pp": expected_drop_pp(reference, logits),
    }
    if labelled:
        right = logits.argmax(1) == outcome.labels
        row["top1"] = float(right.mean())
        row["drop_pp"], row["drop_ci95_pp"] = statistics.paired_drop(
            reference.argmax(1) == outcome.labels, right
        )
    return row


def _mark_knee(frontier: Sequence[dict[str, Any]]) -> None:
    """Mark the row at the knee; a straight frontier has none."""
    from edgeship.toolkit.report.quantization_charts import knee_of

    gained = [-row["expected_drop_pp"] if row["top1"] is None else row["top1"] for row in frontier]
    knee = knee_of([row["latency_ms"] for row in frontier], gained)
    for place, row in enumerate(frontier):
        row["knee"] = place == knee and 0 < place < len(frontier) - 1
