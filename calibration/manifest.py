"""Choose calibration images: seeded, balanced by class, with digests, disjoint from evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from edgeship.calibration.datasets import Dataset
from edgeship.calibration.loader import decode_each
from edgeship.calibration.text import first_names
from edgeship.toolkit.core.artifact import sha256_bytes, write_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.text import printable
from edgeship.toolkit.core.threads import ordered_map
from edgeship.toolkit.core.typed_json import read_as


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One chosen image: name in the source, SHA-256 and size of the file, class (None: unknown)."""

    file: str
    digest: str
    label: int | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Chosen calibration images.

    Attributes:
        seed: Seed of the choice.
        source: Name of the source data set.
        source_digest: SHA-256 of the source's names, labels and sizes.
        entries: Images in order of use; classes alternate, so that every prefix is balanced.
        schema: Version of the JSON form.
    """

    seed: int
    source: str
    source_digest: str
    entries: tuple[ManifestEntry, ...]
    schema: Literal[1] = 1


def select(
    dataset: Dataset,
    count: int,
    seed: int,
    exclude: Dataset | None = None,
    *,
    skip_bad: bool = False,
    at_most: bool = False,
) -> Manifest:
    """Choose calibration images.

    Images are ordered by a hash of seed and name; the classes alternate in this order. So the choice does not
    depend on the machine, a larger count includes the images of a smaller one, and a new image in the source
    replaces at most one chosen image.

    Args:
        dataset: Source of the images.
        count: Number of images.
        seed: Seed of the choice.
        exclude: Evaluation images, compared by content.
        skip_bad: Decode the candidates and skip undecodable ones; otherwise nothing is decoded.
        at_most: Accept fewer images if the source has no more.

    Raises:
        DataError: The source has too few images, or a chosen image is an evaluation image.
    """
    if count < 1:
        raise DataError(
            f"cannot calibrate with {count} images", hint="set select.images to 1 or more; 300 is usual"
        )
    if count > len(dataset) and not at_most:
        raise _too_few(dataset, count, len(dataset))
    ordered = _ordered(dataset, seed)
    chosen = list(_decodable(dataset, ordered, count) if skip_bad else ordered[:count])
    if len(chosen) < count and not at_most:
        raise _too_few(dataset, count, len(chosen))
    digests = ordered_map(dataset.digest, chosen)
    entries = tuple(
        ManifestEntry(
            dataset.items[index].name, digest, dataset.items[index].label, dataset.size_bytes(index)
        )
        for index, digest in zip(chosen, digests, strict=True)
    )
    manifest = Manifest(seed, dataset.name, dataset.listing_digest(), entries)
    if exclude is not None:
        check_disjoint(manifest, exclude)
    return manifest


def check_disjoint(manifest: Manifest, evaluation: Dataset) -> None:
    """Raise if calibration images are also evaluation images, compared by content.

    Reads only the evaluation images with the file size of a chosen image.

    Raises:
        DataError: At least one image is in both.
    """
    sizes = {entry.size_bytes for entry in manifest.entries}
    candidates = [index for index in range(len(evaluation)) if evaluation.size_bytes(index) in sizes]
    evaluated = {
        digest: evaluation.items[index].name
        for index, digest in zip(candidates, ordered_map(evaluation.digest, candidates), strict=True)
    }
    shared = [
        f"{entry.file} = {evaluated[entry.digest]}" for entry in manifest.entries if entry.digest in evaluated
    ]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(manifest.entries)} calibration images from {manifest.source} are "
            f"evaluation images of {evaluation.name} too: {first_names(shared)}",
            hint="calibrate with images that are not evaluated on: set select.source to the training images",
        )


def locate(manifest: Manifest, dataset: Dataset) -> list[int]:
    """Find the images of a manifest in a data set.

    Returns:
        Positions in the data set, in the manifest's order.

    Raises:
        DataError: An image is missing or its content has changed.
    """
    positions = {item.name: index for index, item in enumerate(dataset.items)}
    missing = [entry.file for entry in manifest.entries if entry.file not in positions]
    if missing:
        raise DataError(
            f"{dataset.name} lacks {len(missing)} image(s) of the manifest: {first_names(missing)}",
            hint=f"restore the images of '{manifest.source}', or choose again",
        )
    indices = [positions[entry.file] for entry in manifest.entries]
    digests = ordered_map(dataset.digest, indices)
    for entry, digest in zip(manifest.entries, digests, strict=True):
        if digest != entry.digest:
            raise DataError(
                f"{printable(entry.file)} in {dataset.name} is not the image that was chosen",
                hint="its content changed; restore the file, or choose again",
            )
    return indices


def write(path: Path, manifest: Manifest) -> None:
    """Write a manifest as JSON."""
    write_json(path, manifest)


def read(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        DataError: The file is absent, damaged, or not a manifest of this schema.
    """
    return read_as(path, Manifest)


def _ordered(dataset: Dataset, seed: int) -> list[int]:
    """Return the positions of all images in order of choice: one of each class in turn."""

    def draw(name: str) -> str:
        return sha256_bytes(f"{seed}/{name}".encode(errors="backslashreplace"))

    by_class: dict[int | None, list[int]] = defaultdict(list)
    for index in sorted(range(len(dataset)), key=lambda index: draw(dataset.items[index].name)):
        by_class[dataset.items[index].label].append(index)
    turns: list[tuple[int, str, int]] = []
    for label, members in by_class.items():
        turns += [(turn, draw(f"{turn}/{label}"), index) for turn, index in enumerate(members)]
    return [index for _, _, index in sorted(turns)]


def _decodable(dataset: Dataset, ordered: Sequence[int], count: int) -> Iterator[int]:
    """Yield the first `count` images that can be decoded."""
    with closing(decode_each(dataset, ordered, lambda *_: True, skip_bad=True)) as decoded:
        yield from islice((index for index, is_decodable in decoded if is_decodable), count)


def _too_few(dataset: Dataset, count: int, usable: int) -> DataError:
    return DataError(
        f"{dataset.name} has {usable} usable images, fewer than the {count} asked for",
        hint=f"set select.images to {usable} or less" if usable else "set select.source to readable images",
    )
