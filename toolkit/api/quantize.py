"""Quantize a model from Python and compare it with the float model on held-out images."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.toolkit.api._logging import LOGGER, logged_progress
from edgeship.toolkit.api.images import Images, ImageStream, as_source
from edgeship.toolkit.api.models import Model, onnx_file
from edgeship.toolkit.core.artifact import plain, write_bytes
from edgeship.toolkit.core.errors import DataError, RecipeError, TargetError
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.statistics import agreement, sqnr_db
from edgeship.toolkit.core.tensors import InputType, Preprocess, PreprocessSource, Size, as_size, sides
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.conversion import check_conversion
from edgeship.toolkit.graph.input_shape import fix_size
from edgeship.toolkit.graph.layout import InputForm
from edgeship.toolkit.graph.pixels import add_pixel_input
from edgeship.toolkit.pipeline import datasets, evaluation, mixed_precision, preprocessing, verbs
from edgeship.toolkit.pipeline.mixed_precision import HeldOut, Trials
from edgeship.toolkit.pipeline.recipe import Recipe
from edgeship.toolkit.report import formatting
from edgeship.toolkit.runs.annotations import annotate, stated_labels
from edgeship.toolkit.runs.description import class_labels

if TYPE_CHECKING:
    import onnx

CALIBRATION_IMAGES = 300
HELD_OUT_IMAGES = 200
BATCH = 8
HISTOGRAM = "counts"  # key of the summary


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and its accuracy against the float model.

    Attributes:
        model: The Q/DQ graph.
        target: Runtime that it is for.
        options: Options of the quantization.
        agreement: Fraction of the held-out images with the top-1 class of the float model.
        sqnr_db: Signal to quantization noise ratio of the logits on them, in dB.
        images: Number of images that both figures are measured on.
        held_out: False if there were no other images than the calibration images.
        measured_on: "this machine", or "simulation (ONNX Runtime)" where the target does not run.
        calibration_images: Number of calibration images that were run.
        int8_layers: Number of layers with INT8 weights, of `layers`.
        layers: Number of layers with weights.
        float_bytes: Size of the float file.
        int8_bytes: Size of the quantized file.
        preprocess: Preprocessing of an image; None if preprocessed images were given and it is unknown.
        preprocess_source: Origin of mean and std; "assumed" if nothing states them.
        seconds: Duration.
        warnings: Notes on the model and its quantization.
        details: Figures of every tensor; see `edgeship.quantization.quantize`.
    """

    model: onnx.ModelProto
    target: str
    options: dict[str, Any]
    agreement: float
    sqnr_db: float
    images: int
    held_out: bool
    measured_on: str
    calibration_images: int
    int8_layers: int
    layers: int
    float_bytes: int
    int8_bytes: int
    preprocess: Preprocess | None
    preprocess_source: PreprocessSource | None
    seconds: float
    warnings: tuple[str, ...]
    details: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write the quantized model as an ONNX file, atomically; return its path."""
        file = user_path(path)
        write_bytes(file, self.model.SerializeToString())
        return file

    def to_json(self, *, histograms: bool = False) -> dict[str, Any]:
        """Return all figures as JSON types, those of every tensor too; histograms only on request."""
        figures = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del figures["model"]
        details = dict(figures.pop("details"))
        if not histograms:
            details["activations"] = {
                name: {key: value for key, value in tensor.items() if key != HISTOGRAM}
                for name, tensor in details["activations"].items()
            }
        content: dict[str, Any] = plain({**details, **figures})
        content["sqnr_db"] = self.sqnr_db if np.isfinite(self.sqnr_db) else None
        return content

    def summary(self, *, notes: bool = True) -> str:
        """Return the figures, and the warnings as notes, as lines of text."""
        kind = "held-out" if self.held_out else "calibration"
        ratio = self.float_bytes / self.int8_bytes
        sizes = f"{formatting.size(self.float_bytes)} -> {formatting.size(self.int8_bytes)}"
        lines = [
            f"agreement   {100 * self.agreement:.2f} % of {self.images} {kind} images have FP32's class",
            f"SQNR        {self.sqnr_db:.1f} dB, {self.measured_on}",
            f"INT8        {self.int8_layers} of {self.layers} layers",
            f"size        {sizes}" + (f", a factor of {ratio:.1f}" if ratio > 1 else ""),
            f"calibrated  on {self.calibration_images} images, in {self.seconds:.0f} s",
        ]
        if self.preprocess is not None:
            values = (self.preprocess.mean, self.preprocess.std)
            mean, std = (", ".join(f"{x:.4g}" for x in each) for each in values)
            lines.append(f"images      {self.preprocess_source}: mean {mean}; std {std}")
        return "\n".join([*lines, *(f"note: {each}" for each in self.warnings if notes)])


def quantize(
    model: Model,
    images: Images,
    target: str = "openvino",
    *,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    calibration_images: int | None = None,
    size: Size | None = None,
    output: str | None = None,
    input: InputType = "float32",
    skip_unreadable: bool = False,
    seed: int = 0,
    **options: Any,
) -> Quantized:
    """Quantize a float classifier to INT8.

    Args:
        model: A PyTorch module with one image input, an ONNX model, or the path of an ONNX file, a ResNet
            checkpoint or a recipe. It is not changed.
        images: The path of a folder, archive or list; or an iterable of arrays, tensors, PIL images or
            (image, label) pairs, single or in batches as a DataLoader has them: float32 (N, C, H, W)
            preprocessed, or uint8 (N, H, W, C) decoded, which needs a known preprocessing.
        target: Runtime: openvino, onnxruntime or tensorrt.
        preprocess: Preprocessing of decoded images; of a mapping, the keys that are missing are taken from
            the model.
        calibration_images: Number of calibration images; None: 300, or four fifths of fewer images. Up to
            200 others are held out.
        size: Input size in pixels, for a model with a dynamic one.
        output: Name of the logits, of a model with several outputs.
        input: "uint8": the graph takes pixels (N, H, W, C) and normalizes them.
        skip_unreadable: Leave out images that cannot be decoded.
        seed: Seed of the image selection from a path.
        **options: Method and effort, see `edgeship.quantization.options.QuantizeOptions`: observer, effort,
            min_agreement, float_layers, ...

    Returns:
        The quantized model with agreement, SQNR, sizes and `save`.

    Raises:
        ToolkitError: The model, an image or an option cannot be used; its `hint` is the remedy.

    Example:
        >>> result = edgeship.quantize("resnet18.onnx", "photos/", target="openvino")  # doctest: +SKIP
        >>> print(result.summary())  # doctest: +SKIP
        >>> result.save("resnet18-int8.onnx")  # doctest: +SKIP
    """
    table = {
        "compile": {"targets": [target]},
        "quantize": options,
        "load": {"preprocess": stated(preprocess), "output": output or ""},
        "export": {"input": input, **({"size": size} if size else {})},
        "select": {"skip_unreadable": skip_unreadable, "seed": seed},
    }
    return quantize_by(built(table), model, images, calibration_images=calibration_images)


def quantize_by(
    recipe: Recipe, model: Model, images: Images, *, calibration_images: int | None = None
) -> Quantized:
    """Quantize a model by the options of a recipe, for its first target; otherwise as `quantize`."""
    began = time.perf_counter()
    target, pixel_input = recipe.compile.targets[0], recipe.export.input == "uint8"
    limited = mixed_precision.limited(recipe.quantize)
    with logged_progress(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = as_source(images)
        given = source.shape if isinstance(source, ImageStream) else None
        shape = given or (3, *preprocessing.resolve(recipe.load.preprocess, None, recipe.export.size).sides)
        file = onnx_file(model, folder, recipe, shape)
        graph, prepared, origin = _prepared_graph(file, recipe, given)
        known = isinstance(source, str) or origin != "assumed"
        if isinstance(source, ImageStream):
            data = _from_stream(
                source, recipe, graph, prepared if known else None, calibration_images, limited=limited
            )
        else:
            data = _from_source(source, recipe, graph, prepared, calibration_images, limited=limited)
        float_file, quantized = folder / "float.onnx", folder / "int8.onnx"
        io.save(graph.model, float_file)  # ends in the logits, unlike some input files
        statistics = verbs.calibrate(graph, data.batches, early_stop=recipe.calibration_stops_early)
        summary = verbs.quantize(
            graph,
            statistics,
            target,
            quantized,
            recipe.quantize,
            validation=data.held_out if limited else None,
            pixels=prepared if pixel_input else None,
        )
        _check_runs(summary["runtime_check"], target)
        engine = Trials(target, float_file, data.held_out, folder).engine(quantized)
        logits = data.held_out.logits(
            {"float": evaluation.Engine(float_file, None), "int8": engine}, "comparing with the float model"
        )
        layers = _weighted_layers(quantized)
        if pixel_input:
            add_pixel_input(quantized, prepared, folder / "pixels.onnx")
            quantized = folder / "pixels.onnx"
        if known:
            dataset = data.held_out.dataset
            names = stated_labels(graph.model.metadata_props) or (dataset.classes if dataset else ())
            labels = class_labels(graph.classes, data_classes=names)
            annotate(
                quantized,
                {"labels": labels, "preprocess": plain(prepared), "preprocess_source": origin},
            )
        written = InputForm("NHWC", "uint8") if pixel_input else InputForm()
        fitted = _fit_device(quantized, target, recipe.compile.device_version(target))
        notes = preprocessing.notes(graph.form, graph.normalization, prepared, written) if known else []
        if known and origin == "assumed":
            notes.append("; ".join(preprocessing.assumed_note(prepared)))
        if statistics.images < data.calibration:
            notes.append(
                f"the statistics converged after {statistics.images} of {data.calibration} calibration images"
            )
        summary["input"] = {"file": graph.form, "written": written, "normalization": graph.normalization}
        import onnx

        result = Quantized(
            onnx.load(str(quantized)),
            target,
            asdict(recipe.quantize),
            agreement(logits["float"], logits["int8"]),
            sqnr_db(logits["float"], logits["int8"]),
            len(logits["float"]),
            data.held_out.disjoint,
            "this machine" if engine.target else "simulation (ONNX Runtime)",
            statistics.images,
            sum(layers),
            len(layers),
            file.stat().st_size,
            quantized.stat().st_size,
            prepared if known else None,
            origin if known else None,
            time.perf_counter() - began,
            (*notes, *fitted, *summary.pop("warnings")),
            summary,
        )
    for warning in result.warnings:
        LOGGER.info("%s", warning)
    return result


@dataclass(frozen=True, slots=True)
class _Data:
    """Batches of the `calibration` images (N, C, H, W), and the held-out images."""

    batches: Iterable[FloatArray]
    calibration: int
    held_out: HeldOut


def built(table: dict[str, Any]) -> Recipe:
    """Build the recipe of a call in Python; its errors name the arguments.

    Raises:
        RecipeError: An argument cannot be used.
    """
    try:
        return Recipe.build(table)
    except RecipeError as error:
        names = "|".join(table)
        error.args = (re.sub(rf"'?\b(?:{names})\.(\w+)'?", _argument, str(error)),)
        raise


def _argument(name: re.Match[str]) -> str:
    return "target" if name[1] == "targets" else name[1]


def stated(preprocess: Preprocess | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a preprocessing as keys of `load.preprocess`; lists for tuples, as in TOML."""
    if preprocess is None:
        return {}
    values = asdict(preprocess) if isinstance(preprocess, Preprocess) else dict(preprocess)
    if isinstance(preprocess, Preprocess) and values["resize"] is None:
        values["resize"] = 0  # keeps the size
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _prepared_graph(
    file: Path, recipe: Recipe, shape: tuple[int, int, int] | None
) -> tuple[io.Classifier, Preprocess, PreprocessSource]:
    """Read a graph for quantization; return it with the preprocessing of its images and the origin of that.

    Args:
        file: The ONNX file.
        recipe: Options of loading and export.
        shape: Channels, height and width of preprocessed images; None: images are decoded.
    """
    graph = io.read_classifier(file, recipe.load.output or None)
    wanted = recipe.export.size
    if shape is not None and graph.size is None and wanted is None:
        wanted = as_size(*shape[1:])
    options = recipe.load.preprocess
    asked = preprocessing.input_size(graph, wanted)
    prepared = preprocessing.resolve(options, graph.preprocess, asked, graph.normalization)
    origin = preprocessing.source_of(options, graph.preprocess, graph.preprocess_source, graph.normalization)
    if shape is None:
        preprocessing.check_channels(prepared, graph.channels)
    preprocessing.check_known(recipe.export.input, origin)
    check_conversion(graph, prepared.crop)
    return (fix_size(graph, wanted) if wanted else graph), prepared, origin


