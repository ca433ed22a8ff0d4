"""Paired comparison of predictions: reference against variant, image by image."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.artifact import replacing
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.results import ClassAccuracy, Confusion, Flip, Paired

CHUNK = 4096  # images at a time: 1,000 classes of logits stay under 40 MB
FLIPS = 48  # maximum of images in the gallery
CONFUSIONS = 20
PREDICTIONS = "predictions.npz"


class Predictions(NamedTuple):
    """Top-1 class of N images and its softmax probability."""

    first: IntArray
    confidence: npt.NDArray[np.float64]


def predictions(path: Path) -> Predictions:
    """Read (N, classes) logits in chunks and return the top-1 class and its confidence.

    Raises:
        ValueError: The file is not an array of logits.
        OSError: The file cannot be read.
    """
    logits: FloatArray = np.load(path, mmap_mode="r", allow_pickle=False)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"shape {logits.shape}")
    first = np.empty(len(logits), np.int64)
    confidence = np.empty(len(logits))
    for start in range(0, len(logits), CHUNK):
        part = np.asarray(logits[start : start + CHUNK], np.float64)
        top = part.max(1, keepdims=True)
        first[start : start + CHUNK] = part.argmax(1)
        confidence[start : start + CHUNK] = 1 / np.exp(part - top).sum(1)
    return Predictions(first, confidence)


class StoredPredictions(NamedTuple):
    """Content of predictions.npz: N labels (-1: unknown) and the N top-1 classes of every variant."""

    labels: IntArray
    first: dict[str, IntArray]


def store_predictions(evaluated: Path, out: Path) -> None:
    """Write labels and top-1 classes to the report folder, for paired comparisons of runs.

    Args:
        evaluated: Folder of the evaluate stage.
        out: Folder of the report; predictions.npz has about two bytes per image and variant.
    """
    if not (evaluated / "labels.npy").is_file():
        return
    arrays = {path.stem: predictions(path).first for path in sorted((evaluated / "logits").glob("*.npy"))}
    arrays["labels"] = np.load(evaluated / "labels.npy", allow_pickle=False)
    with replacing(out / PREDICTIONS) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **{k: v.astype(np.int16) for k, v in arrays.items()})


def load_predictions(folder: Path) -> StoredPredictions | None:
    """Read predictions.npz; None if it is absent or damaged."""
    try:
        with (folder / PREDICTIONS).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name].astype(np.int64) for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    labels = arrays.pop("labels", np.zeros(0, np.int64))
    if labels.ndim != 1 or not len(labels) or any(each.shape != labels.shape for each in arrays.values()):
        return None
    return StoredPredictions(labels, arrays)


def compare(
    reference_name: str,
    reference: Predictions,
    other: Predictions,
    labels: IntArray | None,
    names: Sequence[str] | None,
) -> Paired:
    """Compare a variant with the reference on the same images.

    Args:
        reference_name: Name of the reference variant.
        reference: Its N predictions.
        other: N predictions of the variant.
        labels: N class indices, -1 for an unknown one; None without labels.
        names: N file names; None if unknown.
    """
    labelled = None if labels is None or not (labels >= 0).any() else labels >= 0
    lost = won = ece = ece_reference = p_value = None
    classes: tuple[ClassAccuracy, ...] = ()
    if labels is not None and labelled is not None:
        was_right, now_right = (reference.first == labels)[labelled], (other.first == labels)[labelled]
        lost, won = int((was_right & ~now_right).sum()), int((~was_right & now_right).sum())
        p_value = statistics.mcnemar(lost, won)
        ece_reference = statistics.expected_calibration_error(reference.confidence[labelled], was_right)
        ece = statistics.expected_calibration_error(other.confidence[labelled], now_right)
        classes = _per_class(labels[labelled], was_right, now_right)
    changed = np.flatnonzero(reference.first != other.first)
    surest = changed[np.argsort(-reference.confidence[changed], kind="stable")][:FLIPS]
    return Paired(
        reference=reference_name,
        images=len(other.first),
        lost=lost,
        won=won,
        mcnemar_p=p_value,
        ece_reference=ece_reference,
        ece=ece,
        classes=classes,
        changed=len(changed),
        identical=bool(not len(changed) and (reference.confidence == other.confidence).all()),
        confusions=_confusions(reference, other, labels, changed),
        flips=tuple(
            Flip(
                image=int(i),
                name=names[i] if names is not None else None,
                label=_label(labels, i),
                was=int(reference.first[i]),
                was_confidence=round(float(reference.confidence[i]), 6),
                now=int(other.first[i]),
                now_confidence=round(float(other.confidence[i]), 6),
            )
            for i in surest.tolist()
        ),
    )


def _per_class(
    labels: IntArray, was_right: npt.NDArray[np.bool_], now_right: npt.NDArray[np.bool_]
) -> tuple[ClassAccuracy, ...]:
    images = np.bincount(labels)
    was, now = np.bincount(labels, was_right), np.bincount(labels, now_right)
    lost, won = np.bincount(labels, was_right & ~now_right), np.bincount(labels, ~was_right & now_right)
    return tuple(
        ClassAccuracy(
            label=c,
            images=int(images[c]),
            top1_reference=was[c] / images[c],
            top1=now[c] / images[c],
            drop_ci95_pp=statistics.drop_interval(int(lost[c]), int(won[c]), int(images[c])),
        )
        for c in np.flatnonzero(images).tolist()
    )


def _confusions(
    reference: Predictions, other: Predictions, labels: IntArray | None, changed: IntArray
) -> tuple[Confusion, ...]:
    counts = Counter(
        (_label(labels, i), int(reference.first[i]), int(other.first[i])) for i in changed.tolist()
    )
    return tuple(Confusion(*change, images) for change, images in counts.most_common(CONFUSIONS))


def _label(labels: IntArray | None, i: int) -> int | None:
    return int(labels[i]) if labels is not None and labels[i] >= 0 else None
