"""Open labelled images from folders, archives, lists and arrays, in a reproducible order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from edgeship.calibration import arrays, csv_list, images
from edgeship.calibration.class_names import index_labels
from edgeship.calibration.file_sources import (
    HIDDEN,
    DigitsStore,
    FolderStore,
    Store,
    archive_stem,
    is_archive,
    open_archive,
)
from edgeship.calibration.sets import SPLITS, Use, are_sets, choose_set, set_of, split_part
from edgeship.calibration.text import first_names
from edgeship.toolkit.core.artifact import canonical_json, sha256_bytes
from edgeship.toolkit.core.errors import DataError, missing, nearest
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.core.quant import IntArray
from edgeship.toolkit.core.text import printable

DIGITS = ("digits", "digits:train", "digits:test")
_TEST_EVERY = 5  # every fifth image of a digit belongs to the test set
_WRAPPER = "images"  # name of a single folder around all images


@dataclass(frozen=True, slots=True)
class Item:
    """One image: name within the source, and class index (None: unknown)."""

    name: str
    label: int | None


@dataclass(frozen=True, slots=True)
class Unused:
    """A file of a source that is not used as an image, and the reason; a hidden folder is one entry."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images of one source, sorted by class and name (lists and arrays keep their own order).

    Attributes:
        name: Name in reports.
        classes: Class names; a label is an index into them. Empty without labels.
        items: Images.
        store: Source of the image files.
        unused: Files of the source that are not used, with reasons.
        notes: Decisions made when the source was opened, as sentences.
        unreadable: Name -> error of the images that could not be decoded so far.
    """

    name: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    store: Store
    unused: tuple[Unused, ...] = ()
    notes: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Escape control characters in the names of classes, which reach terminals, reports and metadata."""
        object.__setattr__(self, "classes", tuple(map(printable, self.classes)))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labelled(self) -> bool:
        """Return True if every image has a class."""
        return all(item.label is not None for item in self.items)

    @property
    def labels(self) -> IntArray:
        """Return (N,) labels; -1 is unknown."""
        return np.array([-1 if item.label is None else item.label for item in self.items], np.int64)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            DataError: The file cannot be read.
        """
        return self.store.read(self.items[index].name)

    def image(self, index: int) -> Image.Image:
        """Decode an image to RGB.

        Raises:
            DataError: The file is corrupt, truncated or not an image.
        """
        name = self.items[index].name
        try:
            return images.decode(self.read(index), printable(name))
        except DataError as error:
            self.unreadable[name] = str(error).removeprefix(printable(name)).strip()
            raise

    def digest(self, index: int) -> str:
        """Return the SHA-256 of an image file."""
        return sha256_bytes(self.read(index))

    def size_bytes(self, index: int) -> int:
        """Return the size of an image file without reading it."""
        return self.store.size_bytes(self.items[index].name)

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Return the classes without an image; leaving them out would shift the later indices."""
        used = {item.label for item in self.items}
        return tuple(name for label, name in enumerate(self.classes) if label not in used)

    def without_empty_classes(self) -> Dataset:
        """Remove the classes without an image and renumber, unless all class names are numbers."""
        if all(name.isdecimal() for name in self.classes):
            return self
        return self.reindexed([name for name in self.classes if name not in set(self.empty_classes)])

    def reindexed(self, names: Sequence[str]) -> Dataset:
        """Return the data set with labels that index `names`.

        Args:
            names: Class names in the new order; each class with images occurs once.

        Raises:
            DataError: A class with images is not among the names, or occurs twice.
        """
        counts = Counter(names)
        used = {item.label for item in self.items} - {None}
        wrong = [name for label, name in enumerate(self.classes) if label in used and counts[name] != 1]
        if wrong or not self.classes:
            raise DataError(
                f"classes of {self.name} are not once among the {len(names)} names: "
                f"{first_names(wrong) or 'no labels'}",
                hint="use the names of the class folders, or of the labels in the list",
            )
        index = {name: place for place, name in enumerate(names)}
        items = [
            Item(item.name, None if item.label is None else index[self.classes[item.label]])
            for item in self.items
        ]
        return replace(self, classes=tuple(names), items=tuple(items))

    def listing_digest(self) -> str:
        """Return the SHA-256 of names, labels and sizes: equal for equal copies, fast for large sources."""
        rows = [(item.name, item.label, self.size_bytes(i)) for i, item in enumerate(self.items)]
        return sha256_bytes(canonical_json((self.classes, rows)).encode())

    def fingerprint(self) -> str:
        """Return a SHA-256 of names, labels, checksums and times, without reading image files."""
        rows = [(item.name, item.label, self.store.stamp(item.name)) for item in self.items]
        return sha256_bytes(canonical_json((self.classes, rows)).encode())


