"""What mixed precision needs of the target: what a graph reaches there, and what a layer costs in float."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.targets._device import this_device
from edgeship.toolkit.core.errors import RecipeError, TargetError
from edgeship.toolkit.core.parallel import Backend
from edgeship.toolkit.core.quant import FloatArray, IntArray, PixelArray, QuantScheme
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.core.statistics import agreement, paired_drop
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.core.threads import granted_cores
from edgeship.toolkit.graph.cost import shares
from edgeship.toolkit.graph.io import Classifier, save
from edgeship.toolkit.pipeline import datasets, evaluation, variants

if TYPE_CHECKING:
    from edgeship.calibration import manifest
    from edgeship.calibration.class_order import Aliases
    from edgeship.calibration.datasets import Dataset
    from edgeship.quantization.mixed_precision import AccuracyConstraint, Verdict
    from edgeship.quantization.runtime_check import Runtime
    from edgeship.quantization.statistics import Statistics
    from edgeship.toolkit.pipeline.recipe import QuantizeOptions

LEAST_PART = 0.01  # of a layer's mean time: what a layer costs in float at least, for clocks are coarse
TIMED_S = 0.5  # seconds of every graph, at the end
UNTIMED = "of the network (multiply-accumulates and bytes, not timed)"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Images that limits are judged on: neither calibrated with nor evaluated on.

    Attributes:
        source: Where they are, as in a recipe.
        dataset: The same, open.
        classes: Outputs of the network, if labels matter.
        indices: Which of them.
        preprocess: How an image becomes an input.
        batch: Images at once.
        apart: Whether they are others than those that calibrate: there may be no others.
        workers: Batches at a time; None: one for each core.
        backend: Where the workers are.
        names: All names of each output, by which labels are matched; empty: in order.
    """

    source: str
    dataset: Dataset
    classes: int | None
    indices: list[int]
    preprocess: Preprocess
    batch: int
    apart: bool
    workers: int | None
    backend: Backend
    names: Aliases = ()

    @property
    def labels(self) -> IntArray:
        """N class indices."""
        return np.array([self.dataset.items[index].label for index in self.indices], np.int64)

    def logits(self, engine: evaluation.Engine, label: str) -> FloatArray:
        """What an engine says of them, (N, classes)."""
        listing = self.dataset.listing_digest()
        engines = (("judged", engine),)
        work = evaluation.Work(
            engines,
            self.source,
            listing,
            self.classes,
            self.preprocess,
            self.batch,
            names=self.names,
            use="train",
        )
        outcome, _ = evaluation.run(
            work, self.indices, workers=self.workers, backend=self.backend, label=label
        )
        return outcome.logits["judged"]


def schemes(options: QuantizeOptions) -> dict[str, QuantScheme]:
    """What the targets want: it may depend on the processor."""
    return {name: scheme(options, name) for name in options.targets}


def scheme(options: QuantizeOptions, target: str) -> QuantScheme:
    """What a target wants on the processor that the graph is for."""
    found = targets.get(target).scheme
    if options.overflow_fix == "auto":
        return found
    return replace(found, pair_sums=options.overflow_fix == "pairs")


def facts(options: QuantizeOptions) -> dict[str, Any]:
    """Return what quantized graphs depend on, options aside: schemes, and the runtimes that check them."""
    runtimes = {name: targets.get(name).versions() for name in options.targets if _runs_graphs(name)}
    cpu = sorted(this_device().instruction_sets) if runtimes else []
    return {"schemes": schemes(options), "runtimes": runtimes, "instruction_sets": cpu}


def _runs_graphs(target: str) -> bool:
    """Return True if a target runs ONNX files on this machine."""
    if not targets.get(target).opens_graphs:
        return False
    try:
        targets.get(target).versions()
    except TargetError:
        return False
    return True


