"""Record of a guard, guard.json, in the folder of its engine; without NumPy, which a device may lack."""

from __future__ import annotations

import json
import math
import os
from typing import Any, Sequence

from .failures import Failure

FILE = "guard.json"  # in the folder of an engine with a guard
REFERENCE = "reference"  # folder of the engine of the second run, in the same folder
SCHEMA = 1
_NUMBERS = ("threshold", "max_flips", "bound", "bound95", "images", "rerun_share")


def margin(row: Sequence[float]) -> float:
    """Return the margin of the logits of an image: the largest minus the second, infinite with one class."""
    if len(row) < 2:  # noqa: PLR2004
        return math.inf
    second, first = sorted(row)[-2:]
    return first - second


def read(folder: str) -> dict[str, Any] | None:
    """Return the guard.json of an engine's folder; None without one.

    Raises:
        Failure: The file is damaged, or of another version.
    """
    path = os.path.join(folder, FILE)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as stream:
            record = json.load(stream)
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}, expected {SCHEMA}")
        for name in _NUMBERS:
            if isinstance(record[name], bool) or not math.isfinite(record[name]):
                raise ValueError(f"{name} is {record[name]!r}, expected a number")
        if record["images"] < 1 or not 0 <= record["rerun_share"] <= 1:
            raise ValueError(f"images {record['images']}, rerun_share {record['rerun_share']}")
        record["reference"] = str(record["reference"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise Failure(
            "guard-damaged", f"cannot use {path}: {type(error).__name__} {error}",
            "it is damaged or from another version", "copy the engine's folder again from the run or the release",
        ) from error  # fmt: skip
    return dict(record)


def reference_missing(folder: str, problem: str) -> Failure:
    """Return the failure of a guard without its second engine."""
    return Failure(
        "reference-missing", f"the guard in {folder} has no usable reference: {problem}",
        f"an engine with {FILE} runs close images again in the engine of its folder {REFERENCE}",
        "copy the whole folder of the engine from the run, or deploy the release again",
    )  # fmt: skip