def open_dataset(source: str | Path, *, labelled: bool = False, use: Use | None = None) -> Dataset:
    """Open an image source; nothing is decoded yet.

    Args:
        source: "digits", "digits:train" or "digits:test" (scikit-learn's, embedded); a folder with one
            folder a class, or with images only (no labels); a .zip or .tar (.gz, .bz2, .xz) of one, or a
            folder inside it ("data.zip/test"); a list (.csv, .tsv, .txt, .lst) of file and label with files
            relative to it; a .npy or .npz of uint8 images. A single wrapping folder (train/, the archive's
            root) is entered. A class folder without images counts as a class. With an ending the
            source is split by class and a hash of the names: ":train" and ":test" (a fifth), or
            ":calibration" and ":evaluation" (half).
        labelled: Require labels of at least two classes, as accuracy needs.
        use: Use of the images, for sources with train, val and test; see `sets.choose_set`.

    Raises:
        DataError: The source is missing, empty, ambiguous or unsafe, or has no labels.
    """
    text = str(source)
    if not text:
        raise DataError("no images are given", hint="name a folder, an archive, a .csv or 'digits'")
    if part := split_part(text):
        dataset = _split(open_dataset(text.removesuffix(f":{part}"), use="train"), part)
    elif isinstance(source, str) and text.split(":", maxsplit=1)[0] == "digits":
        dataset = _open_digits(text)
    else:
        path, inside = _split_path(user_path(source))
        suffix = path.suffix.lower()
        if path.is_dir():
            dataset = _arrange(path, FolderStore(path), "", use)
        elif suffix in csv_list.SUFFIXES:
            dataset = _open_list(path)
        elif suffix in arrays.SUFFIXES:
            dataset = _open_arrays(path, use)
        elif is_archive(path):
            dataset = _arrange(path, open_archive(path), inside, use)
        else:
            raise DataError(
                f"{path} is neither a folder, an archive, a list nor an array",
                hint="name a folder of images, a .zip or .tar of one, a .csv of file,label, "
                "an .npz of images and labels, or 'digits'",
            )
    if labelled:
        _need_labels(dataset)
    return dataset


def _split(dataset: Dataset, part: str) -> Dataset:
    """Return one part of a data set: every n-th image of each class, in the order of a hash, or the others.

    Images of equal content are in the same part.
    """
    period = SPLITS[part]
    turns: Counter[int | None] = Counter()
    parts: dict[str, bool] = {}  # content -> in the part to measure on
    contents = _contents(dataset)
    order = [sha256_bytes(item.name.encode(errors="replace")) for item in dataset.items]
    for index in sorted(range(len(dataset)), key=order.__getitem__):
        if contents[index] not in parts:
            label = dataset.items[index].label
            parts[contents[index]] = turns[label] % period == 1
            turns[label] += 1
    measured = part in ("test", "evaluation")
    items = tuple(item for item, each in zip(dataset.items, contents, strict=True) if parts[each] == measured)
    note = f"{dataset.name} is split by names: {len(items)} of {len(dataset)} images are for {part}"
    return replace(dataset, name=f"{dataset.name}:{part}", items=items, notes=(*dataset.notes, note))