@contextmanager
def runtime(target: str, pixels: Preprocess | None) -> Iterator[Runtime | None]:
    """Give what runs a Q/DQ graph as the target's engines will; None where it does not run here.

    Args:
        target: Its name.
        pixels: The preprocessing of engines that take decoded pixels; None: they take ready images.
    """
    from edgeship.quantization.runtime_check import Runtime
    from edgeship.targets.onnxruntime import simulate
    from edgeship.toolkit.graph.pixels import take_pixels

    if not _runs_graphs(target):
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:

        def real(graph: Path, images: FloatArray) -> FloatArray:
            if pixels is not None:
                take_pixels(graph, pixels, Path(folder) / "pixels.onnx")
                graph = Path(folder) / "pixels.onnx"
            with targets.get(target).open(graph) as session:
                return session.infer(images if pixels is None else decoded(images, pixels))

        def exact(graph: Path, images: FloatArray) -> FloatArray:
            with simulate(graph) as session:
                return session.infer(images)

        yield Runtime(target, real, exact)


def decoded(images: FloatArray, preprocess: Preprocess) -> PixelArray:
    """Return the pixels (N, H, W, C) that normalized images (N, C, H, W) were made of."""
    mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (preprocess.mean, preprocess.std))
    levels = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def float_types(_options: object) -> list[str]:
    """Instructions by which the calibration pass may compute in bfloat16: the processor decides."""
    return sorted({"avx512_bf16", "amx_bf16"}.intersection(this_device().instruction_sets))


def limited(options: QuantizeOptions) -> bool:
    """Whether INT8 has a limit to keep.

    Raises:
        RecipeError: It has two.
    """
    if options.max_validation_drop_pp is not None and options.min_agreement is not None:
        raise RecipeError(
            "quantize.max_validation_drop_pp and quantize.min_agreement are both set",
            hint="keep max_validation_drop_pp where the calibration images have labels, else min_agreement",
        )
    return options.limited


def quantize(
    options: QuantizeOptions,
    graph: Classifier,
    statistics: Statistics,
    target: str,
    judges: HeldOut | None,
    out: Path,
    pixels: Preprocess | None = None,
) -> dict[str, Any]:
    """Quantize a float graph for a target, with layers in float where a limit needs it.

    Args:
        options: How.
        graph: The float graph.
        statistics: Of its activations.
        target: Its name.
        judges: Images that judge the limit; None where there is none.
        out: The Q/DQ graph.
        pixels: The preprocessing of an engine that takes decoded pixels, which is checked then; None: it
            takes ready images.

    Returns:
        The summary of `quantize.quantize`.
    """
    from edgeship import quantization

    how = quantization.QuantizeOptions(
        options.observer,
        options.effort,
        options.weight_rounding,
        options.bias_correction,
        options.sensitivity,
        options.float_layers,
        workers=options.workers or (1 if options.backend == "threading" else granted_cores()),
        backend=options.backend,
    )
    with runtime(target, pixels) as runs, tempfile.TemporaryDirectory() as folder:
        wants = scheme(options, target)
        if judges is None:
            return quantization.quantize(graph, statistics, wants, how, out, runtime=runs)
        float_graph = Path(folder) / "float.onnx"  # the logits of `graph`, which its file may not give
        save(graph.model, float_graph)
        trials = Trials(target, float_graph, judges, Path(folder))
        goal = trials.goal(options)
        summary = quantization.quantize(graph, statistics, wants, how, out, goal, runs)
        summary["mixed"], warnings = given_up(summary["mixed"], trials, out)
        summary["warnings"] += warnings
    return summary


def held_out(
    options: QuantizeOptions,
    used: manifest.Manifest,
    classes: int,
    preprocess: Preprocess,
    names: Aliases = (),
) -> HeldOut:
    """The images of the calibration source that come after those that calibrate.

    Args:
        options: Where they are, how many judge, and by what.
        used: Those that calibrate.
        classes: Outputs of the network.
        preprocess: How an image becomes an input.
        names: All names of each output, by which labels are matched; empty: in order.

    Raises:
        RecipeError: Accuracy is limited, and there are no labels.
        DataError: Evaluation images are among them.
    """
    from edgeship.calibration import manifest

    labels = None if options.max_validation_drop_pp is None else classes
    dataset = datasets.open_judges(options.source, labels, "train", names)
    if options.max_validation_drop_pp is not None and not dataset.labelled:
        raise RecipeError(
            f"quantize.max_validation_drop_pp needs labels, and {dataset.name} has none",
            hint="set quantize.min_agreement instead, or give labelled images as select.source",
        )
    before = len(used.entries)
    most = before + options.validation_images
    line = manifest.select(dataset, most, used.seed, skip_bad=options.skip_unreadable, at_most=True)
    files = {entry.file for entry in used.entries}
    others = tuple(entry for entry in line.entries if entry.file not in files)
    chosen = manifest.Manifest(used.seed, used.source, used.source_digest, others or used.entries)
    if options.exclude:
        manifest.check_disjoint(chosen, datasets.open_evaluation(options.exclude, classes, names=names))
    indices = manifest.locate(chosen, dataset)
    return HeldOut(
        options.source,
        dataset,
        labels,
        indices,
        preprocess,
        options.batch,
        bool(others),
        options.workers,
        options.backend,
        names,
    )


