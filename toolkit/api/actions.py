"""Prune, compile, evaluate, benchmark, run and deploy from Python."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.toolkit.api._logging import logged_progress
from edgeship.toolkit.api.images import Images, ImageStream, as_source
from edgeship.toolkit.api.models import Model, onnx_file
from edgeship.toolkit.api.quantize import built, stated
from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.errors import DataError, ModelError, RecipeError, TargetError
from edgeship.toolkit.core.options import with_overrides, with_values
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.results import LayerAudit
from edgeship.toolkit.core.tensors import Preprocess, Size, as_size, sides
from edgeship.toolkit.graph import io
from edgeship.toolkit.pipeline import datasets, preprocessing, pruning, verbs
from edgeship.toolkit.pipeline.evaluation import Engine, Work
from edgeship.toolkit.pipeline.model_recipe import recipe_of, with_data
from edgeship.toolkit.pipeline.recipe import Recipe
from edgeship.toolkit.pipeline.runner import Run
from edgeship.toolkit.pipeline.runner import run as run_recipe
from edgeship.toolkit.runs.compiled import engine_file
from edgeship.toolkit.runs.variant_id import VariantId

if TYPE_CHECKING:
    from edgeship.toolkit.deploy.release import DeployOutcome
    from edgeship.toolkit.models.resnet import ResNet
    from edgeship.toolkit.prune.plan import PrunePlan

BATCH = 32
LOGGER = logging.getLogger("edgeship")


@dataclass(frozen=True)
class Pruned:
    """A pruned ResNet.

    Attributes:
        model: The network, in evaluation mode.
        plan: Widths and costs before and after, and the expected drop.
        preprocess: Preprocessing of an image; None if unknown.
    """

    model: ResNet
    plan: PrunePlan
    preprocess: Preprocess | None

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors and widths.json, usable as `load.weights` of a recipe."""
        from edgeship.toolkit.models import weights

        return weights.save(self.model, user_path(folder), self.preprocess)


def prune(
    model: Model,
    images: Images,
    *,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    size: Size | None = None,
    images_count: int = 1000,
    **options: Any,
) -> Pruned:
    """Prune a ResNet without labels or training.

    Args:
        model: A ResNet: a module with the tensors of one, or the path of a checkpoint. It is not changed.
        images: As in `quantize`; no labels are needed.
        preprocess: As in `quantize`.
        size: Input size in pixels of decoded images.
        images_count: Number of images.
        **options: One goal (keep_ratio, macs_ratio or max_expected_drop_pp), method, scope, ..., see
            `edgeship.toolkit.prune.options.PruneOptions`.

    Raises:
        ModelError: The model is no ResNet, or the goal cannot be met.

    Example:
        >>> small = edgeship.prune("resnet18.pth", "photos/", keep_ratio=0.5)  # doctest: +SKIP
        >>> small.save("resnet18-half")  # doctest: +SKIP
    """
    from edgeship.toolkit.models import weights
    from edgeship.toolkit.prune import pruner

    recipe = built(
        {
            "load": {"preprocess": stated(preprocess)},
            "export": {"size": size} if size else {},
            "prune": {"method": "obs", "images": images_count, **options},
        }
    )
    if recipe.prune.latency_ratio is not None:
        raise ModelError(
            "latency_ratio is a goal of runs: it measures engines",
            hint="set prune.latency_ratio in a recipe, or macs_ratio here",
        )
    if recipe.prune.budget_s is not None:
        raise ModelError(
            "budget_s is an option of runs: most of the time is for the distillation after pruning",
            hint="set prune.budget_s in a recipe",
        )
    with logged_progress(), tempfile.TemporaryDirectory() as name:
        loaded = weights.load(_checkpoint(model, Path(name)))
        prepared = preprocessing.resolve(recipe.load.preprocess, loaded.preprocess, recipe.export.size)
        source = as_source(images)
        if isinstance(source, ImageStream):
            known = loaded.preprocess is not None or preprocess is not None
            expected = (loaded.model.architecture.channels, *(source.shape or (0, *prepared.sides))[1:])
            taken = source.take(images_count, prepared if known else None, expected).images
            batches = iter(np.split(taken, range(pruning.BATCH, len(taken), pruning.BATCH)))
        else:
            how = recipe.prune
            dataset, places = datasets.training_images(source, how.images, how.seed, "")
            batches = datasets.stream(dataset, places, prepared, pruning.BATCH, "reading images")
        small, plan = pruner.prune(loaded.model, batches, recipe.prune)
    for warning in plan.warnings:
        LOGGER.warning("%s", warning)
    return Pruned(small, plan, prepared if loaded.preprocess or preprocess else None)


