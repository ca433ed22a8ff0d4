"""Open the images of a run: calibration, evaluation, and thumbnails of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeship.toolkit.core.artifact import canonical_json, sha256_bytes
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.runs.measured import EvaluatedImages

if TYPE_CHECKING:
    from edgeship.calibration.class_order import Aliases
    from edgeship.calibration.datasets import Dataset
    from edgeship.calibration.manifest import Manifest
    from edgeship.calibration.sets import Use
    from edgeship.toolkit.core.results import DataFinding
    from edgeship.toolkit.pipeline.recipe import SelectOptions


def open_evaluation(source: str, classes: int, use: Use = "evaluate", names: Aliases = ()) -> Dataset:
    """Open evaluation images; without labels only the agreement of variants is measured.

    A class folder without images counts as a class, unless the network has as many outputs as the others.

    Args:
        source: As in the recipe.
        classes: Outputs of the network.
        use: Split of a source with several.
        names: All names of each output, by which labels are matched; empty: labels are matched in order.

    Raises:
        DataError: There is one class only, or the labels do not match the outputs.
    """
    from edgeship.calibration.class_order import match_classes
    from edgeship.calibration.datasets import open_dataset
    from edgeship.calibration.text import first_names

    dataset = open_dataset(source, use=use)
    if not dataset.labelled:
        return dataset
    dataset = open_dataset(source, labelled=True, use=use)
    if names:
        return match_classes(dataset, names)
    empty = dataset.empty_classes
    numbered = all(name.isdecimal() for name in dataset.classes)  # of a list: labels are output indices
    if empty and not numbered and len(dataset.classes) - len(empty) == classes:
        return dataset.without_empty_classes()
    if len(dataset.classes) > classes or (len(dataset.classes) < classes and not numbered):
        without = f" ({len(empty)} without images: {first_names(empty)})" if empty and not numbered else ""
        raise DataError(
            f"{source} has {len(dataset.classes)} classes{without}, the network {classes} outputs",
            hint=_label_hint(dataset, classes),
        )
    return dataset


def _label_hint(dataset: Dataset, classes: int) -> str:
    """Return the hint for labels that do not match the outputs of a network."""
    counted = len(dataset.classes)
    if dataset.classes == tuple(str(number) for number in range(counted)) and 0 not in dataset.labels:
        return "the labels start at 1: number them from 0"
    if classes == counted + 1:
        return (
            "one output more than classes: a background class? Give load.labels=FILE with the name of every "
            "output in order"
        )
    return (
        "give images of all the classes it was trained on, load.labels=FILE with the name of every output in "
        "order, or a .csv of file,label with its numbers"
    )


def open_validation(source: str, classes: int | None, use: Use = "evaluate", names: Aliases = ()) -> Dataset:
    """Open validation images; without a number of classes labels are unused."""
    from edgeship.calibration.datasets import open_dataset

    return open_dataset(source, use=use) if classes is None else open_evaluation(source, classes, use, names)


def training_images(
    source: str, count: int | Literal["all"], seed: int, exclude: str, names: Aliases = ()
) -> tuple[Dataset, list[int]]:
    """Select images for pruning or training, in random order; return data set and positions.

    Args:
        source: As in the recipe.
        count: Number of images; all of a smaller source.
        seed: Seed of the selection.
        exclude: Source of the evaluation images; empty excludes nothing.
        names: All names of each output, by which labels are matched, if there are any.

    Raises:
        DataError: Evaluation images are among them.
    """
    from edgeship.calibration import manifest
    from edgeship.calibration.class_order import match_classes
    from edgeship.calibration.datasets import open_dataset

    dataset = open_dataset(source, use="train")
    if names and dataset.labelled:
        dataset = match_classes(dataset, names)
    most = len(dataset) if count == "all" else min(count, len(dataset))
    evaluation = open_dataset(exclude, use="evaluate") if exclude else None
    return dataset, manifest.locate(manifest.select(dataset, most, seed, exclude=evaluation), dataset)


def check_readable(dataset: Dataset, indices: list[int]) -> None:
    """Check that images can be decoded.

    Raises:
        DataError: An image cannot be decoded.
    """
    from edgeship.calibration.loader import decode_each

    for _ in decode_each(dataset, indices, lambda _image, _name: ()):
        pass


def left_out(dataset: Dataset, options: SelectOptions, chosen: Manifest) -> list[DataFinding]:
    """Return a finding on unreadable images that the selection skipped."""
    from edgeship.calibration import manifest

    if not options.skip_unreadable:
        return []
    intended = manifest.select(dataset, options.images, options.seed)
    bad = {entry.file for entry in intended.entries} - {entry.file for entry in chosen.entries}
    return unreadable(dataset, sorted(bad))


def unreadable(dataset: Dataset, names: list[str]) -> list[DataFinding]:
    """Return a warning on images that were left out because they cannot be decoded."""
    from edgeship.calibration.text import first_names
    from edgeship.toolkit.core.results import DataFinding

    message = f"{len(names)} unreadable image(s) of {dataset.name} were left out: {first_names(names)}"
    return [DataFinding("warning", message, "replace or remove them")] if names else []


def opened(dataset: Dataset) -> list[DataFinding]:
    """Return the notes on an opened source of images, for the report."""
    from edgeship.toolkit.core.results import DataFinding

    return [DataFinding("info", note) for note in dataset.notes]


def calibration(source: str, selected: Path) -> tuple[Dataset, list[int]]:
    """Return data set and positions of the selected calibration images."""
    from edgeship.calibration import manifest
    from edgeship.calibration.datasets import open_dataset

    dataset = open_dataset(source, use="train")
    return dataset, manifest.locate(manifest.read(selected / "manifest.json"), dataset)


def stream(
    dataset: Dataset, indices: list[int], preprocess: Preprocess, batch: int, label: str
) -> Iterator[FloatArray]:
    """Yield batches of preprocessed images (N, C, H, W)."""
    from edgeship.calibration.loader import batches

    for part in batches(dataset, indices, preprocess, batch=batch, label=label):
        yield part.images


def subset(dataset: Dataset, images: int | Literal["all"]) -> list[int]:
    """Return the positions of the evaluation images: all, or a fixed subset balanced by class."""
    from edgeship.calibration import manifest

    if images == "all":
        return list(range(len(dataset)))
    return sorted(manifest.locate(manifest.select(dataset, images, seed=0), dataset))


def identity(dataset: Dataset, indices: IntArray) -> EvaluatedImages:
    """Return the names of the evaluated images, and one digest over names and contents."""
    from edgeship.toolkit.core.threads import ordered_map

    names = [dataset.items[index].name for index in indices]
    contents = list(ordered_map(dataset.digest, indices.tolist()))
    digest = sha256_bytes(canonical_json(list(zip(names, contents, strict=True))).encode())
    return EvaluatedImages(dataset.name, digest, tuple(names))


def thumbnails(source: str, evaluated: Path) -> Callable[[int], bytes] | None:
    """Return a reader of evaluated image files by row of the logits; None if the source is missing."""
    from edgeship.calibration.datasets import open_dataset

    try:
        dataset = open_dataset(source, use="evaluate")
    except DataError:
        return None
    places = {item.name: index for index, item in enumerate(dataset.items)}
    names = EvaluatedImages.read(evaluated).names
    return lambda index: dataset.read(places[names[index]])
