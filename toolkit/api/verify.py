"""Recompute what a run or a bundle states: digests, graphs, predictions and figures."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeship import targets
from edgeship.targets.runner import guard_record
from edgeship.targets.tensorrt import TYPED
from edgeship.toolkit.api._logging import logged_progress
from edgeship.toolkit.api.actions import BATCH, engine_of_graph
from edgeship.toolkit.api.classifier import BUNDLE_SUFFIX
from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.artifact import read_json, sha256_file, sha256_tree
from edgeship.toolkit.core.errors import DataError, ToolkitError
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy import layout
from edgeship.toolkit.pipeline import accuracy, datasets, verbs
from edgeship.toolkit.pipeline.evaluation import Arrays, Engine, Work
from edgeship.toolkit.pipeline.fingerprints import existing
from edgeship.toolkit.pipeline.guarding import guarded_logits
from edgeship.toolkit.pipeline.recipe import Recipe
from edgeship.toolkit.pipeline.runner import run as run_recipe
from edgeship.toolkit.pipeline.store import Store
from edgeship.toolkit.report import render
from edgeship.toolkit.report.paired_analysis import PREDICTIONS, StoredPredictions, load_predictions
from edgeship.toolkit.runs import guarded
from edgeship.toolkit.runs.annotations import annotate
from edgeship.toolkit.runs.description import DESCRIPTION
from edgeship.toolkit.runs.index import RunIndex
from edgeship.toolkit.runs.variant_id import REFERENCE, VariantId

if TYPE_CHECKING:
    from edgeship.toolkit.core.quant import FloatArray, IntArray
    from edgeship.toolkit.core.results import RunReport, Variant

Result = Literal["exact", "interval", "differs", "unchecked"]
FIGURES = ("top1", "top5", "drop_pp", "agreement", "sqnr_db")
FROM_PREDICTIONS = ("top1", "drop_pp", "agreement")  # which first classes are enough for
MEASURED = ("latency_ms", "throughput_ips", "memory_bytes", "energy_mj", "end_to_end_ms", "speedup")
SQNR_DB = 0.5  # SQNR has no interval
PARTS = (":train", ":test", ":calibration", ":evaluation")  # of one set of images


@dataclass(frozen=True, slots=True)
class Check:
    """One statement of a run or a bundle, and what was recomputed.

    Attributes:
        subject: Variant, stage or file.
        figure: What is stated of it.
        result: exact; interval: another value, in the 95 % interval of the stated one; differs; unchecked.
        stated: The stated value.
        recomputed: The value found here; None where it was not checked.
        why: Reason or source, in words.
    """

    subject: str
    figure: str
    result: Result
    stated: Any = None
    recomputed: Any = None
    why: str = ""


def verify(
    path: str | Path, data: str | None = None, *, model: str | None = None, rebuild: bool = False
) -> tuple[Check, ...]:
    """Recompute digests, graphs, predictions and figures of a run or a bundle, also on another machine.

    Args:
        path: Folder of a run (`edgeship run --out`), or a bundle.
        data: The images of the run; None: where its recipe names them. A bundle has its own.
        model: The model of the run, for `rebuild`; None: where its recipe names it.
        rebuild: Run the stages of the run again in a temporary store, and compare the graphs byte by byte.

    Raises:
        DataError: There is no run or bundle; or a file of the bundle does not have its digest.
    """
    place = user_path(path)
    with logged_progress():
        if place.suffix == BUNDLE_SUFFIX and place.is_file():
            return tuple(_bundle(place))
        return tuple(_run(place, data, model, rebuild=rebuild))


def _run(folder: Path, data: str | None, model: str | None, *, rebuild: bool) -> Iterator[Check]:
    index, report = RunIndex.read(folder), render.load(folder)
    for stage in index.stages:
        if not stage.folder.is_dir():
            yield Check(
                stage.name, "digest", "unchecked", stage.digest, None, "its folder is on another machine"
            )
        else:
            yield _equal(stage.name, "digest", stage.digest, sha256_tree(stage.folder))
    yield from _engines(folder, index.folders, report)
    stored = load_predictions(folder)
    if stored is None:
        yield Check(PREDICTIONS, "content", "unchecked", why="the file is absent or damaged")
    recomputed, reason = _recomputed(folder, index, report, stored, data)
    logits = {name: each for name, each in recomputed.items() if not isinstance(each, str)}
    for variant in report.variants:
        failed = recomputed.get(variant.name)
        why = failed if isinstance(failed, str) else reason
        yield from _figures(variant, stored, logits.get(variant.name), logits.get(REFERENCE.name), why)
    yield from _timings(report)
    if rebuild:
        yield from _rebuilt(folder, data, model)
    else:
        yield Check("graphs", "bytes", "unchecked", why="--rebuild runs the stages again and compares them")


def _engines(folder: Path, folders: Mapping[str, Path], report: RunReport) -> Iterator[Check]:
    """Compare the files of each engine with those of its stages, with the annotations of a published run."""
    described, compiled = folder / "engines" / DESCRIPTION, folders.get("compile")
    if compiled is None or not compiled.is_dir() or not described.is_file():
        yield Check(
            "engines",
            "engine files",
            "unchecked",
            why="the folder of the compile stage is on another machine",
        )
        return
    description = read_json(described)
    for variant in report.variants:
        files = _files_of(variant, folders)
        if variant.file is None or not files:
            continue
        stated, found = {}, {}
        with tempfile.TemporaryDirectory() as name:
            for place, path in files.items():
                copy, published = Path(name) / path.name, (folder / variant.file).parent / place
                shutil.copy(path, copy)
                try:
                    annotate(copy, description)
                except (ToolkitError, KeyError, TypeError, ValueError):
                    stated[str(place)] = "another model.json"
                else:
                    stated[str(place)] = sha256_file(copy)
                copy.unlink()
                found[str(place)] = sha256_file(published) if published.is_file() else "absent"
        others = [place for place in stated if stated[place] != found[place]]
        yield _equal(variant.name, "engine files", len(stated), len(stated) - len(others), ", ".join(others))


def _files_of(variant: Variant, folders: Mapping[str, Path]) -> dict[Path, Path]:
    """Return place in the folder of a variant -> file of its stage; of a guarded one of both engines."""
    identity, compiled = VariantId.parse(variant.name), folders["compile"]
    parts = [(Path(), compiled / guarded.fast(identity).name)]
    if variant.guard is not None:
        second = guarded.reference(identity, variant.guard.reference)
        parts += [(Path(guard_record.REFERENCE), compiled / second.name)]
        parts += [(Path(), folders["guard"] / variant.name)] if "guard" in folders else []
    return {
        place / file.relative_to(part): file
        for place, part in parts
        for file in sorted(part.rglob("*"))
        if file.is_file()
    }


def _equal(subject: str, figure: str, stated: Any, recomputed: Any, why: str = "") -> Check:
    return Check(subject, figure, "exact" if stated == recomputed else "differs", stated, recomputed, why)


def _recomputed(
    folder: Path, index: RunIndex, report: RunReport, stored: StoredPredictions | None, data: str | None
) -> tuple[dict[str, FloatArray | str], str]:
    """Return variant -> logits, or the reason why it does not run here; and why there are none at all."""
    stated = index.option("evaluate.source", str)
    source = _moved(stated, data) if data else stated
    if not source or not (source.startswith("digits") or existing(source)):
        return {}, f"the images {source or 'of the run'} are not here: name them with --data"
    preprocess = report.model.preprocess
    if preprocess is None or stored is None:
        return {}, "the run states no preprocessing" if stored else f"there is no {PREDICTIONS}"
    dataset = datasets.open_validation(source, None)
    number: Any = int | str
    count = index.option("evaluate.images", number)
    places = datasets.subset(dataset, count if isinstance(count, int) else "all")
    if len(places) != len(stored.labels):
        return {}, f"{source} has {len(places)} images, the run evaluated {len(stored.labels)}"
    digest = datasets.identity(dataset, np.asarray(places, np.int64)).digest
    if report.data.eval_digest and digest != report.data.eval_digest:
        return (
            {},
            f"the images of {source} are others: digest {digest[:12]}, stated {report.data.eval_digest[:12]}",
        )
    outputs: dict[str, FloatArray | str] = {}
    for variant in report.variants:
        if variant.file is None or not (folder / variant.file).is_file():
            outputs[variant.name] = variant.error or "its engine is not in the folder"
        else:
            file, typed = folder / variant.file, (folder / variant.file).with_name(TYPED)
            if variant.precision == "fp16" and not variant.runs_here and typed.is_file():
                file = typed  # the file with the arithmetic of the variant
            files = {variant.name: file} | _second_file(variant, file)
            engines = tuple(
                (name, Engine(each, variant.target if variant.runs_here else None))
                for name, each in files.items()
            )
            work = Work(engines, source, None, preprocess, BATCH)
            try:
                outcome, _ = verbs.evaluate(
                    work, places, workers=None, backend="threading", label=f"verifying {variant.name}"
                )
                outputs[variant.name] = outcome.logits[variant.name]
                if variant.guard is not None:
                    outputs[variant.name] = guarded_logits(
                        outcome.logits[variant.name],
                        outcome.logits[guard_record.REFERENCE],
                        variant.guard.threshold,
                    )
            except ToolkitError as error:
                outputs[variant.name] = str(error)
    return outputs, ""


def _second_file(variant: Variant, file: Path) -> dict[str, Path]:
    """Return the name and the file of the second engine of a guarded variant; empty without a guard."""
    if variant.guard is None:
        return {}
    folder = file.parent / guard_record.REFERENCE
    found = (each for each in sorted(folder.glob(f"*{file.suffix}")) if each.stem != "graph")
    return {guard_record.REFERENCE: next(found, folder / file.name)}


def _moved(source: str, data: str) -> str:
    """Return a source on this machine, with the same part of it."""
    return data + next((part for part in PARTS if source.endswith(part) and not data.endswith(part)), "")


def _figures(
    variant: Variant,
    stored: StoredPredictions | None,
    logits: FloatArray | None,
    reference: FloatArray | None,
    why: str,
) -> Iterator[Check]:
    """Yield the checks of a variant: figures against predictions.npz, and both against new predictions."""
    if variant.images is None:
        return
    of_stored: Mapping[str, Any] = {}
    if stored is not None and {variant.name, REFERENCE.name} <= stored.first.keys():
        of_stored = _of_classes(stored.first[REFERENCE.name], stored.first[variant.name], stored.labels)
    again: Mapping[str, Any] = {}
    if logits is not None and reference is not None and stored is not None:
        again = accuracy.figures(reference, logits, stored.labels)
    checks = []
    for name in FIGURES:
        stated = getattr(variant, name)
        if stated is None:
            continue
        check = Check(variant.name, name, "unchecked", stated, None, why)
        if again:
            check = _compared(variant.name, name, stated, again[name], variant.images, variant.drop_ci95_pp)
        if name in FROM_PREDICTIONS and of_stored:
            if not _same(stated, of_stored[name]):
                check = Check(variant.name, name, "differs", stated, of_stored[name], f"by {PREDICTIONS}")
            elif not again:
                check = Check(
                    variant.name, name, "exact", stated, of_stored[name], f"by {PREDICTIONS}; {why}"
                )
        checks.append(check)
    if logits is not None and of_stored and stored is not None:
        others = int((logits.argmax(1) != stored.first[variant.name]).sum())
        result: Result = "exact"
        if others:
            result = "differs" if any(each.result == "differs" for each in checks) else "interval"
        same = f"{len(logits) - others} of {len(logits)} images have the stated class"
        yield Check(variant.name, "predictions", result, len(logits), len(logits) - others, same)
    yield from checks


def _of_classes(reference: IntArray, first: IntArray, labels: IntArray) -> dict[str, float]:
    """Return the figures of a variant that the first classes of the images are enough for."""
    right = first == labels
    drop, _ = statistics.paired_drop(reference == labels, right)
    return {"top1": float(right.mean()), "drop_pp": drop, "agreement": float((first == reference).mean())}


def _same(stated: Any, recomputed: Any) -> bool:
    return recomputed is not None and math.isclose(stated, recomputed, rel_tol=1e-9, abs_tol=1e-9)


def _compared(
    variant: str, name: str, stated: Any, recomputed: Any, images: int, drop: tuple[float, float] | None
) -> Check:
    """Compare a figure with that of new predictions, by the 95 % interval of the stated one."""
    if _same(stated, recomputed):
        return Check(variant, name, "exact", stated, recomputed)
    if name == "sqnr_db":
        low, high, why = stated - SQNR_DB, stated + SQNR_DB, f"within {SQNR_DB} dB: it has no interval"
    elif name == "drop_pp":
        low, high = drop or (stated, stated)
        why = f"95 % interval {low:.2f} to {high:.2f} pp"
    else:
        _, low, high = statistics.wilson(min(images, round(stated * images)), images)
        why = f"95 % interval {100 * low:.2f} to {100 * high:.2f} %"
    inside = recomputed is not None and low <= recomputed <= high
    return Check(variant, name, "interval" if inside else "differs", stated, recomputed, why)


def _timings(report: RunReport) -> Iterator[Check]:
    """Yield what was measured at one time on one machine, which no other can recompute."""
    machine = report.environment.cpu or "the machine of the run"
    why = f"measured on {machine}; time it here with `edgeship bench`"
    for variant in report.variants:
        for name in MEASURED:
            value = getattr(variant, name)
            if value is not None:
                stated = getattr(value, "p50", value)
                yield Check(variant.name, name, "unchecked", stated, None, why)


def _rebuilt(folder: Path, data: str | None, model: str | None) -> Iterator[Check]:
    """Run the recipe again, but for the timing, in a temporary store; compare each ONNX file byte by byte."""
    recipe = Recipe.read(folder / "recipe.toml")
    changes: dict[str, Any] = {}
    if data is not None:
        for section in ("select", "evaluate"):
            changes[f"{section}.source"] = _moved(getattr(recipe, section).source, data)
    if model is not None:
        changes["load.model" if model.endswith(".onnx") else "load.weights"] = model
    with tempfile.TemporaryDirectory() as name:
        store, out = Store(Path(name) / "store"), Path(name) / "run"
        try:
            run_recipe(Recipe.read(folder / "recipe.toml", changes), out=out, until="evaluate", store=store)
        except ToolkitError as error:
            yield Check("graphs", "bytes", "unchecked", why=f"{error} ({error.hint})")
            return
        made, stated = (
            {
                path.relative_to(top).as_posix(): sha256_file(path)
                for path in (top / "engines").rglob("*.onnx")
            }
            for top in (out, folder)
        )
        for place in sorted(made.keys() | stated.keys()):
            yield _equal(place, "bytes", stated.get(place), made.get(place))


def _bundle(path: Path) -> Iterator[Check]:
    bundle = bundles.load(path)
    yield Check(
        "files", "digests", "exact", len(bundle.files), len(bundle.files), "each as the manifest states"
    )
    if bundle.signature_file is not None:
        why = "`edgeship deploy` checks it against the trusted signers of a device"
        yield Check("signature", "signer", "unchecked", why=why)
    with tempfile.TemporaryDirectory() as name:
        for target, about in bundle.manifest["targets"].items():
            try:
                yield from _target(bundle, target, about, Path(name))
            except ToolkitError as error:
                yield Check(about["variant"], "logits", "unchecked", why=str(error))
            except (KeyError, ValueError, TypeError) as error:
                raise DataError(
                    f"{path}: what it states of {target} is damaged: {error}", hint="make the bundle again"
                ) from error
    made_by = bundle.manifest["provenance"].get("stages")
    for stage, digest in made_by.items() if isinstance(made_by, dict) else ():
        yield Check(stage, "digest", "unchecked", digest, None, "verify the run that it was made of")


def _target(bundle: bundles.Bundle, target: str, about: Mapping[str, Any], scratch: Path) -> Iterator[Check]:
    """Yield the checks of a graph: golden logits, logits of the evaluation set, and their figures."""
    from edgeship.calibration import evalset_format
    from edgeship.calibration.preprocess import normalize
    from edgeship.toolkit.core.tensors import Preprocess

    variant, folder = about["variant"], scratch / target
    folder.mkdir()
    file = folder / "graph.onnx"
    file.write_bytes(bundle.read(layout.graph_path(target)))
    here = targets.get(target).opens_graphs
    engine = engine_of_graph(file, target if here else None, folder, quantized=about["precision"] == "int8")
    golden = json.loads(bundle.read(f"{layout.golden_path(target)}/golden.json"))
    kind = np.dtype("u1" if golden["inputs"].endswith(".u8") else "<f4")
    inputs = np.frombuffer(bundle.read(f"{layout.golden_path(target)}/{golden['inputs']}"), kind)
    logits = np.frombuffer(bundle.read(f"{layout.golden_path(target)}/{golden['logits']}"), "<f4")
    stated = logits.reshape(-1, golden["classes"])
    description = json.loads(bundle.read("model.json")) if "model.json" in bundle.files else {}
    simulated, where = about.get("simulated"), "" if here else "simulated by ONNX Runtime"
    if kind == np.float32 and "preprocess" in description:
        preprocess = Preprocess.from_json(description["preprocess"])
        images = inputs.reshape(golden["shape"])
        yield _logits(variant, "golden logits", stated, _infer(engine, images, preprocess), where)
    if simulated is None or layout.EVALUATION not in bundle.files:
        return
    (scratch / "images.set").write_bytes(bundle.read(layout.EVALUATION))
    packed = evalset_format.read(scratch / "images.set")
    reference = np.frombuffer(bundle.read(layout.reference_path(target)), "<f4").reshape(
        len(packed.labels), -1
    )
    of_reference = accuracy.figures(reference, reference, packed.labels)
    images = normalize(np.asarray(packed.images), packed.preprocess)
    again = _infer(engine, images, packed.preprocess)
    yield _logits(variant, "logits", reference, again, where)
    of_again = accuracy.figures(again, again, packed.labels)
    for figure in ("top1", "top5"):
        stated = simulated.get(figure)
        if stated is not None and not _same(stated, of_reference[figure]):
            yield _equal(variant, figure, stated, of_reference[figure], "by the logits in the bundle")
        elif stated is not None:
            yield _compared(variant, figure, stated, of_again[figure], len(again), None)


def _infer(engine: Engine, images: FloatArray, preprocess: Any) -> FloatArray:
    work = Work((("graph", engine),), Arrays(images, np.full(len(images), -1)), None, preprocess, BATCH)
    outcome, _ = verbs.evaluate(
        work, range(len(images)), workers=None, backend="threading", label="verifying logits"
    )
    return outcome.logits["graph"]


def _logits(variant: str, figure: str, stated: FloatArray, recomputed: FloatArray, where: str) -> Check:
    """Compare logits: equal; else the first classes, of which one in twenty images may be another."""
    if np.array_equal(stated, recomputed):
        return Check(variant, figure, "exact", len(stated), len(stated), where)
    same = int((stated.argmax(1) == recomputed.argmax(1)).sum())
    sqnr = statistics.sqnr_db(stated, recomputed)
    why = f"{same} of {len(stated)} images have the stated class, SQNR {sqnr:.0f} dB"
    result: Result = "interval" if same >= 0.95 * len(stated) else "differs"
    return Check(variant, figure, result, len(stated), same, f"{why}; {where}" if where else why)
