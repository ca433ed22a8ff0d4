"""Describe a model for applications: class names and preprocessing, as model.json and labels.txt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.runs.network import ModelInfo

SCHEMA = 1
DESCRIPTION, LABELS = "model.json", "labels.txt"


def description(info: ModelInfo, data_classes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of model.json, which `targets.runner.classifier` reads.

    Args:
        info: The network.
        data_classes: Class names of the evaluation images, in the order of the outputs.
    """
    return {
        "schema": SCHEMA,
        "task": "classification",
        "name": info.name,
        "labels": class_labels(info.classes, info.class_names, data_classes),
        "preprocess": plain(info.preprocess),
        "preprocess_source": info.preprocess_source,
    }


def class_labels(
    classes: int, class_names: Sequence[Sequence[str]] = (), data_classes: Sequence[str] = ()
) -> list[str]:
    """Return one name for each output: from `load.labels`, else of the class folders, else its index."""
    if class_names:
        names = [names[0] for names in class_names]
    elif len(data_classes) == classes:
        names = list(data_classes)
    else:
        names = [str(index) for index in range(classes)]
    return [" ".join(name.split()) or str(index) for index, name in enumerate(names)]


def labels_text(description: Mapping[str, Any]) -> str:
    """Return the content of labels.txt: one class name a line."""
    return "".join(f"{name}\n" for name in description["labels"])