def _checkpoint(model: Model, folder: Path) -> Path:
    """Return the path of a checkpoint; the tensors of a module are written to the folder."""
    if not hasattr(model, "state_dict"):
        path = user_path(str(model))
        if hasattr(model, "SerializeToString") or path.suffix == ".onnx":
            raise ModelError(
                "an ONNX file cannot be pruned: its channels are not known to belong together",
                hint="pass the ResNet as a module, or the path of its checkpoint",
            )
        return path
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, str(folder / "module.safetensors"))
    return folder / "module.safetensors"


@dataclass(frozen=True)
class CompiledModel:
    """An engine.

    Attributes:
        target: Its runtime.
        file: The engine, or the checked graph if the engine has to be built on the device.
        runs_here: True if this machine can run it.
        note: Description of the compilation.
        audit: Layers with the precision that the runtime executes them in.
        warnings: Layers that do not run as intended.
        size_bytes: Size of the files.
    """

    target: str
    file: Path
    runs_here: bool
    note: str
    audit: tuple[LayerAudit, ...]
    warnings: tuple[str, ...]
    size_bytes: int

    @property
    def int8_layers(self) -> tuple[int, int]:
        """Return the number of layers with weights that run in INT8, and of all of them."""
        weighted = [layer for layer in self.audit if layer.weighted]
        return sum(layer.precision == "int8" for layer in weighted), len(weighted)


def compile(model: Model, target: str, out: str | Path, *, size: Size | None = None) -> CompiledModel:
    """Compile a model for a target, into a folder.

    Args:
        model: As in `quantize`, float or quantized.
        target: Runtime: openvino, onnxruntime or tensorrt.
        out: Folder to write.
        size: Input size in pixels of a PyTorch module.

    Raises:
        TargetError: The SDK is missing or rejects the graph.
    """
    folder = user_path(out)
    with tempfile.TemporaryDirectory() as name:
        file = _float_or_quantized(model, Path(name), size)
        precision = "int8" if io.read(file).quantized else "fp32"
        built = targets.get(target).compile(file, folder, precision)  # type: ignore[arg-type]
    others = {folder / each for each in built.instead}
    used = (each for each in folder.rglob("*") if each.is_file() and each not in others)
    return CompiledModel(
        target,
        folder / built.file,
        built.runs_here,
        built.note,
        built.audit,
        built.warnings,
        sum(each.stat().st_size for each in used),
    )


@dataclass(frozen=True)
class Evaluation:
    """Outputs of a model on images.

    Attributes:
        logits: (N, classes).
        labels: N class indices; -1 is unknown.
        top1: Fraction of correct images; None without labels.
        top1_ci95: Its 95 % interval.
        images: N.
        measured_on: "this machine", or "simulation (ONNX Runtime)".
    """

    logits: FloatArray
    labels: IntArray
    top1: float | None
    top1_ci95: tuple[float, float] | None
    images: int
    measured_on: str

    @property
    def classes(self) -> IntArray:
        """Return the predicted class index of each image."""
        predicted: IntArray = self.logits.argmax(1).astype(np.int64)
        return predicted