def _contents(dataset: Dataset) -> list[str]:
    """Return an identifier of each image's content; only images of equal size are read."""
    sizes = [dataset.size_bytes(index) for index in range(len(dataset))]
    counts = Counter(sizes)
    return [
        dataset.digest(index) if counts[size] > 1 else dataset.items[index].name
        for index, size in enumerate(sizes)
    ]


def _need_labels(dataset: Dataset) -> None:
    if not dataset.labelled:
        raise DataError(
            f"the images of {dataset.name} have no labels",
            hint="sort them into one folder per class, or list them in a .csv with file,label",
        )
    if len(set(dataset.labels.tolist())) < 2:
        raise DataError(
            f"{dataset.name} holds images of one class only: "
            f"{printable(dataset.classes[dataset.labels[0]], 100)}",
            hint="accuracy needs at least two classes; name the folder that contains the class folders",
        )


def _split_path(path: Path) -> tuple[Path, str]:
    """Split a path into the existing part and the rest inside an archive."""
    try:
        if path.exists():
            return path, ""
        for parent in path.parents:
            if is_archive(parent) and parent.is_file():
                return parent, path.relative_to(parent).as_posix()
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror}", hint="check the path") from error
    folder = path.parent
    hint = "check the path"
    if folder.is_dir():
        others = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
        hint = nearest(path.name, others[:1000]) if others else f"{folder} is empty"
    raise missing(DataError(f"no such file or folder: {path}", hint=hint))


def _open_digits(text: str) -> Dataset:
    if text not in DIGITS:
        raise DataError(f"no data named '{text}'", hint=nearest(text, DIGITS))
    store = DigitsStore()
    counts: Counter[int] = Counter()
    items = []
    for name, label in zip((member.name for member in store.members()), store.labels, strict=True):
        counts[label] += 1
        part = "test" if counts[label] % _TEST_EVERY == 0 else "train"
        if text in ("digits", f"digits:{part}"):
            items.append(Item(name, label))
    items.sort(key=lambda item: (item.label, item.name))
    return Dataset(text, tuple(str(digit) for digit in range(10)), tuple(items), store)


def _open_list(path: Path) -> Dataset:
    classes, rows = csv_list.read(path)
    items = tuple(Item(file, label) for file, label in rows)
    return Dataset(path.stem, classes, items, FolderStore(path.parent))


def _open_arrays(path: Path, use: Use | None) -> Dataset:
    opened = arrays.open_arrays(path, use)
    names = [member.name for member in opened.store.members()]
    values: Sequence[int | None] = [None] * len(names)
    classes: tuple[str, ...] = ()
    if opened.labels:
        classes, values = index_labels(opened.labels, str(path))
    items = tuple(Item(name, label) for name, label in zip(names, values, strict=True))
    title = f"{path.stem}/{opened.part}" if opened.part else path.stem
    notes = (f"{path} holds several sets of images: {opened.part} is used",) if opened.part else ()
    unused = tuple(Unused(key, reason) for key, reason in opened.unused)
    return Dataset(title, classes, items, opened.store, unused, notes)


