"""Class names and preprocessing of a model: model.json, or the metadata of an engine file."""

from __future__ import annotations

import json
import os
from typing import Any

from . import imaging
from .failures import Failure

DESCRIPTION = "model.json"  # class names and preprocessing, in the folder of the engine or above it
SCHEMA = 1
_LEVELS_UP = 3  # engines/<target>/<variant>/ of a run


class Description:
    """Class names and preprocessing of a model.

    Args:
        record: Content of model.json.
        where: Its path, for messages.

    Raises:
        Failure: A field is absent or has another form.
    """

    def __init__(self, record: Any, where: str) -> None:
        try:
            values = record["preprocess"]
            self.schema = record["schema"]
            self.labels = [str(name) for name in record["labels"]]
            self.resize = imaging.read_resize(values["resize"])
            self.crop = imaging.read_sides(values["crop"])
            self.mean, self.std = ([float(each) for each in values[key]] for key in ("mean", "std"))
            self.interpolation = str(values["interpolation"])
            self.source = str(record.get("preprocess_source", "unknown"))
            self.monitor = record.get("monitor")
        except (KeyError, TypeError, ValueError) as error:
            raise bad_description(where, f"field {error}") from error
        if self.schema != SCHEMA:
            raise bad_description(where, f"schema {self.schema}, expected {SCHEMA}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or not min(self.std) > 0:
            raise bad_description(where, f"mean {self.mean} and std {self.std}: 1 or 3 channels, std above 0")
        if self.interpolation not in imaging.FILTERS:
            raise bad_description(where, f"interpolation {self.interpolation}: {', '.join(imaging.FILTERS)}")


def describe(file: str, session: Any) -> Description | None:
    """Return the description of an engine: model.json of its folder or above, else metadata of the file."""
    folder = os.path.dirname(os.path.abspath(file))
    for _ in range(_LEVELS_UP):
        path = os.path.join(folder, DESCRIPTION)
        if os.path.isfile(path) and os.path.abspath(file) + ".json" != path:
            try:
                with open(path, encoding="utf-8") as stream:
                    return Description(json.load(stream), path)
            except (OSError, ValueError, RecursionError) as error:
                raise bad_description(path, str(error)) from error
        folder = os.path.dirname(folder)
    stored = session.metadata() if hasattr(session, "metadata") else {}
    if "preprocess" not in stored:
        return None
    try:
        values = {key: json.loads(stored[key]) for key in ("preprocess", "labels") if key in stored}
    except (ValueError, RecursionError) as error:
        raise bad_description(file, str(error)) from error
    return Description({"schema": SCHEMA, "labels": [], **values}, file)


def bad_description(where: str, problem: str) -> Failure:
    """Return the failure of a damaged description."""
    return Failure("description-damaged", f"{where}: {problem}", "it is damaged or from another version",
                   "copy it again from the run or the release")  # fmt: skip