def evaluate(
    model: Model,
    images: Images,
    target: str | None = None,
    *,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    size: Size | None = None,
) -> Evaluation:
    """Run images through a model, and measure its accuracy if they have labels.

    Args:
        model: As in `quantize`, float or quantized.
        images: As in `quantize`.
        target: Runtime; None, or one that does not run here: the graph is simulated by ONNX Runtime.
        preprocess: As in `quantize`.
        size: Input size in pixels, for a model with a dynamic one.

    Raises:
        ToolkitError: The model or an image cannot be used.
    """
    recipe = built({"load": {"preprocess": stated(preprocess)}, "export": {"size": size} if size else {}})
    with logged_progress(), tempfile.TemporaryDirectory() as name:
        source = as_source(images)
        shape = source.shape if isinstance(source, ImageStream) else None
        file = onnx_file(model, Path(name), recipe, shape or (3, *_sides(recipe)))
        graph = io.read(file)
        engine = engine_of_graph(file, target, Path(name), quantized=graph.quantized)
        own = graph.preprocess
        asked = graph.size or (as_size(*shape[1:]) if shape else recipe.export.size)
        prepared = preprocessing.resolve(recipe.load.preprocess, own, asked)
        if isinstance(source, ImageStream):
            known = own is not None or preprocess is not None
            arrays = source.take(None, prepared if known else None, (graph.channels, *prepared.sides))
            places: Sequence[int] = range(len(arrays.images))
            work = Work((("model", engine),), arrays, None, prepared, BATCH)
        else:
            dataset = datasets.open_evaluation(source, graph.classes)
            places = range(len(dataset))
            work = Work((("model", engine),), source, graph.classes, prepared, BATCH)
        outcome, _ = verbs.evaluate(work, places, workers=None, backend="threading", label="evaluating")
    logits, labels = outcome.logits["model"], outcome.labels
    top1 = interval = None
    if (labels >= 0).all():
        if labels.max() >= logits.shape[1]:
            raise DataError(
                f"a label is {labels.max()}, the model has {logits.shape[1]} outputs",
                hint="number the classes from 0, in the order of the outputs",
            )
        right = int((logits.argmax(1) == labels).sum())
        top1, *bounds = statistics.wilson(right, len(labels))
        interval = (bounds[0], bounds[1])
    place = "this machine" if engine.target else "simulation (ONNX Runtime)"
    return Evaluation(logits, labels, top1, interval, len(labels), place)


@dataclass(frozen=True)
class Latency:
    """Latency of one inference on this machine, in milliseconds.

    Attributes:
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        samples_ms: Every timed inference.
        batch: Images of one inference.
        threads: CPU threads.
        warning: Problem of the measurement; empty without one.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples_ms: tuple[float, ...]
    batch: int
    threads: int
    warning: str


def benchmark(
    models: Model | Mapping[str, Model],
    target: str = "openvino",
    *,
    batch: int | None = None,
    size: Size | None = None,
    threads: int = 1,
    duration_s: float = 2.0,
) -> Latency | dict[str, Latency]:
    """Time a model, or several against each other, in interleaved turns.

    Args:
        models: As in `quantize`, float or quantized; or name -> model.
        target: Runtime; it has to run on this machine.
        batch: Images of one inference; None: the graph's, else 1.
        size: Input size in pixels, for models with a dynamic one.
        threads: CPU threads.
        duration_s: Seconds of timed inferences for each model.

    Returns:
        The latency, or name -> latency.

    Raises:
        TargetError: The target does not run on this machine.
    """
    table = {"threads": threads, "duration_s": duration_s, "throughput_s": 0.0, "batch": batch}
    options = built({"bench": table}).bench
    several = models if isinstance(models, Mapping) else {"": models}
    with logged_progress(), tempfile.TemporaryDirectory() as name:
        engines, shapes = {}, set()
        for index, (label, model) in enumerate(several.items()):
            folder = Path(name) / str(index)
            folder.mkdir()
            file = _float_or_quantized(model, folder, size)
            graph = io.read(file)
            engine = engine_of_graph(file, target, folder, quantized=graph.quantized)
            if engine.target is None:
                raise TargetError(
                    f"{target} does not run on this machine", hint="edgeship.deploy measures it on a device"
                )
            engines[label] = (target, engine.file)
            side = sides(graph.size or size or 224)
            shapes.add((batch or graph.batch or 1, graph.channels, *side))
        if len(shapes) > 1:
            raise ModelError(
                f"the models take images of different shapes: {sorted(shapes)}", hint="time them separately"
            )
        images = np.random.default_rng(0).normal(size=shapes.pop()).astype(np.float32)
        measured = verbs.benchmark(options, engines, images)
    results = {
        label: Latency(
            statistics.percentile(row.samples_ms, 50),
            statistics.percentile(row.samples_ms, 90),
            statistics.percentile(row.samples_ms, 99),
            row.samples_ms,
            measured.batch,
            measured.threads,
            row.warning,
        )
        for label, row in measured.variants.items()
    }
    return results if isinstance(models, Mapping) else results[""]


def run(
    recipe: Recipe | str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Run a model or a recipe, from weights to the report.

    Args:
        recipe: A checkpoint or an ONNX file; or a recipe, the path of a TOML file, the name of one that comes
            with edgeship, or the folder of a run.
        data: Images for calibration and evaluation, as of `edgeship run --data`; None: those of the recipe.
        out: Folder for the report, the engines and `run.json`; None: results stay in the store only.
        **settings: `overrides` of a path or a name (a mapping from `section.key` to a value), and all others
            of `edgeship.toolkit.pipeline.run`.

    Raises:
        ToolkitError: An option cannot be used, or a stage failed.

    Example:
        >>> finished = edgeship.run("quickstart", out="runs/quickstart")  # doctest: +SKIP
        >>> finished.report["verdicts"]  # doctest: +SKIP
    """
    overrides = settings.pop("overrides", {})
    if data is not None:
        overrides = with_data({**overrides, "select.source": str(data)})
    if isinstance(recipe, (str, Path)):
        recipe = recipe_of(str(recipe), overrides)
    elif not isinstance(recipe, Recipe):
        raise RecipeError(
            f"recipe is a {type(recipe).__name__}, expected a path, a name or a Recipe",
            hint="pass the path of a checkpoint, an ONNX file or a recipe",
        )
    elif overrides:
        recipe = with_values(recipe, with_overrides({}, overrides, Recipe))
    if not recipe.select.source and "until" not in settings:
        raise RecipeError("there are no images: select.source is not set", hint="pass data=FOLDER")
    with logged_progress():
        return run_recipe(recipe, out=out, **settings)


