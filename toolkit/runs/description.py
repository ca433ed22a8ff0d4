"""Describe a model for applications: class names and preprocessing, as model.json and labels.txt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.artifact import plain, read_json
from edgeship.toolkit.runs.network import ModelInfo

SCHEMA = 1
DESCRIPTION, LABELS, MONITOR = "model.json", "labels.txt", "monitor.json"


def description(info: ModelInfo, data_classes: Sequence[str] = (), monitor: object = None) -> dict[str, Any]:
    """Return the content of model.json, which `targets.runner.classifier` reads.

    Args:
        info: The network.
        data_classes: Class names of the evaluation images, in the order of the outputs.
        monitor: Reference of the monitor, see `stored_monitor`; None: frames are not watched.
    """
    watched = {"monitor": monitor} if monitor else {}
    return {
        "schema": SCHEMA,
        "task": "classification",
        "name": info.name,
        "labels": class_labels(info.classes, info.class_names, data_classes),
        "preprocess": plain(info.preprocess),
        "preprocess_source": info.preprocess_source,
        **watched,
    }


def stored_monitor(evaluated: Path) -> object:
    """Return the reference of the monitor in the folder of the evaluate stage; None without one."""
    path = evaluated / MONITOR
    return read_json(path) if path.is_file() else None


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
