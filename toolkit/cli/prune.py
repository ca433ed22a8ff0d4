"""`edgeship prune`: prune a checkpoint with unlabelled images and compare the pruned networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.cli._options import JSON, PREPROCESS, STORE, Resumable, SizeType
from edgeship.toolkit.cli._outputs import refuse_other_network
from edgeship.toolkit.core.tensors import Size


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
@click.option("--widths", metavar="RATIOS", help="Several channel ratios, e.g. 0.9,0.75: one run for each.")
@click.option(
    "--model", default="auto", show_default=True, help="Architecture, e.g. resnet18; auto: from the file."
)
@click.option("--size", type=SizeType(), help="Input size in pixels.  [default: that of WEIGHTS, else 224]")
@click.option("--images", type=int, default=1000, show_default=True, help="Number of images of SOURCE.")
@click.option(
    "--test",
    default="",
    metavar="SOURCE",
    help="Images to measure accuracy with.  [default: a fifth of SOURCE, which is then left out of the rest]",
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
@STORE
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
    store_root: Path | None,
    **how: float | int | bool | str | None,
) -> None:
    """Prune a ResNet without labels or training.

    WEIGHTS is a ResNet checkpoint, SOURCE a folder, archive, CSV list or digits:train of images.
    OUT receives model.safetensors, widths.json and plan.json, usable as load.weights of a recipe, and, unless
    --no-compare, report, engines and graphs as `edgeship run` writes them: accuracy and latency of the pruned
    and of the dense network in FP32 and INT8. With --widths there is one such folder per ratio, and
    comparison.md: accuracy against latency of all of them, with the knee marked.

    RATIO is a number between 0 and 1. Exactly one goal is required: one of the options of RATIO,
    RATIOS or POINTS.

    Results of finished stages are cached: repeating the command after an interruption continues at the last
    finished block.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.errors import RecipeError
    from edgeship.toolkit.pipeline import Recipe, Store, run
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
    held_out = compare and not test
    table: dict[str, Any] = {
        "load": loads,
        "export": {"size": size} if size else {},
        "prune": {name: value for name, value in how.items() if value is not None},
        "select": {"source": f"{source}:train" if held_out else source},
        "compile": {"targets": [target]},
        "evaluate": {"source": f"{source}:test" if held_out else test},
        "bench": {"threads": threads, "duration_s": seconds, "throughput_s": 0.0},
    }
    settings = tuple(f"load.preprocess.{text}" for text in settings)
    recipes = {
        out / f"keep-{ratio:g}" if widths else out: Recipe.build(
            {**table, "prune": {**table["prune"], "keep_ratio": ratio}} if widths else table, settings
        )
        for ratio in _ratios(widths)
    }
    for folder in recipes:
        refuse_other_network(folder, last="plan.json", source=weights)
    with show_progress() as progress, _own_hints():
        for folder, recipe in recipes.items():
            finished = run(
                recipe,
                out=folder if compare else None,
                until=None if compare else "prune",
                store=Store(store_root),
                watch=progress.stage,
            )
            _write_network(finished.folder("prune"), folder)
    if not compare:
        click.echo("\n".join(map(str, recipes)))
        return
    _print_comparison(list(recipes), target, out, as_json=as_json)


def _print_comparison(folders: list[Path], target: str, out: Path, *, as_json: bool) -> None:
    """Print accuracy against latency of the networks; of several, write comparison.md too."""
    from edgeship.toolkit.core.artifact import plain, write_text
    from edgeship.toolkit.report import compare_runs, render

    runs = [compare_runs.Run.read(folder) for folder in folders]
    points = compare_runs.frontier(runs, target)
    rows = [compare_runs.frontier_row(point) for point in points]
    if len(runs) > 1:
        tables = (
            compare_runs.markdown_table((compare_runs.FRONTIER, *rows)),
            compare_runs.markdown(runs, compare_runs.compare(runs)),
        )
        write_text(out / "comparison.md", "\n".join(tables))
    if as_json:
        click.echo(json.dumps(plain(points), indent=1))
        return
    render.print_table(compare_runs.FRONTIER, rows, expendable=("speed-up over FP32", "MACs"))
    for folder in folders:
        click.echo(f"report: {folder / 'report.html'}")


def _write_network(stage: Path, folder: Path) -> None:
    """Copy a pruned network and its plan from the store, and print the warnings of the plan."""
    from edgeship.toolkit.core.artifact import read_json, write_bytes

    for name in ("model.safetensors", "widths.json", "plan.json"):
        write_bytes(folder / name, (stage / name).read_bytes())
    for warning in read_json(folder / "plan.json")["warnings"]:
        click.echo(f"note: {warning}", err=True)


@contextmanager
def _own_hints() -> Iterator[None]:
    """Rewrite the hints of errors: recipe option -> command-line option."""
    from edgeship.toolkit.core.errors import RecipeError

    try:
        yield
    except RecipeError as error:
        hint = error.hint.replace("--set load.preprocess.", "--preprocess ")
        raise RecipeError(str(error), hint=hint) from error


def _ratios(widths: str | None) -> list[float]:
    """Return the ratios of --widths, the largest first; without the option, one of no meaning."""
    from edgeship.toolkit.core.errors import RecipeError

    if widths is None:
        return [1.0]
    try:
        ratios = sorted((float(part) for part in widths.split(",")), reverse=True)
    except ValueError as error:
        raise RecipeError(
            f"--widths is '{widths}', expected numbers separated by commas", hint="--widths 0.9,0.75,0.6"
        ) from error
    outside = [ratio for ratio in ratios if not 0 < ratio < 1]
    if outside or len(set(ratios)) < len(ratios):
        raise RecipeError(
            f"--widths is '{widths}', expected different ratios between 0 and 1"
            + (f": {outside[0]:g} is not" if outside else ""),
            hint="name each ratio of channels to keep once, e.g. 0.9,0.75,0.6; the dense network is included",
        )
    return ratios