def deploy(
    run: str | Path,
    devices: Sequence[str] = (),
    *,
    tags: Sequence[str] = (),
    inventory: str | Path | None = None,
    dry_run: bool = False,
) -> list[DeployOutcome]:
    """Deploy a run or a bundle to devices of the inventory.

    Args:
        run: Folder of a run, or a bundle file.
        devices: Names of devices.
        tags: All devices with one of these tags.
        inventory: Inventory file; None: the default path.
        dry_run: Return the steps without changing a device.

    Raises:
        ToolkitError: The run or the inventory cannot be used; the failure of a device is in its outcome.
    """
    from edgeship.toolkit.deploy import bundle_from_run
    from edgeship.toolkit.deploy.inventory import select
    from edgeship.toolkit.deploy.release import DeployOptions
    from edgeship.toolkit.deploy.rollout import deploy_all

    chosen = select(Path(inventory) if inventory else None, devices, tags)
    bundle = bundle_from_run.bundle_of(Path(run))
    return deploy_all(
        chosen,
        bundle,
        lambda device, state, detail: LOGGER.info("%s: %s %s", device, state, detail),
        DeployOptions(dry_run=dry_run),
    )


def _float_or_quantized(model: Model, folder: Path, size: Size | None) -> Path:
    recipe = built({"export": {"size": size} if size else {}})
    return onnx_file(model, folder, recipe, (3, *_sides(recipe)))


def _sides(recipe: Recipe) -> tuple[int, int]:
    return preprocessing.resolve(recipe.load.preprocess, None, recipe.export.size).sides


def engine_of_graph(file: Path, target: str | None, folder: Path, *, quantized: bool) -> Engine:
    """Return the engine of a graph; without a target that runs here, the graph itself, to be simulated."""
    if target is None:
        return Engine(file, None)
    variant = VariantId(target, "int8" if quantized else "fp32")
    built = verbs.compile(variant, file, folder)
    if not built.runs_here:
        return Engine(file, None)
    return Engine(engine_file(variant, built, {"compile": folder}), target)
