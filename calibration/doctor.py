"""Check calibration images for problems before a long run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeship.calibration.datasets import Dataset
from edgeship.calibration.duplicates import ImageHash, hash_image, similar_pairs
from edgeship.calibration.loader import decode_each
from edgeship.calibration.preprocess import check, pixels
from edgeship.calibration.preprocessing_check import SAMPLE, Stem, check_colours, check_stem
from edgeship.calibration.text import first_names
from edgeship.toolkit.core import progress
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import PixelArray
from edgeship.toolkit.core.results import DataFinding, Severity
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.core.threads import ordered_map

_UNEVEN = 3.0  # largest over smallest class
_BLANK = 1e-9  # variance of pixels in [0, 1]; one grey level in one of a million pixels has more

Result = TypeVar("Result")


@dataclass(slots=True)
class _Decoded:
    """Data of the N decoded images of a source, and the names of the unreadable ones."""

    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    hashes: list[ImageHash] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Colours:
    """Mean and variance of each channel of every image, pixels in [0, 1]; and a sample of whole images."""

    mean: list[npt.NDArray[np.float64]] = field(default_factory=list)
    variance: list[npt.NDArray[np.float64]] = field(default_factory=list)
    whole: list[PixelArray] = field(default_factory=list)


def examine(
    dataset: Dataset,
    indices: Sequence[int],
    preprocess: Preprocess,
    *,
    evaluation: Dataset | None = None,
    evaluation_indices: Sequence[int] | None = None,
    classes: int | None = None,
    stem: Stem | None = None,
    workers: int | None = None,
) -> list[DataFinding]:
    """Check calibration images.

    Finds unreadable and blank images, exact and near duplicates, overlap with the evaluation images, missing
    and unbalanced classes, and preprocessing that does not fit the checkpoint. Decodes each image once and
    stores about 2 kB of it.

    Args:
        dataset: Source of the calibration images.
        indices: Calibration images in `dataset`.
        preprocess: Preprocessing of the checkpoint.
        evaluation: Evaluation images, which must not be used for calibration.
        evaluation_indices: Images of `evaluation` to compare; None: all.
        classes: Number of classes of the model; None: not checked.
        stem: First layer of the model with its training statistics; None: only colours are compared.
        workers: Decoding threads.

    Returns:
        Findings, errors first.

    Raises:
        DataError: There are no images, none can be decoded, or one is smaller than the crop.
    """
    check(preprocess)
    if not indices:
        raise DataError(f"no images of {dataset.name} to examine", hint="set select.images to 1 or more")
    colours = _Colours()
    every = max(1, len(indices) // SAMPLE)

    def work(image: Image.Image, name: str) -> tuple[ImageHash, PixelArray]:
        return hash_image(image), pixels(image, preprocess, name)

    def collect(result: tuple[ImageHash, PixelArray], position: int) -> ImageHash:
        values = result[1].reshape(-1, result[1].shape[2]).astype(np.float32) / 255
        colours.mean.append(values.mean(0, dtype=np.float64))
        colours.variance.append(values.var(0, dtype=np.float64))
        if position % every == 0 and len(colours.whole) < SAMPLE:
            colours.whole.append(result[1])
        return result[0]

    decoded = _decode(dataset, indices, work, collect, workers)
    findings = _unreadable(dataset, decoded) + _blank(decoded, colours)
    findings += _labels(dataset, decoded.indices, classes) + _duplicates(decoded)
    findings += _preprocessing(colours, preprocess, stem)
    if evaluation is not None:
        whole = range(len(evaluation)) if evaluation_indices is None else evaluation_indices
        other = _decode(
            evaluation, whole, lambda image, _: hash_image(image), lambda result, _: result, workers
        )
        findings += _unreadable(evaluation, other) + _overlap(decoded, other)
    return sorted(findings, key=lambda finding: ("error", "warning", "info").index(finding.severity))


def _decode(
    dataset: Dataset,
    indices: Sequence[int],
    work: Callable[[Image.Image, str], Result],
    collect: Callable[[Result, int], ImageHash],
    workers: int | None,
) -> _Decoded:
    decoded = _Decoded()
    with closing(decode_each(dataset, indices, work, workers=workers, skip_bad=True)) as results:
        label = f"examining {dataset.name}"
        for position, (index, result) in enumerate(progress.track(results, label, len(indices))):
            name = dataset.items[index].name
            if result is None:
                decoded.unreadable.append(name)
                continue
            decoded.names.append(name)
            decoded.indices.append(index)
            decoded.hashes.append(collect(result, position))
    decoded.digests = list(ordered_map(dataset.digest, decoded.indices, workers=workers))
    return decoded


def _named(severity: Severity, names: Sequence[str], what: str, hint: str) -> list[DataFinding]:
    """Return a finding with the number of the names and the first of them; none without a name."""
    return [DataFinding(severity, f"{len(names)} {what}: {first_names(names)}", hint)] if names else []


def _unreadable(dataset: Dataset, decoded: _Decoded) -> list[DataFinding]:
    hint = "replace or remove them, or leave them out with --skip-unreadable"
    return _named("error", decoded.unreadable, f"image(s) of {dataset.name} cannot be decoded", hint)


def _blank(decoded: _Decoded, colours: _Colours) -> list[DataFinding]:
    each = zip(decoded.names, colours.variance, strict=True)
    blank = [name for name, variance in each if variance.max() < _BLANK]
    return _named("warning", blank, "image(s) have one colour only", "remove them")


def _labels(dataset: Dataset, indices: Sequence[int], classes: int | None) -> list[DataFinding]:
    if not dataset.labelled:
        return [DataFinding("info", f"{dataset.name} has no labels: coverage of the classes is unknown")]
    findings = []
    if classes is not None and len(dataset.classes) != classes:
        message = f"{dataset.name} has {len(dataset.classes)} classes, the model {classes}"
        findings.append(DataFinding("warning", message, "use images of all classes, in the model's order"))
    counts = Counter(dataset.labels[list(indices)].tolist())
    missing = [name for label, name in enumerate(dataset.classes) if label not in counts]
    hint = "raise select.images to a multiple of the number of classes"
    findings += _named("warning", missing, f"of {len(dataset.classes)} classes have no image", hint)
    (largest, most), (smallest, fewest) = counts.most_common()[0], counts.most_common()[-1]
    if most > max(_UNEVEN * fewest, fewest + 1):
        message = f"{most} images of {dataset.classes[largest]}, {fewest} of {dataset.classes[smallest]}"
        findings.append(
            DataFinding("warning", f"classes are uneven: {message}", "add images of the small classes")
        )
    return findings


def _duplicates(decoded: _Decoded) -> list[DataFinding]:
    copies: dict[str, list[str]] = defaultdict(list)
    for name, digest in zip(decoded.names, decoded.digests, strict=True):
        copies[digest].append(name)
    exact = [f"{first} = {name}" for first, *others in copies.values() for name in others]
    near = [
        f"{decoded.names[i]} ~ {decoded.names[j]}"
        for i, j in similar_pairs(decoded.hashes)
        if decoded.digests[i] != decoded.digests[j]
    ]
    hint = "check the pairs and remove copies"
    return _named("warning", exact, "image(s) are exact copies of others", "remove the copies") + _named(
        "warning", near, "pair(s) of images look alike", hint
    )


def _overlap(decoded: _Decoded, other: _Decoded) -> list[DataFinding]:
    evaluated = dict(zip(other.digests, other.names, strict=True))
    exact = [
        f"{name} = {evaluated[digest]}"
        for name, digest in zip(decoded.names, decoded.digests, strict=True)
        if digest in evaluated
    ]
    near = [
        f"{decoded.names[i]} ~ {other.names[j]}"
        for i, j in similar_pairs(decoded.hashes, other.hashes)
        if decoded.digests[i] not in evaluated
    ]
    hint = "calibrate with images that are not evaluation images"
    return _named("error", exact, "image(s) are evaluation images too", hint) + _named(
        "warning", near, "pair(s) look like evaluation images", hint
    )


def _preprocessing(colours: _Colours, preprocess: Preprocess, stem: Stem | None) -> list[DataFinding]:
    means, variances = np.stack(colours.mean), np.stack(colours.variance)
    mean = means.mean(0)
    std = np.sqrt((variances + means**2).mean(0) - mean**2)
    findings = check_colours(mean, std, preprocess)
    if stem is None or any(finding.severity == "error" for finding in findings):
        return findings
    return check_stem(stem, np.stack(colours.whole), preprocess)  # more reliable than colours