def _arrange(path: Path, store: Store, inside: str, use: Use | None) -> Dataset:
    """Build a data set from the class folders in a store."""
    prefix = f"{inside}/" if inside else ""
    names, folders, unused = _sorted_members(store, prefix)
    where = f"{path}/{inside}" if inside else str(path)
    if not names:
        others = f"; it contains {first_names([each.file for each in unused])}" if unused else ""
        raise DataError(
            f"{where} holds no images{others}",
            hint=f"expected files ending in {', '.join(images.SUFFIXES)}",
        )
    stem = archive_stem(path.resolve())
    title = f"{stem}/{inside}" if inside else stem
    depth, notes = prefix.count("/"), list[str]()
    while True:
        parts = {_part(name, depth) for name in names}
        if are_sets(parts):
            part = _choose_set(where, names, depth, use)
            notes.append(f"{where} holds several sets of images: {part} is used")
            outside = _outside(names, depth, part)
            other_sets = tuple(each.file for each in outside if each.file.endswith("/"))
            unused = [each for each in unused if not each.file.startswith(other_sets)] + outside
            names = [name for name in names if _part(name, depth) == part]
            where, title = f"{where}/{part}", f"{title}/{part}"
        elif len(parts) != 1 or "" in parts:
            break
        else:
            (part,) = parts
            deeper = any(_part(name, depth + 1) for name in names)
            if not deeper and not set_of(part) and part.lower() != _WRAPPER and part != stem:
                break  # a folder with images only is a single class
        depth += 1
    unused.sort(key=lambda each: (each.reason, each.file))
    if parts == {""}:
        items = [Item(name, None) for name in names]
        return Dataset(title, (), tuple(items), store, tuple(unused), tuple(notes))
    if "" in parts:
        loose = next(name for name in names if not _part(name, depth))
        raise DataError(
            f"{where} holds both class folders and loose images ({printable(loose)})",
            hint="move the loose images into a class folder, or remove them",
        )
    around = names[0].split("/")[:depth]
    empty = {folder.split("/")[depth] for folder in folders if _is_within(folder, around)}
    classes = tuple(sorted(parts | empty))
    if empty - parts:
        notes.append(f"{where} has class folders without images: {first_names(sorted(empty - parts))}")
    index = {folder: label for label, folder in enumerate(classes)}
    items = [Item(name, index[_part(name, depth)]) for name in names]
    items.sort(key=lambda item: (classes[item.label or 0], item.name))
    return Dataset(title, classes, tuple(items), store, tuple(unused), tuple(notes))


def _sorted_members(store: Store, prefix: str) -> tuple[list[str], set[str], list[Unused]]:
    """Return names of images, of folders (including implicit ones), and the unused files."""
    names, folders, unused = list[str](), set[str](), list[Unused]()
    for member in store.members():
        if not member.name.startswith(prefix):
            continue
        if member.kind == "folder":
            folders.add(member.name)
        elif member.kind == "skipped":
            unused.append(Unused(member.name, member.reason))
        elif member.name.lower().endswith(images.SUFFIXES):
            names.append(member.name)
        else:
            suffix = Path(member.name).suffix.lower()
            unused.append(Unused(member.name, f"no image's suffix: {suffix or 'none'}"))
    plain = (each.file for each in unused if each.reason != HIDDEN)
    folders.update(folder for file in plain if (folder := file.rpartition("/")[0]))
    return sorted(names), folders, unused


def _choose_set(where: str, names: Iterable[str], depth: int, use: Use | None) -> str:
    parts, labelled = set[str](), set[str]()
    for name in names:
        part = _part(name, depth)
        parts.add(part)
        if _part(name, depth + 1) not in ("", _WRAPPER):
            labelled.add(part)
    return choose_set(where, parts, use, unlabelled=parts - labelled)


def _outside(names: Sequence[str], depth: int, chosen: str) -> list[Unused]:
    """Return the sets that are not used, each as one entry, and the images outside all sets."""
    prefix = "".join(f"{part}/" for part in names[0].split("/")[:depth])
    counts = Counter(_part(name, depth) for name in names)
    loose = [Unused(name, f"not in {chosen}") for name in names if not _part(name, depth)]
    others = sorted(part for part in counts if part not in ("", chosen))
    return loose + [
        Unused(f"{prefix}{part}/", f"not in {chosen}: {counts[part]:,} images") for part in others
    ]


def _is_within(folder: str, around: Sequence[str]) -> bool:
    parts = folder.split("/")
    return len(parts) > len(around) and parts[: len(around)] == list(around)


def _part(name: str, depth: int) -> str:
    """Return the folder at a depth of a name; empty at the depth of the file."""
    parts = name.split("/")
    return parts[depth] if depth < len(parts) - 1 else ""
