"""`edgeship data`: check data sets before a run."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._options import JSON, Command, data_argument, recipe_options

if TYPE_CHECKING:
    from edgeship.calibration.datasets import Dataset


@click.group(epilog="\b\nExample:\n  edgeship data check photos/ --eval-data photos-test/ --size 64")
def command() -> None:
    """Check images for calibration and evaluation."""


@command.command(
    cls=Command,
    former={"--images": "--calibration-images"},
    epilog="""\b
Examples:
  edgeship data check cifar10/train --eval-data cifar10/test --size 32
  edgeship data check calibration.zip --weights net.safetensors
  edgeship data check dataset/ --eval-data dataset/ -v

Of a folder with train, val and test, SOURCE is train and --eval-data test or val.
""",
)
@data_argument("source")
@recipe_options("select.source", "evaluate.source", needed=("select.source",))
@click.option(
    "--calibration-images",
    type=click.IntRange(1, 10**9),
    metavar="N",
    help="Check only the calibration images that a run would select.  [default: all]",
)
@recipe_options("select.seed", "export.size")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Checkpoint: check that the preprocessing fits its first layer.",
)
@click.option("-v", "--verbose", is_flag=True, help="List every unused file, with its full reason.")
@JSON
def check(
    *,
    calibration_images: int | None,
    weights: Path | None,
    options: dict[str, Any],
    verbose: bool,
    as_json: bool,
) -> None:
    """Check calibration images.

    Reports unreadable, blank, duplicate and near-duplicate images, images that are in the evaluation set too,
    missing and imbalanced classes, preprocessing that does not fit the checkpoint, and the files that are not
    used. SOURCE is a folder, an archive, a CSV list, an .npy or .npz file of images, or digits:train.

    Exit code 1: a finding of severity "error", which would make the results of a run invalid.
    """
    from edgeship.calibration import doctor, manifest
    from edgeship.calibration.datasets import open_dataset
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.artifact import plain
    from edgeship.toolkit.pipeline import load_and_export, preprocessing
    from edgeship.toolkit.pipeline.recipe import Recipe

    recipe = Recipe.build({}, options)
    evaluation = recipe.evaluate.source
    first = load_and_export.first_layer(weights) if weights else None
    prepared = preprocessing.resolve(
        recipe.load.preprocess, first.preprocess if first else None, recipe.export.size
    )
    dataset = open_dataset(recipe.select.source, use="train")
    evaluated = open_dataset(evaluation, use="evaluate") if evaluation else None
    with show_progress():
        chosen = list(range(len(dataset)))
        if calibration_images:
            seed = recipe.select.seed
            selected = manifest.select(dataset, calibration_images, seed, skip_bad=True)
            chosen = manifest.locate(selected, dataset)
        findings = doctor.examine(
            dataset,
            chosen,
            prepared,
            evaluation=evaluated,
            classes=first.classes if first else None,
            stem=first.stem if first else None,
        )
    sources = [_described(each) for each in (dataset, evaluated) if each]
    if as_json:
        click.echo(json.dumps({"sources": sources, "findings": plain(findings)}, indent=1))
    else:
        for described in sources:
            _show(described, None if verbose else _SHOWN)
        for finding in findings:
            hint = f"\n{'':<9}hint: {finding.hint}" if finding.hint else ""
            click.echo(f"{finding.severity:<8} {finding.what}{hint}")
        if not findings:
            click.echo(f"no findings in {len(chosen)} images")
    if any(finding.severity == "error" for finding in findings):
        raise click.exceptions.Exit(1)


_SHOWN = 3  # file names per reason


def _described(dataset: Dataset) -> dict[str, Any]:
    """Return counts, classes and unused files of a data set as JSON."""
    unused = [{"file": each.file, "reason": each.reason} for each in dataset.unused]
    unused += [{"file": name, "reason": reason} for name, reason in sorted(dataset.unreadable.items())]
    return {
        "name": dataset.name,
        "images": len(dataset),
        "unreadable": len(dataset.unreadable),
        "classes": list(dataset.classes),
        "empty_classes": list(dataset.empty_classes),
        "notes": list(dataset.notes),
        "unused": unused,
    }


def _show(described: dict[str, Any], most: int | None) -> None:
    """Print the summary of a data set.

    Args:
        described: Result of `_described`.
        most: File names shown per reason; None shows all, with the full reason.
    """
    from edgeship.toolkit.core.text import printable

    count = len(described["classes"])
    labels = f"{count} class{'es' * (count != 1)}" if count else "no labels"
    click.echo(f"{printable(described['name'])}: {described['images']} images, {labels}")
    for note in described["notes"]:
        click.echo(f"  {printable(note)}")
    reasons: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for each in described["unused"]:
        kind, _, detail = each["reason"].partition(": ")
        reasons[kind].append((each["file"], detail))
    for reason, files in sorted(reasons.items(), key=lambda item: -len(item[1])):
        shown = [printable(name) for name, _ in files[:most]]
        if most is None:
            click.echo(f"  not used, {reason}: {len(files)}")
            for name, (_, detail) in zip(shown, files, strict=True):
                click.echo(f"    {name}" + (f": {printable(detail)}" if detail else ""))
        else:
            more = f" and {len(files) - most} more" if len(files) > most else ""
            click.echo(f"  not used, {reason}: {len(files)} ({', '.join(shown)}{more})")
