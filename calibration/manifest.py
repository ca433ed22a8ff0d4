"""Which images calibrate: chosen by seed, balanced by class, recorded with digests, never evaluated on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edgeship.calibration.datasets import Dataset
from edgeship.calibration.loader import decode_each
from edgeship.calibration.text import some
from edgeship.toolkit.core.artifact import plain, read_json, sha256_bytes, write_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.text import printable
from edgeship.toolkit.core.threads import ordered_map

_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One chosen image: its name in the source, SHA-256 and length of its file, its class (None: unknown)."""

    file: str
    digest: str
    label: int | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The images that calibrate.

    Attributes:
        seed: What they were chosen by.
        source: Name of the data set they came from.
        source_digest: SHA-256 of its listing (names, labels, lengths).
        entries: The images, in the order they are used; classes alternate, so that any first part is
            balanced too.
    """

    seed: int
    source: str
    source_digest: str
    entries: tuple[Entry, ...]


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

    Every image has a place in a line that only the seed and its name decide; each class gives the first of
    its line, as many as the others give or all it has. So the choice does not depend on the machine, a larger
    count keeps the smaller one's images, and a new image disturbs at most one other.

    Args:
        dataset: Where to choose.
        count: How many.
        seed: Another seed is another choice.
        exclude: Images for evaluation, which must not be among the chosen, whatever their names.
        skip_bad: Decode every candidate and pass over those that cannot be; otherwise nothing is decoded.
        at_most: Fewer will do, if there are no more.

    Raises:
        DataError: Fewer images than asked, or chosen images are among those for evaluation.
    """
    if count < 1:
        raise DataError(
            f"cannot calibrate with {count} images", hint="set select.images to 1 or more; 300 is usual"
        )
    if count > len(dataset) and not at_most:
        raise _too_few(dataset, count, len(dataset))
    line = _line(dataset, seed)
    chosen = list(_decodable(dataset, line, count) if skip_bad else line[:count])
    if len(chosen) < count and not at_most:
        raise _too_few(dataset, count, len(chosen))
    digests = ordered_map(dataset.digest, chosen)
    entries = tuple(
        Entry(dataset.items[index].name, digest, dataset.items[index].label, dataset.size_bytes(index))
        for index, digest in zip(chosen, digests, strict=True)
    )
    manifest = Manifest(seed, dataset.name, dataset.listing_digest(), entries)
    if exclude is not None:
        check_disjoint(manifest, exclude)
    return manifest


def check_disjoint(manifest: Manifest, evaluation: Dataset) -> None:
    """Refuse calibration images that are also evaluated on; contents count, not names.

    Only evaluation images that are as long as a chosen one are read.

    Raises:
        DataError: There are such images; examples are named.
    """
    sizes = {entry.size_bytes for entry in manifest.entries}
    alike = [index for index in range(len(evaluation)) if evaluation.size_bytes(index) in sizes]
    evaluated = {
        digest: evaluation.items[index].name
        for index, digest in zip(alike, ordered_map(evaluation.digest, alike), strict=True)
    }
    shared = [
        f"{entry.file} = {evaluated[entry.digest]}" for entry in manifest.entries if entry.digest in evaluated
    ]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(manifest.entries)} calibration images from {manifest.source} are "
            f"evaluation images of {evaluation.name} too: {some(shared)}",
            hint="calibrate with images that are not evaluated on, as accuracy would flatter otherwise: "
            "give select.source the training images",
        )


def locate(manifest: Manifest, dataset: Dataset) -> list[int]:
    """Find the images of a manifest in a data set again.

    Returns:
        Positions in the data set, in the manifest's order.

    Raises:
        DataError: An image is missing, or its content changed since it was chosen.
    """
    places = {item.name: index for index, item in enumerate(dataset.items)}
    missing = [entry.file for entry in manifest.entries if entry.file not in places]
    if missing:
        raise DataError(
            f"{dataset.name} lacks {len(missing)} image(s) of the manifest: {some(missing)}",
            hint=f"they were chosen from '{manifest.source}'; bring them back, or choose again",
        )
    found = [places[entry.file] for entry in manifest.entries]
    digests = ordered_map(dataset.digest, found)
    for entry, digest in zip(manifest.entries, digests, strict=True):
        if digest != entry.digest:
            raise DataError(
                f"{printable(entry.file)} in {dataset.name} is not the image that was chosen",
                hint="its content changed; bring the old file back, or choose again",
            )
    return found


def write(path: Path, manifest: Manifest) -> None:
    """Write a manifest as JSON."""
    write_json(path, {"schema": _SCHEMA, **plain(manifest)})


def read(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        DataError: The file is absent, damaged, or no manifest of this schema.
    """
    data = read_json(path)
    try:
        if data["schema"] != _SCHEMA:
            raise ValueError(f"schema {data['schema']}, not {_SCHEMA}")
        entries = tuple(Entry(**entry) for entry in data["entries"])
        return Manifest(data["seed"], data["source"], data["source_digest"], entries)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a manifest of calibration images: {printable(str(error), 200)}",
            hint="choose the images again",
        ) from error


def _line(dataset: Dataset, seed: int) -> list[int]:
    """Positions of all images in the order they are taken: one of each class in turn."""

    def draw(name: str) -> str:
        return sha256_bytes(f"{seed}/{name}".encode(errors="backslashreplace"))

    by_class: dict[int | None, list[int]] = defaultdict(list)
    for index in sorted(range(len(dataset)), key=lambda index: draw(dataset.items[index].name)):
        by_class[dataset.items[index].label].append(index)
    line: list[tuple[int, str, int]] = []
    for label, members in by_class.items():
        line += [(turn, draw(f"{turn}/{label}"), index) for turn, index in enumerate(members)]
    return [index for _, _, index in sorted(line)]


def _decodable(dataset: Dataset, line: Sequence[int], count: int) -> Iterator[int]:
    """The first images of the line that can be decoded."""
    with closing(decode_each(dataset, line, lambda *_: True, skip_bad=True)) as decoded:
        yield from islice((index for index, opened in decoded if opened), count)


def _too_few(dataset: Dataset, count: int, there: int) -> DataError:
    return DataError(
        f"{dataset.name} has {there} usable images, fewer than the {count} asked for",
        hint=f"set select.images to {there} or less, or give more images" if there else "give other images",
    )
