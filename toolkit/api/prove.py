"""Prove that an application feeds an engine the pixels that the report was measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit.api._logging import logged_progress
from edgeship.toolkit.api.classifier import as_toolkit_errors, engine_at
from edgeship.toolkit.core.errors import DataError, RecipeError, ToolkitError
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.prove import answers as reading
from edgeship.toolkit.prove import golden
from edgeship.toolkit.prove.pipeline import Faults, Pipeline, preprocess_of
from edgeship.toolkit.prove.proof import Cost, Proof, cost_of
from edgeship.toolkit.prove.proof import prove as compare

if TYPE_CHECKING:
    from edgeship.calibration.datasets import Dataset
    from edgeship.toolkit.core.quant import IntArray

COST_IMAGES = 1000
Application = str | Path | Callable[[Path], Any]


def prove(
    run: str | Path,
    outputs: Application | None = None,
    *,
    command: str | None = None,
    tensors: str | Path | None = None,
    images: str | Path | None = None,
    variant: str | None = None,
    count: int = golden.COUNT,
    cost_images: int = COST_IMAGES,
    timeout_s: float = reading.TIMEOUT_S,
) -> Proof:
    """Compare the outputs of an application with those of an engine, and name its fault.

    Args:
        run: Folder of a run; or an engine, with `images`.
        outputs: JSON lines of the application; or a function from the path of an image to logits or a class.
        command: In place of `outputs`: its command line with {image} or {folder}.
        tensors: In place of `outputs`: a folder with the input tensor of each image.
        images: Folder of the images that it was shown; None: golden images of the run, see `golden_images`.
        variant: Variant of the run; None: an INT8 engine of this machine.
        count: Number of golden images.
        cost_images: Evaluation images for the cost of a fault; 0: not measured.
        timeout_s: Seconds for one call of `command`.

    Raises:
        ToolkitError: The run, an image or the outputs cannot be used.

    Example:
        >>> proof = edgeship.prove("runs/r18", my_application)  # doctest: +SKIP
        >>> proof.verdict, proof.faults, proof.cost  # doctest: +SKIP
    """
    if (forms := sum(each is not None for each in (outputs, command, tensors))) != 1:
        raise RecipeError(
            f"{forms} of outputs, command and tensors are given, expected 1",
            hint="pass outputs=FUNCTION or FILE",
        )
    path = user_path(run)
    with _opened(path, variant) as classifier:
        labels = classifier.labels
        shown = golden.read(user_path(images)) if images is not None else _golden(path, classifier, count)
        pipeline = Pipeline(classifier, [*shown.values()], [*shown])
        if command is not None:
            given = reading.from_command(command, shown, labels, timeout_s)
        elif tensors is not None:
            given = reading.from_tensors(user_path(tensors), [*shown], pipeline.inputs(()).shape[1:])
        elif callable(outputs):
            given = reading.from_function(outputs, shown, labels)
        else:
            given = reading.from_lines(user_path(str(outputs)), [*shown], labels)

        def cost(faults: Faults, order: IntArray | None) -> tuple[Cost | None, str]:
            if not cost_images:
                return None, "no evaluation images were asked for"
            try:
                dataset, places = _evaluation(path, len(labels), cost_images)
                if not dataset.labelled:
                    return None, f"the images of {dataset.name} have no labels"
                return cost_of(faults, classifier, dataset, places, order), ""
            except ToolkitError as error:  # the fault is found all the same
                return None, str(error)

        return compare(pipeline, given, labels, cost)


def golden_images(
    run: str | Path, folder: str | Path, *, count: int = golden.COUNT, variant: str | None = None
) -> list[Path]:
    """Write golden images of a run, to show to an application, and an example of the lines that it writes.

    Args:
        run: Folder of a run.
        folder: New folder.
        count: Number of images.
        variant: As of `prove`.

    Raises:
        ToolkitError: The evaluation images of the run are gone, or the folder holds other files.
    """
    path = user_path(run)
    with _opened(path, variant) as classifier:
        made = _golden(path, classifier, count)
        golden.write(made, user_path(folder), len(classifier.labels))
    return [Path(folder) / name for name in made]


@contextmanager
def _opened(path: Path, variant: str | None) -> Iterator[Classifier]:
    with (
        logged_progress(),
        as_toolkit_errors(),
        engine_at(path, variant) as engine,
        Classifier(engine, follow=False) as classifier,
    ):
        yield classifier


def _golden(run: Path, classifier: Classifier, count: int) -> dict[str, bytes]:
    dataset, places = _evaluation(run, len(classifier.labels), count)
    return golden.golden([dataset.read(place) for place in places], preprocess_of(classifier))


def _evaluation(run: Path, classes: int, count: int) -> tuple[Dataset, list[int]]:
    """Return the evaluation images of a run, and the positions of a balanced part of them."""
    from edgeship.toolkit.pipeline import datasets
    from edgeship.toolkit.pipeline.model_recipe import recipe_of
    from edgeship.toolkit.runs.index import RunIndex
    from edgeship.toolkit.runs.network import ExportedGraphs

    if not (run / RunIndex.FILE).is_file():
        raise DataError(
            f"{run} is no run: it has no {RunIndex.FILE}", hint="name the folder of a run, or --images"
        )
    options = recipe_of(str(run)).evaluate
    exported = RunIndex.read(run).folders.get("export")
    names: Any = ()
    if exported is not None and (exported / ExportedGraphs.FILE).is_file():
        names = ExportedGraphs.read(exported).class_names
    dataset = datasets.open_evaluation(options.source, classes, names=names)
    most = len(dataset) if options.images == "all" else min(options.images, len(dataset))
    return dataset, datasets.subset(dataset, min(count, most))
