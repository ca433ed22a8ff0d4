"""Classify images in an application, with the library that also runs on devices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeship.targets.runner import classifier as device
from edgeship.targets.runner.failures import Failure
from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.errors import DataError, TargetError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.runs.engines import engine_of


class Classifier(device.Classifier):
    """An engine with its preprocessing and class names.

    Args:
        path: Folder of a run, or an engine folder of it; model.xml of OpenVINO; an ONNX file.
        variant: Variant of a run; None: an INT8 engine of this machine.
        preprocess: Preprocessing of images; None: as stated in model.json or in the ONNX file.
        labels: Class names, with `preprocess`; empty: indices.
        threads: CPU threads; None: all.

    Raises:
        DataError: `preprocess` lacks crop, mean or std, or has another key.
        TargetError: The engine, its runtime or its model.json is missing or damaged.

    Example:
        >>> classifier = edgeship.Classifier("runs/r18")  # doctest: +SKIP
        >>> result = classifier("cat.jpg")  # doctest: +SKIP
        >>> result.label, result.probability, result.top(5)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        variant: str | None = None,
        preprocess: Preprocess | Mapping[str, Any] | None = None,
        labels: Sequence[str] = (),
        threads: int | None = None,
    ) -> None:
        stated = None
        if preprocess is not None:
            values = preprocess if isinstance(preprocess, Preprocess) else _stated(preprocess)
            stated = {"schema": device.SCHEMA, "labels": [*labels], "preprocess": plain(values)}
        with as_toolkit_errors():
            super().__init__(engine_of(Path(path).expanduser(), variant), threads=threads, description=stated)

    def __call__(self, images: Any, *, color: str = "rgb") -> Any:
        """Classify one image or a list of them, see `targets.runner.classifier.Classifier`.

        Raises:
            TargetError: An image cannot be used.
        """
        with as_toolkit_errors():
            return super().__call__(images, color=color)

    def classify_inputs(self, inputs: Any) -> list[device.Result]:
        """Classify network inputs (N, ...) that are preprocessed already.

        Raises:
            TargetError: The engine does not take them.
        """
        with as_toolkit_errors():
            return super().classify_inputs(inputs)

    def reload(self, *, wait: bool = True) -> bool:
        """Load the engine anew if the path leads to another one; return True if there is one.

        Raises:
            TargetError: The new engine cannot be loaded; the old one stays in use.
        """
        with as_toolkit_errors():
            return super().reload(wait=wait)


def _stated(preprocess: Mapping[str, Any]) -> Preprocess:
    """Return a preprocessing that is stated in full: nothing is assumed for an application."""
    try:
        if missing := {"crop", "mean", "std"} - preprocess.keys():
            raise KeyError(*sorted(missing))
        return Preprocess.from_json({"resize": None, **preprocess})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"preprocess is {preprocess!r}: {error}",
            hint="state crop, mean and std, and where they apply resize and interpolation",
        ) from error


@contextmanager
def as_toolkit_errors() -> Iterator[None]:
    """Raise the failures of the device's library as errors of the toolkit."""
    try:
        yield
    except Failure as failure:
        raise TargetError(f"{failure} ({failure.cause})", hint=failure.cure) from failure
