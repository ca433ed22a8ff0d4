"""`edgeship prune`: prune a checkpoint with unlabelled images and compare the pruned networks."""

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
    from edgeship.toolkit.pipeline.recipe import Recipe


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
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write."
)
@click.option("--keep-ratio", type=float, metavar="RATIO", help="Ratio of the channels in blocks to keep.")
@click.option("--macs-ratio", type=float, metavar="RATIO", help="Ratio of the multiply-accumulates to keep.")
@click.option(
    "--latency-ratio", type=float, metavar="RATIO", help="INT8 latency over that of the dense network."
)
@click.option(
    "--max-expected-drop-pp", type=float, metavar="POINTS", help="Expected top-1 drop, in percentage points."
)
@click.option("--widths", metavar="RATIOS", help="Several channel ratios, e.g. 0.9,0.75: nested networks.")
@click.option(
    "--model", default="auto", show_default=True, help="Architecture, e.g. resnet18; auto: from the file."
)
@click.option("--size", type=SizeType(), help="Input size in pixels.  [default: that of WEIGHTS, else 224]")
@click.option("--images", type=int, default=1000, show_default=True, help="Number of images of SOURCE.")
@click.option(
    "--test",
    default="",
    metavar="SOURCE",
    help="Labelled images to measure top-1 with.  [default: part of SOURCE, without labels]",
)
@click.option("--target", default="openvino", show_default=True, help="Target of the INT8 networks.")
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads of timed inferences.")
@click.option(
    "--seconds", type=float, default=2.0, show_default=True, help="Timed inferences per network, in seconds."
)
@click.option("--method", default="obs", show_default=True, help="obs, activation, batchnorm or magnitude.")
@click.option(
    "--channel-multiple", type=int, default=16, show_default=True, help="Channel counts are multiples of it."
)
@click.option("--scope", default="block", show_default=True, help="Channels: block, residual or both.")
@click.option("--drop-blocks", is_flag=True, help="Allow removal of whole residual blocks.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the image selection.")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Evaluate and time in INT8.")
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
    """Prune a ResNet without labels or training.

    WEIGHTS is a ResNet checkpoint, SOURCE a folder, archive, CSV list or digits:train of images.
    Writes model.safetensors, widths.json and plan.json (one folder per value of --widths), usable as
    load.weights of a recipe, and family.json and family.html: accuracy against latency in FP32 and INT8 of
    the pruned networks and of the dense one as baseline, with the knee marked.

    RATIO is a number between 0 and 1. Exactly one goal is required: one of the options of RATIO,
    RATIOS or POINTS.

    Repeating the command after an interruption continues at the last finished block.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.artifact import write_json, write_text
    from edgeship.toolkit.core.errors import RecipeError
    from edgeship.toolkit.pipeline import family
    from edgeship.toolkit.pipeline.recipe import Recipe
    from edgeship.toolkit.prune.options import GOALS

    goals = [name for name in GOALS if how[name] is not None]
    if len(goals) + (widths is not None) != 1:
        raise RecipeError(
            f"{len(goals) + (widths is not None)} pruning goals, expected 1",
            hint="one of --keep-ratio, --macs-ratio, --latency-ratio, --max-expected-drop-pp and --widths",
        )
    if weights in ("", "train"):
        raise RecipeError(
            f"WEIGHTS is '{weights}', expected a checkpoint: prune does not train",
            hint=f"train first: edgeship train {source} --model resnet18 --out net",
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
    parts = _parts(widths)
    family.check(parts)
    if parts:
        table["prune"]["keep_ratio"] = min(parts)
    recipe = Recipe.build(table, [f"load.preprocess.{text}" for text in settings])
    for folder in family.folders(parts, out).values():
        refuse_other_network(folder, last="plan.json", source=weights)
    with show_progress(), tempfile.TemporaryDirectory() as name:
        dense = Path(name)
        _load(recipe, dense)
        pruned = family.prune(recipe, parts, dense, out)
        _warn(pruned)
        if not compare:
            family.done(out)
            click.echo("\n".join(str(each) for each in pruned.values()))
            return
        comparison = family.compare(recipe, dense, pruned)
    from edgeship.toolkit.report import family as family_report

    write_json(out / "family.json", comparison)
    write_text(out / "family.html", family_report.page(comparison))
    family.done(out)
    if as_json:
        click.echo(json.dumps(comparison, indent=1))
        return
    family_report.terminal(comparison)
    click.echo(f"\nchart: {out / 'family.html'}")


def _load(recipe: Recipe, dense: Path) -> None:
    from edgeship.toolkit.core.errors import RecipeError
    from edgeship.toolkit.pipeline import load_and_export

    try:
        load_and_export.loader(recipe)(recipe, dense, dense)
    except RecipeError as error:  # rewrite the hint: recipe option -> command-line option
        raise RecipeError(
            str(error), hint=error.hint.replace("--set load.preprocess.", "--preprocess ")
        ) from error


def _parts(widths: str | None) -> list[float]:
    from edgeship.toolkit.core.errors import RecipeError

    try:
        return [float(part) for part in widths.split(",")] if widths is not None else []
    except ValueError as error:
        raise RecipeError(
            f"--widths is '{widths}', expected numbers separated by commas", hint="--widths 0.9,0.75,0.6"
        ) from error


def _warn(folders: dict[str, Path]) -> None:
    """Print the warnings of the prune plans, each once."""
    from edgeship.toolkit.core.artifact import read_json

    plans = [read_json(folder / "plan.json") for folder in folders.values()]
    for warning in dict.fromkeys(line for plan in plans for line in plan["warnings"]):
        click.echo(f"note: {warning}", err=True)
