"""Images with labels from folders, archives and lists, always in the same order."""

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
from edgeship.calibration.sets import Use, are_sets, choose_set, set_of
from edgeship.calibration.text import some
from edgeship.toolkit.core.artifact import canonical_json, sha256_bytes
from edgeship.toolkit.core.errors import DataError, nearest
from edgeship.toolkit.core.quant import IntArray
from edgeship.toolkit.core.text import printable

DIGITS = ("digits", "digits:train", "digits:test")
_TEST_EVERY = 5  # of each digit's images, in order, every fifth is for testing
_WRAPPER = "images"  # a folder around all images, as sets and archives have it


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its name within the source, and its class (None: unknown)."""

    name: str
    label: int | None


@dataclass(frozen=True, slots=True)
class Unused:
    """A file of a source that is none of its images, and why; a hidden folder stands for what it holds."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images of one source, sorted by class and name (a list and an array keep their own order).

    Attributes:
        name: What a report calls it.
        classes: Class names; a label is an index into them. Empty without labels.
        items: The images.
        store: Where their bytes lie.
        unused: What else lies there, and why it is not among them.
        notes: What was decided in opening the source, as sentences.
        unreadable: Name -> error of the images that could not be decoded so far.
    """

    name: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    store: Store
    unused: tuple[Unused, ...] = ()
    notes: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labelled(self) -> bool:
        """Whether every image has a class."""
        return all(item.label is not None for item in self.items)

    @property
    def labels(self) -> IntArray:
        """N labels; -1 is unknown."""
        return np.array([-1 if item.label is None else item.label for item in self.items], np.int64)

    def read(self, index: int) -> bytes:
        """The file of an image.

        Raises:
            DataError: It cannot be read.
        """
        return self.store.read(self.items[index].name)

    def image(self, index: int) -> Image.Image:
        """A decoded image, RGB.

        Raises:
            DataError: The file is corrupt, truncated or no image.
        """
        name = self.items[index].name
        try:
            return images.decode(self.read(index), printable(name))
        except DataError as error:
            self.unreadable[name] = str(error).removeprefix(printable(name)).strip()
            raise

    def digest(self, index: int) -> str:
        """SHA-256 of an image's file."""
        return sha256_bytes(self.read(index))

    def size_bytes(self, index: int) -> int:
        """Length of an image's file, without reading it."""
        return self.store.size_bytes(self.items[index].name)

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Classes without an image, whose index later classes would take if they were left out."""
        used = {item.label for item in self.items}
        return tuple(name for label, name in enumerate(self.classes) if label not in used)

    def without_empty_classes(self) -> Dataset:
        """Leave out the classes without an image; the others move up, unless their names are numbers."""
        if all(name.isdecimal() for name in self.classes):
            return self
        kept = [name for name in self.classes if name not in set(self.empty_classes)]
        return self.reindexed(kept)

    def reindexed(self, names: Sequence[str]) -> Dataset:
        """Give the classes another order: an image's label becomes the index of its class's name.

        Args:
            names: Every class that has images, once; others may be among them.

        Raises:
            DataError: A class with images is not among the names, or is there twice.
        """
        counts = Counter(names)
        used = {item.label for item in self.items} - {None}
        wrong = [name for label, name in enumerate(self.classes) if label in used and counts[name] != 1]
        if wrong or not self.classes:
            raise DataError(
                f"classes of {self.name} are not once among the {len(names)} names: "
                f"{some(wrong) or 'no labels'}",
                hint="give names that are the names of the class folders, or of the labels in the list",
            )
        index = {name: place for place, name in enumerate(names)}
        items = [
            Item(item.name, None if item.label is None else index[self.classes[item.label]])
            for item in self.items
        ]
        return replace(self, classes=tuple(names), items=tuple(items))

    def listing_digest(self) -> str:
        """SHA-256 of names, labels and lengths: the same for equal copies, quick for large sources."""
        rows = [(item.name, item.label, self.size_bytes(i)) for i, item in enumerate(self.items)]
        return sha256_bytes(canonical_json((self.classes, rows)).encode())

    def fingerprint(self) -> str:
        """SHA-256 that changes whenever an image may have changed (checksums, times), without reading it."""
        rows = [(item.name, item.label, self.store.stamp(item.name)) for item in self.items]
        return sha256_bytes(canonical_json((self.classes, rows)).encode())


def open_dataset(source: str | Path, *, labelled: bool = False, use: Use | None = None) -> Dataset:
    """Open images wherever they lie; nothing is decoded or unpacked yet.

    Args:
        source: "digits", "digits:train" or "digits:test" (scikit-learn's, embedded); a folder with one
            folder a class, or with images only (no labels); a .zip or .tar (.gz, .bz2, .xz) of one, or a
            folder inside it ("data.zip/test"); a list (.csv, .tsv, .txt, .lst) of file and label with files
            relative to it; a .npy or .npz of uint8 images. A single wrapping folder (train/, the archive's
            root) is entered. A class folder without images is a class all the same.
        labelled: Whether the images must have labels of at least two classes, as accuracy needs them.
        use: Which set is taken where the source holds several (train, val, test); see `sets.choose_set`.

    Raises:
        DataError: The source is missing, empty, ambiguous or unsafe, or lacks the labels.
    """
    text = str(source)
    if not text:
        raise DataError("no images are given", hint="name a folder, an archive, a .csv or 'digits'")
    if isinstance(source, str) and text.split(":", maxsplit=1)[0] == "digits":
        dataset = _open_digits(text)
    else:
        path, inside = _split(Path(source).expanduser())
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
                hint="give a folder of images, a .zip or .tar of one, a .csv of file,label, "
                "an .npz of images and labels, or 'digits'",
            )
    if labelled:
        _need_labels(dataset)
    return dataset


def _need_labels(dataset: Dataset) -> None:
    if not dataset.labelled:
        raise DataError(
            f"the images of {dataset.name} have no labels",
            hint="put them into one folder a class, or list them in a .csv with file,label",
        )
    if len(set(dataset.labels.tolist())) < 2:
        raise DataError(
            f"{dataset.name} holds images of one class only: "
            f"{printable(dataset.classes[dataset.labels[0]], 100)}",
            hint="accuracy needs at least two classes; give the folder that holds the class folders",
        )


def _split(path: Path) -> tuple[Path, str]:
    """The path that exists, and what follows it inside an archive."""
    try:
        if path.exists():
            return path, ""
        for parent in path.parents:
            if is_archive(parent) and parent.is_file():
                return parent, path.relative_to(parent).as_posix()
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror}", hint="check the path") from error
    near = path.parent
    hint = "check the path"
    if near.is_dir():
        others = [entry.name for entry in near.iterdir() if not entry.name.startswith(".")]
        hint = nearest(path.name, others[:1000]) if others else f"{near} is empty"
    raise DataError(f"no such file or folder: {path}", hint=hint)


def _open_digits(text: str) -> Dataset:
    if text not in DIGITS:
        raise DataError(f"no data named '{text}'", hint=nearest(text, DIGITS))
    store = DigitsStore()
    seen: Counter[int] = Counter()
    items = []
    for name, label in zip((member.name for member in store.members()), store.labels, strict=True):
        seen[label] += 1
        part = "test" if seen[label] % _TEST_EVERY == 0 else "train"
        if text in ("digits", f"digits:{part}"):
            items.append(Item(name, label))
    items.sort(key=lambda item: (item.label, item.name))
    return Dataset(text, tuple(str(digit) for digit in range(10)), tuple(items), store)


def _open_list(path: Path) -> Dataset:
    classes, rows = csv_list.read(path)
    items = tuple(Item(file, label) for file, label in rows)
    return Dataset(path.stem, classes, items, FolderStore(path.parent))


def _open_arrays(path: Path, use: Use | None) -> Dataset:
    found = arrays.open_arrays(path, use)
    names = [member.name for member in found.store.members()]
    values: Sequence[int | None] = [None] * len(names)
    classes: tuple[str, ...] = ()
    if found.labels:
        classes, values = index_labels(found.labels, str(path))
    items = tuple(Item(name, label) for name, label in zip(names, values, strict=True))
    title = f"{path.stem}/{found.part}" if found.part else path.stem
    notes = (f"{path} holds several sets of images: {found.part} is used",) if found.part else ()
    unused = tuple(Unused(key, reason) for key, reason in found.unused)
    return Dataset(title, classes, items, found.store, unused, notes)


def _arrange(path: Path, store: Store, inside: str, use: Use | None) -> Dataset:
    """Find the class folders among the names of a store."""
    prefix = f"{inside}/" if inside else ""
    names, folders, unused = _sorted_members(store, prefix)
    where = f"{path}/{inside}" if inside else str(path)
    if not names:
        others = f"; it holds {some([each.file for each in unused])}" if unused else ""
        raise DataError(
            f"{where} holds no images{others}",
            hint=f"looked for files ending in {', '.join(images.SUFFIXES)}",
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
                break  # images lie right below: a single class
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
        notes.append(f"{where} has class folders without images: {some(sorted(empty - parts))}")
    index = {folder: label for label, folder in enumerate(classes)}
    items = [Item(name, index[_part(name, depth)]) for name in names]
    items.sort(key=lambda item: (classes[item.label or 0], item.name))
    return Dataset(title, classes, tuple(items), store, tuple(unused), tuple(notes))


def _sorted_members(store: Store, prefix: str) -> tuple[list[str], set[str], list[Unused]]:
    """Names of images, of folders (those included that only a file's name speaks of), and what is neither."""
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
    """The sets that are not used, each as one entry, and images in none of them."""
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
    """The folder of a name at a depth; "" where the file itself comes."""
    parts = name.split("/")
    return parts[depth] if depth < len(parts) - 1 else ""
