"""`edgeship train`: train a small ResNet from scratch."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._options import STORE, Resumable, SizeType
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
@click.option(
    "--model", required=True, help="Architecture: resnet18, resnet20, plain_resnet20, preact_resnet18, ..."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write."
)
@click.option("--size", type=SizeType(), help="Input size in pixels, N or HxW.  [default: 224]")
@click.option(
    "--epochs", type=click.IntRange(min=1), default=12, show_default=True, help="Passes over SOURCE."
)
@click.option("--batch", type=click.IntRange(min=2), default=64, show_default=True, help="Images per step.")
@click.option("--learning-rate", type=float, default=0.05, show_default=True, help="Peak learning rate.")
@click.option("--weight-decay", type=float, default=5e-4, show_default=True, help="Weight decay.")
@click.option("--flip/--no-flip", default=True, show_default=True, help="Random horizontal flips.")
@click.option("--crop-px", type=int, default=4, show_default=True, help="Random shift of up to N pixels.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of weights, image order and augmentation."
)
@STORE
def command(
    *,
    source: str,
    model: str,
    out: Path,
    size: Size | None,
    store_root: Path | None,
    **training: int | float | bool,
) -> None:
    """Train a small ResNet from scratch.

    SOURCE is a folder with one subfolder per class, an archive of such a folder, a CSV list, or digits:train.
    Writes model.safetensors, widths.json, model.json and history.json; the folder is usable as load.weights
    of a recipe. Repeating the command after an interruption continues the training; a finished one is cached.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.artifact import read_json, write_bytes
    from edgeship.toolkit.pipeline import Recipe, Store, run

    table = {"model": model, "weights": "train", "train": {"source": source, **training}}
    recipe = Recipe.build({"load": table, "export": {"size": size} if size else {}})
    refuse_other_network(out, last="history.json", source=source)
    with show_progress() as progress:
        trained = run(recipe, until="load", store=Store(store_root), watch=progress.stage).folder("load")
    for file in trained.iterdir():
        write_bytes(out / file.name, file.read_bytes())
    accuracy = read_json(out / "history.json")["accuracy"][-1]
    click.echo(f"{out / 'model.safetensors'}: training accuracy {100 * accuracy:.1f} % (augmented images)")
