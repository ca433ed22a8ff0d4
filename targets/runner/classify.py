"""Command line of the classifier, on devices and of `edgeship predict`."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import os
import sys
from typing import Any, Callable, Iterable, Iterator

from . import imaging
from .classifier import MOST_BYTES, Classifier
from .failures import Failure

STDIN = "-"


def main(path: str, arguments: list[str] | None = None) -> int:
    """Classify the images that the arguments name with the engine at `path`; return the exit code."""
    parser = argparse.ArgumentParser(description="Classify images; prints the most probable classes.")
    parser.add_argument("images", nargs="+", help="image files, folders, patterns, or - for standard input")
    parser.add_argument("--engine", default=path, help="release, engine folder or engine file")
    parser.add_argument("--top", type=_positive, default=5, help="number of classes for each image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each image")
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: all)")
    chosen = parser.parse_args(arguments)
    try:
        with Classifier(chosen.engine, threads=chosen.threads, monitor="") as classifier:
            failed = classify(classifier, chosen.images, top=chosen.top, as_json=chosen.json)
    except Failure as failure:
        print(f"error: {failure} ({failure.cause})\nhint: {failure.cure}", file=sys.stderr)
        return 1
    return 1 if failed else 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def classify(
    classifier: Classifier, names: Iterable[str], *, top: int, as_json: bool, write: Callable[[str], None] | None = None
) -> int:
    """Classify images and write one line each, or a table of the classes; return the number of failures.

    Args:
        classifier: The engine.
        names: Files, folders (with all images below), patterns, or `-`.
        top: Number of classes.
        as_json: Write {"image", "classes": [{"index", "label", "probability"}]}, or {"image", "error"}.
        write: Receives each line; None: printed, escaped.

    Raises:
        Failure: A name leads to no image.
    """
    failed, write = 0, write or _print
    for name, image in _images(names):
        try:
            classes = classifier(image).top(top)
        except Failure as failure:
            if failure.code == "description-missing":  # of the engine, not of the image
                raise
            failed += 1
            record: dict[str, Any] = {"image": name, "error": str(failure)}
            write(json.dumps(record) if as_json else f"{name}: error: {failure}")
            continue
        if as_json:
            write(json.dumps({"image": name, "classes": [dataclasses.asdict(each) for each in classes]}))
            continue
        width = max(len(each.label) for each in classes)
        write(name)
        for each in classes:
            write(f"  {each.probability:7.2%}  {each.label:<{width}}  {each.index}")
    return failed


def _print(line: str) -> None:
    """Print a line with names of files and classes, of any characters, on a terminal of any encoding."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    encoding = sys.stdout.encoding or "ascii"
    print(shown.encode(encoding, "backslashreplace").decode(encoding))


def _images(names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield name and path, or the content of standard input, of every image."""
    for name in names:
        if name == STDIN:
            yield "standard input", sys.stdin.buffer.read(MOST_BYTES + 1)
            continue
        files = list(_files(name))
        if not files:
            raise Failure("image-missing", f"no image at {name}", "expected an image file, a folder or a pattern",
                          "check the path")  # fmt: skip
        for file in files:
            yield file, file


def _files(name: str) -> Iterator[str]:
    if os.path.isdir(name):
        for folder, folders, files in os.walk(name):
            folders.sort()
            images = (os.path.join(folder, file) for file in sorted(files) if file.lower().endswith(imaging.SUFFIXES))
            yield from filter(os.path.isfile, images)  # reading a pipe would block
    elif os.path.exists(name):
        yield name
    else:
        yield from sorted(glob.glob(name, recursive=True))
