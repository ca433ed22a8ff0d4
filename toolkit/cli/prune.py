"""`edgeship prune`: a checkpoint and unlabelled images in, smaller networks and their figures out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._options import JSON, PREPROCESS, Resumable, SizeType
from edgeship.toolkit.cli._outputs import refuse_other_network
from edgeship.toolkit.core.tensors import Size

if TYPE_CHECKING:
    from edgeship.toolkit.pipeline.recipe import LoadOptions


@click.command(
    cls=Resumable,
    former={
        "--keep": "--keep-ratio",
        "--macs": "--macs-ratio",
        "--target-latency": "--latency-ratio",
        "--max-drop-pp": "--max-expected-drop-pp",
        "--step": "--channel-multiple",
    },
    epilog="""\b
Examples:
  edgeship prune resnet18.pth photos/ --keep-ratio 0.5 --out small
  edgeship prune resnet18.pth photos/ --latency-ratio 0.6 --target openvino --out fast
  edgeship prune resnet18.pth photos/ --max-expected-drop-pp 1 --no-compare --out safe
  edgeship prune resnet18.pth train.zip --widths 0.9,0.75,0.6,0.5,0.4 --test test.zip --out family
""",
)
@click.argument("weights")
@click.argument("source")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Gets the networks."
)
@click.option(
    "--keep-ratio", type=float, metavar="RATIO", help="Ratio of the channels inside blocks to keep."
)
@click.option("--macs-ratio", type=float, metavar="RATIO", help="Ratio of the multiply-accumulates to keep.")
@click.option("--latency-ratio", type=float, metavar="RATIO", help="Latency, of the dense INT8 network's.")
@click.option("--max-expected-drop-pp", type=float, metavar="POINTS", help="Largest expected drop of top-1.")
@click.option("--widths", metavar="PARTS", help="Several parts to keep: nested networks in one pass.")
@click.option("--model", default="auto", show_default=True, help="Member of the family: resnet18, ...")
@click.option("--size", type=SizeType(), help="Input in pixels, N or HxW.  [default: its own, or 224]")
@click.option("--images", type=int, default=1000, show_default=True, help="How many images of SOURCE.")
@click.option("--test", default="", metavar="SOURCE", help="Labelled images that judge.")
@click.option("--target", default="openvino", show_default=True, help="Where INT8 runs and is timed.")
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads of timed inferences.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Of timed inferences for each.")
@click.option("--method", default="obs", show_default=True, help="obs, activation, batchnorm or magnitude.")
@click.option(
    "--channel-multiple", type=int, default=16, show_default=True, help="Channel counts are multiples of it."
)
@click.option("--scope", default="block", show_default=True, help="block, residual or both.")
@click.option("--drop-blocks", is_flag=True, help="Whole blocks may go.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the choice of images.")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Judge and time in INT8.")
@PREPROCESS
@JSON
def command(
    *,
    weights: str,
    source: str,
    out: Path,
    widths: str | None,
    model: str,
    size: Size | None,
    test: str,
    target: str,
    threads: int,
    seconds: float,
    compare: bool,
    settings: tuple[str, ...],
    as_json: bool,
    **how: float | int | bool | str | None,
) -> None:
    """Prune WEIGHTS, a ResNet's checkpoint, with images of SOURCE; needs no labels and no training.

    Writes model.safetensors, widths.json and plan.json (a folder for each of --widths), which a recipe
    takes as load.weights; and family.json and family.html: accuracy against latency in FP32 and INT8,
    with the dense network as competitor and the knee marked. The same command given again goes on from the
    last block of an interrupted pass, and keeps the widths that were finished.
    """
    from edgeship.toolkit.cli._progress import shown
    from edgeship.toolkit.core.artifact import write_json, write_text
    from edgeship.toolkit.core.errors import RecipeError
    from edgeship.toolkit.pipeline import family, pruning
    from edgeship.toolkit.pipeline.recipe import Recipe

    goals = [name for name in pruning.GOALS if how[name] is not None]
    if len(goals) + (widths is not None) != 1:
        raise RecipeError(
            "give one goal" if not goals and widths is None else "these are two goals",
            hint="one of --keep-ratio, --macs-ratio, --latency-ratio, --max-expected-drop-pp and --widths",
        )
    if weights in ("", "train"):
        raise RecipeError(
            f"WEIGHTS is '{weights}', expected a checkpoint: prune does not train",
            hint=f"edgeship train {source} --model resnet18 --out net, then edgeship prune net {source} ...",
        )
    loads = {"model": weights} if weights.endswith(".onnx") else {"model": model, "weights": weights}
    table: dict[str, Any] = {
        "load": loads,
        "export": {"size": size} if size else {},
        "prune": {name: value for name, value in how.items() if value is not None},
        "select": {"source": source},
        "compile": {"targets": [target]},
        "evaluate": {"source": test},
        "bench": {"threads": threads, "duration_s": seconds, "throughput_s": 0.0},
    }
    recipe = Recipe.build(table, [f"load.preprocess.{text}" for text in settings]).resolved()
    parts = _parts(widths)
    family.check(parts)
    for folder in family.folders(parts, out).values():
        refuse_other_network(folder, last="plan.json", source=weights)
    with shown(), tempfile.TemporaryDirectory() as name:
        dense = Path(name)
        _load(recipe.load, dense)
        pruned = family.prune(recipe, parts, dense, out)
        _warn(pruned)
        if not compare:
            family.done(out)
            click.echo("\n".join(str(each) for each in pruned.values()))
            return
        found = family.compare(recipe, dense, pruned)
    from edgeship.toolkit.report import family as drawn

    write_json(out / "family.json", found)
    write_text(out / "family.html", drawn.page(found))
    family.done(out)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    drawn.terminal(found)
    click.echo(f"\nchart: {out / 'family.html'}")


def _load(options: LoadOptions, dense: Path) -> None:
    from edgeship.toolkit.core.errors import RecipeError
    from edgeship.toolkit.pipeline import load_and_export

    try:
        load_and_export.loader(options)(options, dense, dense)
    except RecipeError as error:  # its hint names the options of a recipe
        raise RecipeError(
            str(error), hint=error.hint.replace("--set load.preprocess.", "--preprocess ")
        ) from error


def _parts(widths: str | None) -> list[float]:
    from edgeship.toolkit.core.errors import RecipeError

    try:
        return [float(part) for part in widths.split(",")] if widths is not None else []
    except ValueError as error:
        raise RecipeError(f"cannot read --widths {widths}", hint="--widths 0.9,0.75,0.6") from error


def _warn(folders: dict[str, Path]) -> None:
    """Tell, once, what pruning found worth a warning."""
    from edgeship.toolkit.core.artifact import read_json

    plans = [read_json(folder / "plan.json") for folder in folders.values()]
    for warning in dict.fromkeys(line for plan in plans for line in plan["warnings"]):
        click.echo(f"note: {warning}", err=True)
