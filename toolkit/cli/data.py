"""`edgeship data`: look at images before hours are spent on them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from toolkit.cli._options import JSON, SizeType
from toolkit.core.tensors import Size


@click.group(epilog="\b\nExample:\n  edgeship data check photos/ --evaluation photos-test/ --size 64")
def command() -> None:
    """Check images for calibration and evaluation."""


@command.command(
    epilog="""\b
Examples:
  edgeship data check cifar10/train --images 300 --evaluation cifar10/test --size 64
  edgeship data check calibration.zip --weights net.safetensors
"""
)
@click.argument("source")
@click.option(
    "--images", type=click.IntRange(min=1), help="Check those that would be chosen.  [default: all]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the choice.")
@click.option("--evaluation", metavar="SOURCE", help="Images that must not be among them.")
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint whose first layer judges them.")
@click.option("--size", type=SizeType(), help="Input in pixels, N or HxW.")
@JSON
def check(
    *,
    source: str,
    images: int | None,
    seed: int,
    evaluation: str | None,
    weights: Path | None,
    size: Size | None,
    as_json: bool,
) -> None:
    """Say what is wrong with the calibration images of SOURCE.

    Found are unreadable, blank, doubled and nearly doubled images, images that are evaluated on too,
    missing and uneven classes, and preprocessing that does not fit the checkpoint. Exit code 1: something
    would spoil the result.
    """
    from calibration import doctor, manifest
    from calibration.datasets import open_dataset
    from toolkit.cli._progress import shown
    from toolkit.core.artifact import plain
    from toolkit.pipeline import network, preprocessing
    from toolkit.pipeline.recipe import PreprocessOptions

    first = network.first_layer(weights) if weights else None
    prepared = preprocessing.resolve(PreprocessOptions(), first.preprocess if first else None, size)
    dataset = open_dataset(source)
    with shown():
        chosen = list(range(len(dataset)))
        if images:
            chosen = manifest.locate(manifest.select(dataset, images, seed, skip_bad=True), dataset)
        found = doctor.examine(
            dataset,
            chosen,
            prepared,
            evaluation=open_dataset(evaluation) if evaluation else None,
            classes=first.classes if first else None,
            stem=first.stem if first else None,
        )
    if as_json:
        click.echo(json.dumps(plain(found), indent=1))
    else:
        for finding in found:
            hint = f"\n{'':<9}hint: {finding.hint}" if finding.hint else ""
            click.echo(f"{finding.severity:<8} {finding.what}{hint}")
        if not found:
            click.echo(f"nothing to complain about in {len(chosen)} images")
    if any(finding.severity == "error" for finding in found):
        raise click.exceptions.Exit(1)
