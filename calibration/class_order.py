"""Map labels to the outputs of a network by class name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from edgeship.calibration.datasets import Dataset
from edgeship.calibration.text import first_names
from edgeship.toolkit.core.errors import DataError

Aliases: TypeAlias = Sequence[Sequence[str]]  # all names of each output, the readable one last


def match_classes(dataset: Dataset, names: Aliases) -> Dataset:
    """Return the data set with labels and classes in the order of the network's outputs.

    Names are compared exactly, then without regard to case, spaces, "_" and "-". Numeric labels (a list of
    file,index) stay.

    Args:
        dataset: Labelled images.
        names: All names of each output.

    Raises:
        DataError: A class of the data set is not among the names, or two classes have the same name.
    """
    readable = tuple(aliases[-1] for aliases in names)
    exact = _outputs(names, str)
    numbers = tuple(str(index) for index in range(len(dataset.classes)))
    if dataset.classes == numbers and len(numbers) <= len(names) and not exact.keys() & set(numbers):
        return replace(dataset, classes=readable)
    loose = _outputs(names, _plain)
    empty = dataset.empty_classes
    outputs = {
        name: exact.get(name, loose.get(_plain(name))) for name in dataset.classes if name not in empty
    }
    unmatched = [name for name, output in outputs.items() if output is None]
    if unmatched:
        unused = [name for index, name in enumerate(readable) if index not in outputs.values()]
        raise DataError(
            f"{len(unmatched)} of {len(outputs)} classes of {dataset.name} are not in load.labels: "
            f"{first_names(unmatched)}; names without images: {first_names(unused) or 'none'}",
            hint="use the names of the class folders in load.labels",
        )
    times = Counter(outputs.values())
    repeated = [name for name, output in outputs.items() if times[output] > 1]
    if repeated:
        raise DataError(
            f"classes of {dataset.name} have the same name in load.labels: {first_names(repeated)}",
            hint="use a unique name for every class in load.labels",
        )
    items = tuple(
        item if item.label is None else replace(item, label=outputs[dataset.classes[item.label]])
        for item in dataset.items
    )
    return replace(dataset, classes=readable, items=items)


def _outputs(names: Aliases, key: Callable[[str], str]) -> dict[str, int]:
    """Return name -> output for the names that belong to one output only."""
    rows = [
        (name, output) for output, aliases in enumerate(names) for name in {key(each) for each in aliases}
    ]
    times = Counter(name for name, _ in rows)
    return {name: output for name, output in rows if times[name] == 1}


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character not in " _-")
