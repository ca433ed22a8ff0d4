"""Check the user's input: preprocessing, class order and the FP32 baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeship.toolkit.core import baseline, statistics
from edgeship.toolkit.core.quant import FloatArray, IntArray, PixelArray
from edgeship.toolkit.core.results import InputCheck
from edgeship.toolkit.core.tensors import Preprocess, PreprocessSource
from edgeship.toolkit.pipeline import load_and_export
from edgeship.toolkit.pipeline.preprocessing import assumed_note
from edgeship.toolkit.runs.network import ModelInfo

if TYPE_CHECKING:
    from edgeship.calibration.datasets import Dataset
    from edgeship.calibration.preprocess_forms import Form, Infer, Search
    from edgeship.calibration.preprocessing_check import Stem

SAMPLE = 200  # most images for trials of preprocessing forms
PIXELS_BYTES = 512 << 20  # of memory for them
BATCH = 32
LOST = 0.10  # accuracy lost to a wrong preprocessing, above which there is no verdict
SHOWN = 12  # classes that a message lists
AGAINST_T = -1.0  # Student's t below which labels contradict the first layer
SURE_T = 3.5  # see edgeship.calibration.preprocess_forms
LEAST_GAIN = 0.05  # accuracy that other BatchNorm statistics must gain
WEAK_NATS = 0.2  # mutual information that another form must gain to be named without labels
LABELS_HINT = "--set load.labels=FILE with one class name a line, in the order of the network's outputs"
EXPLAINED = {
    "preprocess-better",
    "batchnorm-statistics",
    "batchnorm-untouched",
}  # the first layer adds nothing
RELATED = {"preprocess-better": "preprocessing", "class-order": "class order"}


@dataclass(frozen=True, slots=True)
class EvaluatedNetwork:
    """A float network and its evaluation.

    Attributes:
        graph: ONNX file of the unpruned float network.
        folder: Result of the load stage.
        dataset: The evaluation images.
        indices: N positions of the evaluated images.
        logits: (N, classes) of the float network.
        labels: N class indices; -1 is unknown.
        preprocess: Preprocessing of the images.
        source: Origin of its mean and std.
    """

    graph: Path
    folder: Path
    dataset: Dataset
    indices: IntArray
    logits: FloatArray
    labels: IntArray
    preprocess: Preprocess
    source: PreprocessSource

    @property
    def labelled(self) -> bool:
        """Return True if every image has a label."""
        return bool((self.labels >= 0).all())


def examine(evaluated: EvaluatedNetwork) -> list[InputCheck]:
    """Check preprocessing, class order and baseline.

    Returns:
        The checks, most severe first; with `preprocess-assumed` if mean and std are not stated.
    """
    from edgeship.calibration import preprocess_forms

    places = _sample(len(evaluated.indices), evaluated.preprocess)
    stem = load_and_export.first_layer(evaluated.folder).stem if _has_checkpoint(evaluated.folder) else None
    pixels = _pixels(evaluated, places)
    labels = evaluated.labels[places]
    checks: list[InputCheck] = []
    search: Search | None = None
    with _float_network(evaluated.graph) as infer:
        if evaluated.labelled:
            order = baseline.find_class_order(evaluated.logits, evaluated.labels, evaluated.dataset.classes)
            search = preprocess_forms.search(evaluated.preprocess, pixels, labels, infer)
            if order is not None and not (search and search.better and search.accuracy >= order.accuracy):
                checks.append(_class_order(order, evaluated.dataset.classes))
                labels = np.array(order.outputs, np.int64)[labels]
                search = preprocess_forms.search(evaluated.preprocess, pixels, labels, infer)
            checks += _better_form(evaluated, search)
            checks += _class_count(evaluated)
            checks += _baseline(evaluated, checks, _first(pixels), labels)
        else:
            checks += _unlabelled(evaluated, _first(pixels), infer) if stem is None else []
        if stem is not None:
            checks += _untrained_statistics(evaluated.folder)
        if stem is not None and not any(check.code in EXPLAINED for check in checks):
            checks += _first_layer(evaluated, stem, _first(pixels), labels, infer)
    if evaluated.source == "assumed":
        checks.append(_assumed(evaluated, search))
    severity = ("no_verdict", "no_pass", "note")
    return sorted(checks, key=lambda check: severity.index(check.effect))


def check_run(
    inputs: Mapping[str, Path], dataset: Dataset, indices: IntArray, logits: FloatArray
) -> list[InputCheck]:
    """Check the input of a run, after its evaluation."""
    info = ModelInfo.read(inputs["load"])
    notes = [InputCheck("input-form", "note", text) for text in info.notes]
    return notes + examine(
        EvaluatedNetwork(
            inputs["export"] / "float.onnx",
            inputs["load"],
            dataset,
            indices,
            logits,
            dataset.labels[indices],
            info.preprocess,
            info.preprocess_source,
        )
    )


def _sample(count: int, preprocess: Preprocess) -> IntArray:
    """Return positions of at most `SAMPLE` images, spread over all, in a fixed random order."""
    most = max(1, PIXELS_BYTES // (5 * 3 * math.prod(preprocess.sides)))  # five geometries, three channels
    places = np.linspace(0, count - 1, min(count, SAMPLE, most)).round().astype(np.int64)
    return np.random.default_rng(0).permutation(places)


def _pixels(evaluated: EvaluatedNetwork, places: IntArray) -> dict[Preprocess, PixelArray]:
    """Return the pixels of sampled images in every tried geometry."""
    from PIL import Image

    from edgeship.calibration.loader import decode_each
    from edgeship.calibration.preprocess import pixels
    from edgeship.calibration.preprocess_forms import geometries

    tried = geometries(evaluated.preprocess)

    def view(image: Image.Image, name: str) -> list[PixelArray]:
        return [pixels(image, each, name) for each in tried]

    decoded = decode_each(evaluated.dataset, evaluated.indices[places].tolist(), view)
    rows = [row for _, row in decoded if row is not None]
    return {each: np.stack([row[place] for row in rows]) for place, each in enumerate(tried)}


def _first(pixels: Mapping[Preprocess, PixelArray]) -> PixelArray:
    """Return the pixels of the stated geometry."""
    return next(iter(pixels.values()))


@contextmanager
def _float_network(graph: Path) -> Iterator[Infer]:
    from edgeship.targets.onnxruntime import simulate

    with simulate(graph) as session:

        def infer(inputs: FloatArray) -> FloatArray:
            parts = [session.infer(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
            return np.concatenate(parts)

        yield infer


def _better_form(evaluated: EvaluatedNetwork, search: Search | None) -> list[InputCheck]:
    if search is None or not search.better:
        return []
    _, lowest, _ = statistics.wilson(round(search.accuracy * search.images), search.images)
    largest = np.bincount(evaluated.labels).max() / len(evaluated.labels)
    if lowest <= max(largest, 1 / evaluated.logits.shape[1]):
        return []  # no better than one class for every image, which a wrong form may give
    lost = search.accuracy - search.accuracy_stated
    what = "the assumed preprocessing" if evaluated.source == "assumed" else "the stated preprocessing"
    return [
        InputCheck(
            "preprocess-better",
            "no_verdict" if lost > LOST else "no_pass",
            f"preprocessing: with {_name(search.best, evaluated)} the float network has "
            f"{_percent(search.accuracy)} top-1 on {search.images} images, "
            f"with {what} {_percent(search.accuracy_stated)}",
            _form_hint(search.best, evaluated.preprocess),
        )
    ]


def _assumed(evaluated: EvaluatedNetwork, search: Search | None) -> InputCheck:
    message, hint = assumed_note(evaluated.preprocess)
    if search is not None and not search.better:
        message += (
            f"; none of {search.tried - 1} other usual forms is better on {search.images} images "
            f"({_percent(search.accuracy_stated)} top-1)"
        )
    return InputCheck("preprocess-assumed", "no_pass", message, hint)


def _class_order(order: baseline.ClassOrder, names: Sequence[str]) -> InputCheck:
    where = order.cause or f"{len(order.moved)} classes are in another order"
    shown = ", ".join(
        f"{names[label]} is output {order.outputs[label]}, not {label}" for label in order.moved[:SHOWN]
    )
    more = f" and {len(order.moved) - SHOWN} more" if len(order.moved) > SHOWN else ""
    return InputCheck(
        "class-order",
        "no_verdict",
        f"class order: {where}; {_percent(order.accuracy)} top-1 with that order, "
        f"{_percent(order.accuracy_stated)} with the labels as they are, on {order.images} held-out images: "
        f"{shown}{more}",
        LABELS_HINT,
    )


def _class_count(evaluated: EvaluatedNetwork) -> list[InputCheck]:
    """Check for predictions of outputs without a label."""
    outputs, labels = evaluated.logits.shape[1], len(evaluated.dataset.classes)
    if outputs <= labels:
        return []
    outside = float((evaluated.logits.argmax(1) >= labels).mean())
    if outside < 1 / 3:
        return []
    return [
        InputCheck(
            "class-count",
            "no_verdict",
            f"number of classes: {_percent(outside)} of the predictions are outputs {labels} to "
            f"{outputs - 1}, which no label names: the images have {labels} classes, the network {outputs}",
            LABELS_HINT,
        )
    ]


def _baseline(
    evaluated: EvaluatedNetwork, before: Sequence[InputCheck], pixels: PixelArray, labels: IntArray
) -> list[InputCheck]:
    """Compare the accuracy with chance and confidence; name the likely cause."""
    result = baseline.baseline(evaluated.logits, evaluated.labels)
    causes = [RELATED[check.code] for check in before if check.code in RELATED]
    checks = []
    if not causes and result.accuracy < result.confidence and _has_checkpoint(evaluated.folder):
        checks = _batchnorm(evaluated, pixels, labels)
        causes = ["BatchNorm statistics"] if checks else []
    if not result.at_chance and not result.overconfident:
        return checks
    accuracy = f"{_percent(result.accuracy)} [{_percent(result.interval[0])}, {_percent(result.interval[1])}]"
    likely = (
        f"likely cause: {', '.join(causes)}"
        if causes
        else (
            "no usual preprocessing and no order of the classes explains it: compare the classes with those "
            "of its training, and export it in evaluation mode"
        )
    )
    if result.at_chance:
        code, against = "baseline-at-chance", f"chance is {_percent(result.chance)}"
    else:
        code, against = "baseline-overconfident", f"its mean confidence is {_percent(result.confidence)}"
    message = f"FP32 top-1 is {accuracy} on {result.images} images, and {against}; {likely}"
    hint = "compare the table of class indices in the report with the network's outputs"
    return [*checks, InputCheck(code, "no_verdict", message, hint)]


def _batchnorm(evaluated: EvaluatedNetwork, pixels: PixelArray, labels: IntArray) -> list[InputCheck]:
    """Compare the stored BatchNorm statistics with those of the images themselves."""
    from edgeship.calibration.preprocess import normalize
    from edgeship.toolkit.models import batchnorm, weights

    if len(labels) < SAMPLE // 4:
        return []
    model = weights.load(evaluated.folder).model
    images = normalize(pixels, evaluated.preprocess)
    stored, own = (
        batchnorm.logits(model, images),
        batchnorm.logits(batchnorm.reestimate_statistics(model, images), images),
    )
    t = baseline.paired_t(baseline.label_losses(stored, labels) - baseline.label_losses(own, labels))
    before, after = (float((each.argmax(1) == labels).mean()) for each in (stored, own))
    if t <= SURE_T or after - before < LEAST_GAIN:
        return []
    return [
        InputCheck(
            "batchnorm-statistics",
            "no_verdict",
            f"BatchNorm: with statistics of {len(labels)} evaluation images the network has "
            f"{_percent(after)} top-1, with the stored ones {_percent(before)}: they are not those of its "
            "training, or it was saved in training mode",
            "save the checkpoint again after model.eval(), with the buffers running_mean and running_var",
        )
    ]


def _untrained_statistics(folder: Path) -> list[InputCheck]:
    """Check for BatchNorm layers with initial running statistics."""
    from edgeship.toolkit.models import batchnorm, weights

    untouched = batchnorm.layers_with_initial_statistics(weights.load(folder).model)
    if not untouched:
        return []
    return [
        InputCheck(
            "batchnorm-untouched",
            "no_verdict",
            f"BatchNorm: {len(untouched)} layers have the statistics of a new network (mean 0, variance 1): "
            f"{', '.join(untouched[:3])}",
            "save the checkpoint with the buffers running_mean and running_var",
        )
    ]


def _first_layer(
    evaluated: EvaluatedNetwork, stem: Stem, pixels: PixelArray, labels: IntArray, infer: Infer
) -> list[InputCheck]:
    """Compare the first layer's statistics with those of training, unless labels contradict."""
    from edgeship.calibration import preprocess_forms
    from edgeship.calibration.preprocessing_check import NOISE_PAIRED, better_form, stem_divergences

    divergences = stem_divergences(stem, pixels, evaluated.preprocess)
    form = better_form(divergences, NOISE_PAIRED) if len(pixels) == SAMPLE else better_form(divergences)
    if form is None:
        return []
    if evaluated.labelled and len(labels) >= preprocess_forms.FEWEST_IMAGES:
        compared = preprocess_forms.compare(evaluated.preprocess, form, pixels, labels, infer)
        if compared.t < AGAINST_T:
            return []
    stated = next(iter(divergences.values()))
    return [
        InputCheck(
            "preprocess-first-layer",
            "no_pass",
            f"preprocessing: the first layer's statistics are {divergences[form]:.3g} nats from those of "
            f"training with {_name(form, evaluated)}, {stated:.3g} as the images are prepared",
            _form_hint(form, evaluated.preprocess),
        )
    ]


