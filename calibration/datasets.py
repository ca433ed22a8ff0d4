"""Images with labels from folders, archives and lists, always in the same order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from calibration import images, listing
from calibration.stores import DigitsStore, FolderStore, Store, archive_stem, is_archive, open_archive
from toolkit.core.artifact import canonical_json, sha256_bytes
from toolkit.core.errors import DataError, nearest
from toolkit.core.quant import IntArray

DIGITS = ("digits", "digits:train", "digits:test")
_TEST_EVERY = 5  # of each digit's images, in order, every fifth is for testing
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "images"})


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its name within the source, and its class (None: unknown)."""

    name: str
    label: int | None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images of one source, sorted by class and name (a CSV keeps its own order).

    Attributes:
        name: What a report calls it.
        classes: Class names; a label is an index into them. Empty without labels.
        items: The images.
        store: Where their bytes lie.
    """

    name: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    store: Store

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
        return images.decode(self.read(index), self.items[index].name)

    def digest(self, index: int) -> str:
        """SHA-256 of an image's file."""
        return sha256_bytes(self.read(index))

    def size_bytes(self, index: int) -> int:
        """Length of an image's file, without reading it."""
        return self.store.size_bytes(self.items[index].name)

    def listing_digest(self) -> str:
        """SHA-256 of names, labels and lengths: the same for equal copies, quick for large sources."""
        rows = [(item.name, item.label, self.size_bytes(i)) for i, item in enumerate(self.items)]
        return sha256_bytes(canonical_json((self.classes, rows)).encode())

    def fingerprint(self) -> str:
        """SHA-256 that changes whenever an image may have changed (checksums, times), without reading it."""
        rows = [(item.name, item.label, self.store.stamp(item.name)) for item in self.items]
        return sha256_bytes(canonical_json((self.classes, rows)).encode())


def open_dataset(source: str | Path, *, labelled: bool = False) -> Dataset:
    """Open images wherever they lie; nothing is decoded or unpacked yet.

    Args:
        source: "digits", "digits:train" or "digits:test" (scikit-learn's, embedded); a folder with one
            folder a class, or with images only (no labels); a .zip, .tar, .tar.gz or .tgz of one, or a
            folder inside it ("data.zip/test"); a .csv of (file, label) lines with files relative to it.
            A single wrapping folder (train/, the archive's root) is entered.
        labelled: Whether the images must have labels of at least two classes, as accuracy needs them.

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
        if path.is_dir():
            dataset = _arrange(path, FolderStore(path), "")
        elif path.suffix.lower() == ".csv":
            dataset = _open_csv(path)
        elif is_archive(path):
            dataset = _arrange(path, open_archive(path), inside)
        else:
            raise DataError(
                f"{path} is neither a folder, an archive nor a .csv",
                hint="give a folder of images, a .zip or .tar of one, a .csv of file,label, or 'digits'",
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
            f"{dataset.name} holds images of one class only: {dataset.classes[dataset.labels[0]]}",
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
    for name, label in zip(store.names(), store.labels, strict=True):
        seen[label] += 1
        part = "test" if seen[label] % _TEST_EVERY == 0 else "train"
        if text in ("digits", f"digits:{part}"):
            items.append(Item(name, label))
    items.sort(key=lambda item: (item.label, item.name))
    return Dataset(text, tuple(str(digit) for digit in range(10)), tuple(items), store)


def _open_csv(path: Path) -> Dataset:
    classes, rows = listing.read(path)
    items = tuple(Item(file, label) for file, label in rows)
    return Dataset(path.stem, classes, items, FolderStore(path.parent))


def _arrange(path: Path, store: Store, inside: str) -> Dataset:
    """Find the class folders among the names of a store."""
    prefix = f"{inside}/" if inside else ""
    names = sorted(name for name in store.names() if name.startswith(prefix) and _is_image(name))
    where = f"{path}/{inside}" if inside else str(path)
    if not names:
        raise DataError(
            f"{where} holds no images", hint=f"looked for files ending in {', '.join(images.SUFFIXES)}"
        )
    depth = prefix.count("/")
    stem = archive_stem(path.resolve())
    while True:
        folders = {_part(name, depth) for name in names}
        if len(folders) != 1 or "" in folders:
            break
        (folder,) = folders
        deeper = any(_part(name, depth + 1) for name in names)
        if not deeper and folder.lower() not in _SPLITS and folder != stem:
            break  # images lie right below: a single class
        depth += 1
    title = f"{stem}/{inside}" if inside else stem
    if folders == {""}:
        return Dataset(title, (), tuple(Item(name, None) for name in names), store)
    _check_layout(where, names, folders, depth)
    classes = tuple(sorted(folders))
    index = {folder: label for label, folder in enumerate(classes)}
    items = [Item(name, index[_part(name, depth)]) for name in names]
    items.sort(key=lambda item: (classes[item.label or 0], item.name))
    return Dataset(title, classes, tuple(items), store)


def _check_layout(where: str, names: Sequence[str], folders: Iterable[str], depth: int) -> None:
    folders = set(folders)
    if "" in folders:
        loose = next(name for name in names if not _part(name, depth))
        raise DataError(
            f"{where} holds both class folders and loose images ({loose})",
            hint="move the loose images into a class folder, or remove them",
        )
    splits = {folder for folder in folders if folder.lower() in _SPLITS}
    if splits == folders and len(folders) > 1 and any(_part(name, depth + 1) for name in names):
        raise DataError(
            f"{where} holds several sets of images: {', '.join(sorted(splits))}",
            hint=f"give one of them: {where}/{min(splits)}",
        )


def _part(name: str, depth: int) -> str:
    """The folder of a name at a depth; "" where the file itself comes."""
    parts = name.split("/")
    return parts[depth] if depth < len(parts) - 1 else ""


def _is_image(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].lower().endswith(images.SUFFIXES)
