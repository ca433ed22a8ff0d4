"""The calibration doctor: what is wrong with the images before hours are spent on them."""

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
from edgeship.calibration.duplicates import Look, look, pairs
from edgeship.calibration.findings import Finding
from edgeship.calibration.loader import decode_each
from edgeship.calibration.preprocess import check, pixels
from edgeship.calibration.preprocessing_check import SAMPLE, Stem, check_colours, check_stem
from edgeship.calibration.text import some
from edgeship.toolkit.core import progress
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import PixelArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.core.threads import ordered_map

_UNEVEN = 3.0  # largest over smallest class
_BLANK = 1e-9  # variance of pixels in [0, 1]; one grey level in one of a million pixels has more

Result = TypeVar("Result")


@dataclass(slots=True)
class _Seen:
    """Images of one source that were looked at: N of each, and the names of those that cannot be decoded."""

    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Colours:
    """Mean and variance of each channel of every image, pixels in [0, 1]; and some whole images."""

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
) -> list[Finding]:
    """Examine calibration images.

    Found are unreadable and blank images, exact and near duplicates, images that are evaluated on too,
    missing and uneven classes, and preprocessing that does not fit the checkpoint. Images are decoded once,
    and about 2 kB of each are kept.

    Args:
        dataset: Where the calibration images are.
        indices: Which of them.
        preprocess: How the checkpoint wants them.
        evaluation: Images that must not be among them.
        evaluation_indices: Which of those; None is all.
        classes: Number of classes of the model; None leaves it unchecked.
        stem: First layer of the model, which remembers its training; without it only colours are compared.
        workers: Threads that decode.

    Returns:
        Findings, errors first.

    Raises:
        DataError: There are no images, none can be decoded, or one is smaller than the crop.
    """
    check(preprocess)
    if not indices:
        raise DataError(f"no images of {dataset.name} to examine", hint="ask for 1 or more")
    colours = _Colours()
    every = max(1, len(indices) // SAMPLE)

    def view(image: Image.Image, name: str) -> tuple[Look, PixelArray]:
        return look(image), pixels(image, preprocess, name)

    def keep(result: tuple[Look, PixelArray], position: int) -> Look:
        values = result[1].reshape(-1, result[1].shape[2]).astype(np.float32) / 255
        colours.mean.append(values.mean(0, dtype=np.float64))
        colours.variance.append(values.var(0, dtype=np.float64))
        if position % every == 0 and len(colours.whole) < SAMPLE:
            colours.whole.append(result[1])
        return result[0]

    seen = _see(dataset, indices, view, keep, workers)
    findings = _unreadable(dataset, seen) + _blank(seen, colours) + _labels(dataset, seen.indices, classes)
    findings += _duplicates(seen) + _preprocessing(colours, preprocess, stem)
    if evaluation is not None:
        whole = range(len(evaluation)) if evaluation_indices is None else evaluation_indices
        other = _see(evaluation, whole, lambda image, _: look(image), lambda result, _: result, workers)
        findings += _unreadable(evaluation, other) + _overlap(seen, other)
    return sorted(findings, key=lambda finding: ("error", "warning", "info").index(finding.severity))


def _see(
    dataset: Dataset,
    indices: Sequence[int],
    view: Callable[[Image.Image, str], Result],
    keep: Callable[[Result, int], Look],
    workers: int | None,
) -> _Seen:
    seen = _Seen()
    with closing(decode_each(dataset, indices, view, workers=workers, skip_bad=True)) as decoded:
        label = f"examining {dataset.name}"
        for position, (index, result) in enumerate(progress.track(decoded, label, len(indices))):
            name = dataset.items[index].name
            if result is None:
                seen.bad.append(name)
                continue
            seen.names.append(name)
            seen.indices.append(index)
            seen.looks.append(keep(result, position))
    seen.digests = list(ordered_map(dataset.digest, seen.indices, workers=workers))
    return seen


def _unreadable(dataset: Dataset, seen: _Seen) -> list[Finding]:
    if not seen.bad:
        return []
    what = f"{len(seen.bad)} image(s) of {dataset.name} cannot be decoded: {some(seen.bad)}"
    return [Finding("error", what, "replace or remove them, or go on without them by --skip-unreadable")]


def _blank(seen: _Seen, colours: _Colours) -> list[Finding]:
    each = zip(seen.names, colours.variance, strict=True)
    blank = [name for name, variance in each if variance.max() < _BLANK]
    if not blank:
        return []
    return [Finding("warning", f"{len(blank)} image(s) show one colour only: {some(blank)}", "remove them")]


def _labels(dataset: Dataset, indices: Sequence[int], classes: int | None) -> list[Finding]:
    if not dataset.labelled:
        return [Finding("info", f"{dataset.name} has no labels: whether all classes are there is unknown")]
    findings = []
    if classes is not None and len(dataset.classes) != classes:
        findings.append(
            Finding(
                "warning",
                f"{dataset.name} has {len(dataset.classes)} classes, the model {classes}",
                "give images of all classes; accuracy needs the same classes in the same order",
            )
        )
    counts = Counter(dataset.labels[list(indices)].tolist())
    missing = [name for label, name in enumerate(dataset.classes) if label not in counts]
    if missing:
        findings.append(
            Finding(
                "warning",
                f"{len(missing)} of {len(dataset.classes)} classes have no image: {some(missing)}",
                "raise select.images to a multiple of the number of classes",
            )
        )
    if max(counts.values()) > max(_UNEVEN * min(counts.values()), min(counts.values()) + 1):
        largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        findings.append(
            Finding(
                "warning",
                f"classes are uneven: {counts[largest]} images of {dataset.classes[largest]}, "
                f"{counts[smallest]} of {dataset.classes[smallest]}",
                "bring more images of the small classes",
            )
        )
    return findings


def _duplicates(seen: _Seen) -> list[Finding]:
    copies: dict[str, list[str]] = defaultdict(list)
    for name, digest in zip(seen.names, seen.digests, strict=True):
        copies[digest].append(name)
    exact = [" = ".join(group) for group in copies.values() if len(group) > 1]
    near = [
        f"{seen.names[i]} ~ {seen.names[j]}"
        for i, j in pairs(seen.looks)
        if seen.digests[i] != seen.digests[j]
    ]
    findings = []
    if exact:
        what = f"{len(seen.names) - len(copies)} image(s) are exact copies of others: {some(exact)}"
        findings.append(Finding("warning", what, "remove the copies"))
    if near:
        what = f"{len(near)} pair(s) of images look alike: {some(near)}"
        findings.append(Finding("warning", what, "look at them; copies add nothing to a calibration"))
    return findings


def _overlap(seen: _Seen, other: _Seen) -> list[Finding]:
    evaluated = dict(zip(other.digests, other.names, strict=True))
    exact = [
        f"{name} = {evaluated[digest]}"
        for name, digest in zip(seen.names, seen.digests, strict=True)
        if digest in evaluated
    ]
    near = [
        f"{seen.names[i]} ~ {other.names[j]}"
        for i, j in pairs(seen.looks, other.looks)
        if seen.digests[i] not in evaluated
    ]
    hint = "calibrate with images that are not evaluated on"
    findings = []
    if exact:
        findings.append(Finding("error", f"{len(exact)} image(s) are evaluated on too: {some(exact)}", hint))
    if near:
        what = f"{len(near)} pair(s) look like evaluation images: {some(near)}"
        findings.append(Finding("warning", what, hint))
    return findings


def _preprocessing(colours: _Colours, preprocess: Preprocess, stem: Stem | None) -> list[Finding]:
    means, variances = np.stack(colours.mean), np.stack(colours.variance)
    mean = means.mean(0)
    std = np.sqrt((variances + means**2).mean(0) - mean**2)
    found = check_colours(mean, std, preprocess)
    if stem is None or any(finding.severity == "error" for finding in found):
        return found
    return check_stem(stem, np.stack(colours.whole), preprocess)  # the better judge, where there is one
