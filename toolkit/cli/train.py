"""`edgeship train`: train a small ResNet from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.cli._options import STORE, Resumable, data_argument, recipe_options
from edgeship.toolkit.cli._outputs import OutPath, refuse_other_network


@click.command(
    cls=Resumable,
    epilog="""\b
Examples:
  edgeship train digits:train --model resnet20 --size 32 --no-flip --out net
  edgeship train cifar10/train --model plain_resnet20 --size 32 --epochs 40 \\
      --batch 128 --out plain20
""",
)
@data_argument("source", "load.train.source")
@recipe_options("load.train.source", needed=("load.train.source",))
@recipe_options(
    "load.model", needed=("load.model",), text="Name of the network: see `edgeship list models`.  [required]"
)
@click.option("--out", required=True, type=OutPath(file_okay=False), help="Folder to write.")
@recipe_options(
    "export.size",
    "load.train.epochs",
    "load.train.batch",
    "load.train.learning_rate",
    "load.train.weight_decay",
    "load.train.flip",
    "load.train.crop_px",
    "load.train.seed",
)
@STORE
def command(*, options: dict[str, Any], out: Path, store_root: Path | None) -> None:
    """Train a small ResNet from scratch.

    SOURCE is a folder with one subfolder per class, an archive of such a folder, a CSV list, or digits:train.
    Writes model.safetensors, widths.json, model.json and history.json; the folder is usable as load.weights
    of a recipe. Repeating the command after an interruption continues the training; a finished one is cached.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.artifact import read_json, write_bytes
    from edgeship.toolkit.pipeline import Recipe, Store, run

    recipe = Recipe.build({"load": {"weights": "train"}}, options)
    refuse_other_network(out, last="history.json", source=recipe.load.train.source)
    with show_progress() as progress:
        trained = run(recipe, until="load", store=Store(store_root), watch=progress.stage).folder("load")
    for file in trained.iterdir():
        write_bytes(out / file.name, file.read_bytes())
    accuracy = read_json(out / "history.json")["accuracy"][-1]
    click.echo(f"{out / 'model.safetensors'}: training accuracy {100 * accuracy:.1f} % (augmented images)")
