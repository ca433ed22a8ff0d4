"""Accuracy limit of INT8: validation of trial graphs, and float cost of layers on the target."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.toolkit.core.errors import RecipeError, TargetError
from edgeship.toolkit.core.parallel import Backend
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.core.statistics import agreement, paired_drop
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph.cost import cost_shares
from edgeship.toolkit.pipeline import datasets, evaluation, measure

if TYPE_CHECKING:
    from edgeship.calibration import manifest
    from edgeship.calibration.class_order import Aliases
    from edgeship.calibration.datasets import Dataset
    from edgeship.quantization.mixed_precision import AccuracyConstraint, Verdict
    from edgeship.quantization.options import QuantizeOptions
    from edgeship.toolkit.pipeline.recipe import Recipe

LEAST_PART = 0.01  # least cost of a float layer, as a part of the mean layer time: clocks are coarse
TIMED_S = 0.5  # seconds of every graph, at the end
UNTIMED = "of the network (multiply-accumulates and bytes, not timed)"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Validation images of an accuracy limit: no calibration and no evaluation images.

    Attributes:
        source: Source of the images, as in a recipe; or arrays.
        dataset: The opened source; None: arrays.
        classes: Outputs of the network, if labels are used.
        indices: Positions of the images in it.
        preprocess: Preprocessing of an image.
        batch: Images per inference.
        disjoint: False if the source has no other images than the calibration images.
        workers: Batches in parallel; None: one per core.
        backend: Executor of the workers.
        names: All names of each output, by which labels are matched; empty: in order.
    """

    source: str | evaluation.Arrays
    dataset: Dataset | None
    classes: int | None
    indices: list[int]
    preprocess: Preprocess
    batch: int
    disjoint: bool
    workers: int | None
    backend: Backend
    names: Aliases = ()

    @property
    def labels(self) -> IntArray:
        """Return N class indices."""
        if isinstance(self.source, evaluation.Arrays):
            return self.source.labels[self.indices]
        assert self.dataset is not None
        return self.dataset.labels[self.indices]

    def logits(self, engines: Mapping[str, evaluation.Engine], label: str) -> dict[str, FloatArray]:
        """Return the logits of engines, (N, classes) each."""
        work = evaluation.Work(
            tuple(engines.items()),
            self.source,
            self.classes,
            self.preprocess,
            self.batch,
            names=self.names,
            use="train",
        )
        outcome, _ = evaluation.run(
            work, self.indices, workers=self.workers, backend=self.backend, label=label
        )
        return outcome.logits


def limited(options: QuantizeOptions) -> bool:
    """Return True if INT8 has an accuracy limit.

    Raises:
        RecipeError: Two limits are set.
    """
    if options.max_validation_drop_pp is not None and options.min_agreement is not None:
        raise RecipeError(
            "quantize.max_validation_drop_pp and quantize.min_agreement are both set",
            hint="set max_validation_drop_pp for labelled calibration images, else min_agreement",
        )
    return options.limited


def select_validation_images(
    recipe: Recipe,
    used: manifest.Manifest,
    classes: int,
    preprocess: Preprocess,
    names: Aliases = (),
) -> HeldOut:
    """Select validation images from the calibration source, after the calibration images.

    Args:
        recipe: Source, number of images, limit.
        used: The calibration images.
        classes: Outputs of the network.
        preprocess: Preprocessing of an image.
        names: All names of each output, by which labels are matched; empty: in order.

    Raises:
        RecipeError: The limit requires labels, and there are none.
        DataError: Evaluation images are among the validation images.
    """
    from edgeship.calibration import manifest

    options, source = recipe.quantize, recipe.select.source
    labels = None if options.max_validation_drop_pp is None else classes
    dataset = datasets.open_validation(source, labels, "train", names)
    if options.max_validation_drop_pp is not None and not dataset.labelled:
        raise RecipeError(
            f"quantize.max_validation_drop_pp needs labels, and {dataset.name} has none",
            hint="set quantize.min_agreement instead, or give labelled images as select.source",
        )
    before = len(used.entries)
    most = before + options.validation_images
    line = manifest.select(dataset, most, used.seed, skip_bad=recipe.select.skip_unreadable, at_most=True)
    files = {entry.file for entry in used.entries}
    others = tuple(entry for entry in line.entries if entry.file not in files)
    chosen = manifest.Manifest(used.seed, used.source, used.source_digest, others or used.entries)
    if excluded := recipe.evaluate.source:
        manifest.check_disjoint(chosen, datasets.open_evaluation(excluded, classes, names=names))
    indices = manifest.locate(chosen, dataset)
    return HeldOut(
        source,
        dataset,
        labels,
        indices,
        preprocess,
        recipe.evaluate.batch,
        bool(others),
        recipe.evaluate.workers,
        recipe.evaluate.backend,
        names,
    )