@dataclass(slots=True)
class Trials:
    """A target that tries graphs made of one float graph.

    Attributes:
        target: Its name.
        model: The float graph.
        held_out: What limits are judged on.
        folder: For engines; the caller removes it.
    """

    target: str
    model: Path
    held_out: HeldOut
    folder: Path
    _reference: FloatArray | None = field(default=None, init=False)
    _absent: bool = field(default=False, init=False)
    _judged: int = field(default=0, init=False)

    def goal(self, options: QuantizeOptions) -> AccuracyConstraint:
        """The limit of a recipe, as the quantizer takes it."""
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
            name, limit, unit, self.costs, lambda graph: self._judge(graph, name, limit)
        )

    def costs(self, graph: Path) -> dict[str, float]:
        """What each layer of an INT8 graph costs more in float: milliseconds, by the runtime's own profile.

        Where it cannot be timed, the layer's share of the network stands for it (`graph.cost.shares`).
        """
        layers = shares(self.model)
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
        """Median latency on one thread, one image: in float, in INT8, and of this graph.

        `costs` was asked before. None where the target does not run here.
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
                runs[name] = variants.inference(session, pixels)
            samples = interleave(runs, warmup_s=TIMED_S / 4, duration_s=TIMED_S)
        return {name: float(np.median(taken)) for name, taken in samples.items()}

    def _judge(self, graph: Path, name: str, limit: float) -> Verdict:
        from edgeship.quantization.mixed_precision import Verdict

        if self._reference is None:
            exact = evaluation.Engine(self.model, None)
            self._reference = self.held_out.logits(exact, "running the float network")
        logits = self.held_out.logits(self._engine(graph), "judging a graph")
        if name == "min_agreement":
            value = agreement(self._reference, logits)
            return Verdict(value, value >= limit)
        labels = self.held_out.labels
        drop, _ = paired_drop(self._reference.argmax(1) == labels, logits.argmax(1) == labels)
        return Verdict(drop, drop <= limit)

    def _engine(self, graph: Path) -> evaluation.Engine:
        """The engine of a graph, or the graph itself, to be simulated, where none runs here."""
        self._judged += 1  # a worker that remembers a file must not find another one in its place
        name = f"judged-{self._judged}"
        if built := self._built(graph, "int8", name):
            return evaluation.Engine(self.folder / name / built.file, self.target)
        return evaluation.Engine(shutil.copyfile(graph, self.folder / f"{name}.onnx"), None)

    def _built(self, graph: Path, precision: Precision, name: str) -> targets.Compiled | None:
        """The engine of a graph in a folder of that name; None where it cannot run here."""
        if self._absent:
            return None
        out = self.folder / name
        shutil.rmtree(out, ignore_errors=True)
        try:
            built = targets.get(self.target).compile(graph, out, precision)
        except TargetError:
            self._absent = True  # whatever the reason: the compile stage says it
            return None
        self._absent = not built.runs_here
        return built if built.runs_here else None


def given_up(reached: dict[str, Any], trials: Trials, graph: Path) -> tuple[dict[str, Any], list[str]]:
    """What the report is told of a graph in mixed precision, beside what the search knows; and warnings."""
    latency_ms = trials.latency_ms(graph) if reached["layers"] else None
    layers, apart = shares(trials.model), trials.held_out.apart
    warnings = []
    if not apart:
        warnings.append(
            f"{reached['limit']} was judged on the calibration images themselves: the source has no others"
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
        "held_out": apart,
        "measured_on": "this machine" if reached["unit"] == "ms" else "simulation (ONNX Runtime)",
    }, warnings