def _unlabelled(evaluated: EvaluatedNetwork, pixels: PixelArray, infer: Infer) -> list[InputCheck]:
    """Hint at another form by the mutual information of predictions, a weak sign without labels."""
    from edgeship.calibration.preprocess_forms import FEWEST_IMAGES, most_informative_form

    if len(pixels) < FEWEST_IMAGES:
        return []
    form, best, stated = most_informative_form(evaluated.preprocess, pixels, infer)
    if best - stated < WEAK_NATS:
        return []
    return [
        InputCheck(
            "preprocess-confidence",
            "no_pass",
            f"preprocessing, a weak hint without labels: with {_name(form, evaluated)} predictions are surer "
            f"and more varied ({best:.2f} nats of mutual information, {stated:.2f} as images are prepared)",
            f"evaluate on labelled images, or {_form_hint(form, evaluated.preprocess)}",
        )
    ]


def _form_hint(form: Form, stated: Preprocess) -> str:
    """Return the setting or the change of files that applies a form."""
    if form.exchange == "network":
        return (
            "reverse the input channels of the first convolution, weight[:, ::-1], and export again: images "
            "are read as RGB"
        )
    if form.exchange == "files":
        return "write the image files with red and blue exchanged back: they are read as RGB"
    settings = []
    for key in ("mean", "std", "resize", "interpolation"):
        value = getattr(form.preprocess, key)
        if value != getattr(stated, key):
            text = ",".join(f"{number:.6g}" for number in value) if isinstance(value, tuple) else str(value)
            settings.append(f"--set load.preprocess.{key}={text}")
    return " ".join(settings)


def _name(form: Form, evaluated: EvaluatedNetwork) -> str:
    """Return the name of a form, with "assumed" for an assumed preprocessing."""
    return form.name.replace("the stated", "the assumed") if evaluated.source == "assumed" else form.name


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "widths.json").is_file()


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
