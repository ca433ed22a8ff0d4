"""Classify images in an application, with the library that also runs on devices."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeship import targets
from edgeship.targets.runner import classifier as device
from edgeship.targets.runner.description import SCHEMA
from edgeship.targets.runner.failures import Failure
from edgeship.targets.runner.guard_record import FILE as GUARD
from edgeship.targets.runner.guard_record import REFERENCE
from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.errors import DataError, TargetError
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy import layout
from edgeship.toolkit.runs.description import DESCRIPTION
from edgeship.toolkit.runs.engines import choose, engine_of

BUNDLE_SUFFIX = ".tar"


class Classifier(device.Classifier):
    """An engine with its preprocessing and class names.

    Args:
        path: Folder of a run, or an engine folder of it; a bundle; model.xml of OpenVINO; an ONNX file.
        variant: Variant of a run or a bundle; None: an INT8 engine of this machine.
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
            stated = {"schema": SCHEMA, "labels": [*labels], "preprocess": plain(values)}
        with as_toolkit_errors(), engine_at(user_path(path), variant) as engine:
            super().__init__(engine, threads=threads, description=stated)

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


@contextmanager
def engine_at(path: Path, variant: str | None = None) -> Iterator[Path]:
    """Yield the engine at a path for `targets.runner.classifier`, inside the block.

    Args:
        path: Folder of a run, an engine, or a bundle, whose graph is compiled as on a device.
        variant: Variant of the run or the bundle; None: an INT8 engine of this machine.

    Raises:
        DataError: The bundle is damaged, or there is no such variant.
        TargetError: The runtime of the graph is missing or refuses it.
    """
    if path.suffix != BUNDLE_SUFFIX or not path.is_file():
        yield engine_of(path, variant)
        return
    bundle = bundles.load(path)
    graphs = {about["variant"]: target for target, about in bundle.manifest["targets"].items()}
    usable = [name for name, target in graphs.items() if targets.get(target).opens_graphs]
    target = graphs[choose(path, tuple(graphs), usable, variant)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in (layout.graph_path(target), DESCRIPTION):
            if file in bundle.files:
                (folder / Path(file).name).write_bytes(bundle.read(file))
        about = bundle.manifest["targets"][target]
        engine = folder / target / next(name for name, each in graphs.items() if each == target)
        targets.get(target).compile(folder / f"{target}.onnx", engine, about["precision"])
        if guard := about.get("guard"):
            second = folder / "reference.onnx"
            second.write_bytes(bundle.read(layout.second_path(target)))
            targets.get(target).compile(second, engine / REFERENCE, guard["reference"])
            (engine / GUARD).write_bytes(bundle.read(layout.guard_path(target)))
        yield engine


def is_simulated(engine: Path) -> bool:
    """Return True for the folder <target>/<variant> of a target that does not run here: its graph does."""
    known = engine.parent.name in targets.names()
    return known and any(engine.glob("*.onnx")) and not targets.get(engine.parent.name).opens_graphs


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
