"""`edgeship train`: train a small ResNet from nothing."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._options import Resumable, SizeType
from edgeship.toolkit.cli._outputs import refuse_other_network
from edgeship.toolkit.core.tensors import Size


@click.command(
    cls=Resumable,
    epilog="""\b
Examples:
  edgeship train digits:train --model resnet20 --size 32 --no-flip --out digits20
  edgeship train cifar10/train --model plain_resnet20 --size 32 --epochs 40 --batch 128 --out plain20
""",
)
@click.argument("source")
@click.option("--model", required=True, help="resnet18, resnet20, plain_resnet20, preact_resnet18, ...")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Gets the network."
)
@click.option("--size", type=SizeType(), help="Input in pixels, N or HxW.  [default: 224]")
@click.option("--epochs", type=click.IntRange(min=1), default=12, show_default=True, help="Passes.")
@click.option("--batch", type=click.IntRange(min=2), default=64, show_default=True, help="Images a step.")
@click.option("--learning-rate", type=float, default=0.05, show_default=True, help="Highest rate.")
@click.option("--weight-decay", type=float, default=5e-4, show_default=True, help="Decay of the weights.")
@click.option("--flip/--no-flip", default=True, show_default=True, help="Mirror half of the images.")
@click.option("--crop-px", type=int, default=4, show_default=True, help="Random shift, in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, order, augmentation.")
def command(source: str, model: str, out: Path, size: Size | None, **training: int | float | bool) -> None:
    """Train a network on SOURCE: a folder with one folder a class, an archive of one, a CSV, or digits:train.

    Writes model.safetensors, widths.json, model.json and history.json, which a recipe takes as
    load.weights. An interrupted training goes on when the same command is given again.
    """
    from edgeship.toolkit.cli._progress import shown
    from edgeship.toolkit.core.artifact import read_json
    from edgeship.toolkit.pipeline import family, load_and_export
    from edgeship.toolkit.pipeline.recipe import Recipe

    table = {"model": model, "weights": "train", "train": {"source": source, **training}}
    recipe = Recipe.build({"load": table, "export": {"size": size} if size else {}}).resolved()
    refuse_other_network(out, last="history.json", source=source)
    with shown():
        load_and_export.train(recipe.load, out, out / family.UNFINISHED)
    family.done(out)
    accuracy = read_json(out / "history.json")["accuracy"][-1]
    click.echo(f"{out / 'model.safetensors'}: {100 * accuracy:.1f} % right on its own augmented images")