def _from_source(
    source: str,
    recipe: Recipe,
    graph: io.Classifier,
    prepared: Preprocess,
    count: int | None,
    *,
    limited: bool,
) -> _Data:
    """Select images from a folder, archive or list."""
    from edgeship.calibration import manifest
    from edgeship.calibration.datasets import open_dataset

    dataset = open_dataset(source, use="train")
    if count is None:
        count = max(min(CALIBRATION_IMAGES, len(dataset) * 4 // 5), 1)
    select = replace(recipe.select, source=source)
    chosen = manifest.select(dataset, count, select.seed, skip_bad=select.skip_unreadable)
    how = recipe.quantize if limited else replace(recipe.quantize, validation_images=HELD_OUT_IMAGES)
    held_out = mixed_precision.select_validation_images(
        replace(recipe, select=select, quantize=how), chosen, graph.classes, prepared
    )
    places = manifest.locate(chosen, dataset)
    stream = datasets.stream(dataset, places, prepared, BATCH, "calibrating")
    return _Data(stream, len(places), held_out)


def _from_stream(
    source: ImageStream,
    recipe: Recipe,
    graph: io.Classifier,
    prepared: Preprocess | None,
    count: int | None,
    *,
    limited: bool,
) -> _Data:
    """Take images from an iterable; the held-out ones are spread evenly over them.

    Raises:
        DataError: There is one image only, or fewer than asked for.
        RecipeError: The limit needs labels, and there are none.
    """
    others = recipe.quantize.validation_images if limited else HELD_OUT_IMAGES
    size = graph.size or (prepared.crop if prepared else as_size(*(source.shape or (0, 0, 0))[1:]))
    taken = source.take((count or CALIBRATION_IMAGES) + others, prepared, (graph.channels, *sides(size)))
    total = len(taken.images)
    if total < max(2, (count or 0) + 1):
        raise DataError(
            f"there are {total} image(s), expected at least {max(2, (count or 0) + 1)}: one is held out",
            hint="give more images; 500 are usual",
        )
    calibration = count or min(CALIBRATION_IMAGES, total * 4 // 5)
    places = np.linspace(0, total - 1, total - calibration).round().astype(int)
    rest = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(total), places))
    labels = taken.labels[places]
    if recipe.quantize.max_validation_drop_pp is not None and (labels < 0).any():
        raise RecipeError(
            "max_validation_drop_pp needs labels, and the images have none",
            hint="pass (image, label) pairs, or set min_agreement instead",
        )
    arrays = evaluation.Arrays(taken.images[places], labels)
    held_out = HeldOut(
        arrays, None, None, list(range(len(places))), prepared or Preprocess(), BATCH, True, None, "threading"
    )
    batches = [taken.images[rest[start : start + BATCH]] for start in range(0, len(rest), BATCH)]
    return _Data(batches, len(rest), held_out)


def _check_runs(checked: dict[str, Any] | None, target: str) -> None:
    """Raise if the target's runtime rejected the graph.

    Raises:
        TargetError: It did.
    """
    if checked and checked["status"] == "refused":
        raise TargetError(
            f"{target} does not run the quantized graph: {checked['reason']}",
            hint="list the operators with `edgeship inspect graph`, or try another target",
        )


def _fit_device(file: Path, target: str, version: str | None) -> list[str]:
    """Convert a file for the TensorRT version of the device; return notes.

    Raises:
        ModelError: An operator has no form in that version's opset.
        TargetError: The version refuses the graph.
    """
    if not targets.get(target).checks_rules:
        return []
    from edgeship.targets.tensorrt import repair

    note = repair.fit(file, version, file).note
    return [note] if note else []


def _weighted_layers(file: Path) -> list[bool]:
    """Return True for each layer with weights whose weights are quantized, in graph order."""
    graph = io.read(file).model.graph
    layers = [node for node in graph if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    quantized = []
    for node in layers:
        weight = node.inputs[1]
        source = weight.producer() if weight is not None else None
        while source is not None and source.op_type in ("Transpose", "Reshape"):
            weight = source.inputs[0]
            source = weight.producer() if weight is not None else None
        if source is not None and source.op_type == "DequantizeLinear":
            quantized.append(True)
        elif weight is not None and (source is None or source.op_type == "Constant"):
            quantized.append(False)
    return quantized


__all__ = ["Quantized", "quantize"]