@dataclass(slots=True)
class Trials:
    """Trial engines of a target, all from one float graph.

    Attributes:
        target: Name of the target.
        model: The float graph.
        held_out: Validation images.
        folder: Folder for engines; the caller removes it.
    """

    target: str
    model: Path
    held_out: HeldOut
    folder: Path
    _reference: FloatArray | None = field(default=None, init=False)
    _absent: bool = field(default=False, init=False)
    _trials: int = field(default=0, init=False)

    def goal(self, options: QuantizeOptions) -> AccuracyConstraint:
        """Return the accuracy constraint of a recipe."""
        from edgeship.quantization.mixed_precision import AccuracyConstraint

        name = "max_validation_drop_pp" if options.max_validation_drop_pp is not None else "min_agreement"
        limit = (
            options.max_validation_drop_pp
            if options.max_validation_drop_pp is not None
            else options.min_agreement
        )
        assert limit is not None
        timed = self._built(self.model, "fp32", "fp32") is not None
        unit = "ms" if timed else UNTIMED
        return AccuracyConstraint(
            name, limit, unit, self.costs, lambda graph: self._validate(graph, name, limit)
        )

    def costs(self, graph: Path) -> dict[str, float]:
        """Return the added time of each layer of an INT8 graph in float, in ms, from the runtime's profile.

        Without a profile: the layer's share of the network (`graph.cost.shares`).
        """
        layers = cost_shares(self.model)
        exact, coarse = self._built(self.model, "fp32", "fp32"), self._built(graph, "int8", "int8")
        if exact is None or coarse is None:
            return layers
        float_ms, int8_ms = (
            {
                layer.name: layer.time_ms
                for layer in built.audit
                if layer.weighted and layer.time_ms is not None
            }
            for built in (exact, coarse)
        )
        total = sum(float_ms.values())
        least = LEAST_PART * total / len(layers)
        return {
            name: max(float_ms.get(name, share * total) - int8_ms.get(name, 0.0), least)
            for name, share in layers.items()
        }

    def latency_ms(self, graph: Path) -> dict[str, float] | None:
        """Return the median latency in float, in INT8 and of this graph: one thread, one image.

        Call `costs` first. None if the target does not run here.
        """
        built = self._built(graph, "int8", "mixed")
        if built is None:
            return None
        from edgeship.targets._timing import interleave

        shape = (1, len(self.held_out.preprocess.mean), *self.held_out.preprocess.sides)
        pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        with ExitStack() as stack:
            runs = {}
            for name in ("fp32", "int8", "mixed"):
                engine = self.folder / name / built.file
                session = stack.enter_context(targets.get(self.target).open(engine, threads=1))
                runs[name] = measure.inference(session, pixels)
            samples = interleave(runs, warmup_s=TIMED_S / 4, duration_s=TIMED_S)
        return {name: float(np.median(taken)) for name, taken in samples.items()}

    def _validate(self, graph: Path, name: str, limit: float) -> Verdict:
        from edgeship.quantization.mixed_precision import Verdict

        if self._reference is None:
            exact = {"float": evaluation.Engine(self.model, None)}
            self._reference = self.held_out.logits(exact, "running the float network")["float"]
        logits = self.held_out.logits({"int8": self.engine(graph)}, "validating a graph")["int8"]
        if name == "min_agreement":
            value = agreement(self._reference, logits)
            return Verdict(value, value >= limit)
        labels = self.held_out.labels
        drop, _ = paired_drop(self._reference.argmax(1) == labels, logits.argmax(1) == labels)
        return Verdict(drop, drop <= limit)

    def engine(self, graph: Path) -> evaluation.Engine:
        """Return the engine of a graph, or the graph for simulation if no engine runs here."""
        self._trials += 1  # workers cache files by name: each trial has a new one
        name = f"trial-{self._trials}"
        if built := self._built(graph, "int8", name):
            return evaluation.Engine(self.folder / name / built.file, self.target)
        return evaluation.Engine(shutil.copyfile(graph, self.folder / f"{name}.onnx"), None)

    def _built(self, graph: Path, precision: Precision, name: str) -> targets.Compiled | None:
        """Compile a graph into a folder of that name; None if the engine does not run here."""
        if self._absent:
            return None
        out = self.folder / name
        shutil.rmtree(out, ignore_errors=True)
        try:
            built = targets.get(self.target).compile(graph, out, precision)
        except TargetError:
            self._absent = True  # the compile stage reports the reason
            return None
        self._absent = not built.runs_here
        return built if built.runs_here else None


def summarize(reached: dict[str, Any], trials: Trials, graph: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the search result with latency, share of float layers and validation data; and warnings."""
    latency_ms = trials.latency_ms(graph) if reached["layers"] else None
    layers, disjoint = cost_shares(trials.model), trials.held_out.disjoint
    warnings = []
    if not disjoint:
        warnings.append(
            f"{reached['limit']} was measured on the calibration images: the source has no others"
        )
    if latency_ms is not None and latency_ms["mixed"] >= latency_ms["fp32"]:
        warnings.append(
            f"with {len(reached['layers'])} layers in float INT8 is no faster than FP32 here "
            f"({latency_ms['mixed']:.3g} and {latency_ms['fp32']:.3g} ms): use the FP32 variant"
        )
    return {
        **reached,
        "latency_ms": latency_ms,
        "part": sum(layers[layer["name"]] for layer in reached["layers"]),
        "images": len(trials.held_out.indices),
        "held_out": disjoint,
        "measured_on": "this machine" if reached["unit"] == "ms" else "simulation (ONNX Runtime)",
    }, warnings
