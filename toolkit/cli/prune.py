"""`edgeship prune`: prune a checkpoint with unlabelled images and compare the pruned networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.cli._options import (
    JSON,
    PREPROCESS,
    STORE,
    Resumable,
    data_argument,
    note,
    recipe_options,
)
from edgeship.toolkit.cli._outputs import OutPath, refuse_other_network


@click.command(
    cls=Resumable,
    epilog="""\b
Examples:
  edgeship prune net.pth photos/ --keep-ratio 0.5 --out small
  edgeship prune net.pth photos/ --latency-ratio 0.6 --out fast
  edgeship prune net.pth photos/ --latency-ratio 0.45 --budget 20min --out fit
  edgeship prune net.pth photos/ --max-drop 1 --no-compare --out safe
  edgeship prune net.pth photos/ --widths 0.9,0.75,0.5 --out family
""",
)
@click.argument("model")
@data_argument("source")
@recipe_options("select.source", needed=("select.source",))
@click.option("--out", required=True, type=OutPath(file_okay=False), help="Folder to write.")
@recipe_options("prune.keep_ratio", "prune.macs_ratio", "prune.latency_ratio", "prune.max_expected_drop_pp")
@click.option("--widths", metavar="RATIOS", help="Several channel ratios, e.g. 0.9,0.75: one run for each.")
@recipe_options("prune.budget_s")
@recipe_options("prune.method", "prune.scope", "prune.drop_blocks", "prune.channel_multiple", method="obs")
@recipe_options("prune.images", "prune.flip_augment", "prune.seed", "load.model", "export.size")
@recipe_options("evaluate.source", text="Evaluation images.  [default: half of SOURCE]")
@recipe_options("compile.targets", targets=("openvino",))
@recipe_options("bench.threads", "bench.duration_s")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Evaluate and time in INT8.")
@PREPROCESS
@JSON
@STORE
def command(
    *,
    model: str,
    options: dict[str, Any],
    out: Path,
    widths: str | None,
    compare: bool,
    as_json: bool,
    store_root: Path | None,
) -> None:
    """Prune a ResNet without labels or training.

    MODEL is a ResNet checkpoint or a recipe, SOURCE (or --data) a folder, archive, CSV list or digits:train
    of images. OUT receives model.safetensors, widths.json and plan.json, usable as MODEL of other commands,
    and, unless --no-compare, report, engines and graphs as `edgeship run` writes them: accuracy and latency
    of the pruned and of the dense network in FP32 and INT8. With --widths there is one such folder per ratio,
    and comparison.md: accuracy against latency of all of them, with the knee marked.

    With --budget, search and refit are followed by a distillation for the rest of the time, without labels
    and quantization-aware; with a latency goal, --scope is then joint. Evaluation and timing do not count.

    RATIO is a number between 0 and 1. Exactly one goal is required: one of the options of RATIO, RATIOS or
    POINTS, or that of the recipe.

    Results of finished stages are cached: repeating the command after an interruption continues at the last
    finished block.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.errors import RecipeError
    from edgeship.toolkit.pipeline import Store, run
    from edgeship.toolkit.pipeline.model_recipe import recipe_of, with_data
    from edgeship.toolkit.prune.options import GOALS

    if model in ("", "train"):
        raise RecipeError(
            f"MODEL is '{model}', expected a checkpoint: prune does not train",
            hint=f"train first: edgeship train {options['select.source']} --model resnet18 --out net",
        )
    goals = [name for name in GOALS if f"prune.{name}" in options]
    if len(goals) + (widths is not None) != 1 and not (model.endswith(".toml") and not goals and not widths):
        raise RecipeError(
            f"{len(goals) + (widths is not None)} pruning goals, expected 1",
            hint="one of --keep-ratio, --macs-ratio, --latency-ratio, --max-drop and --widths",
        )
    if "prune.budget_s" in options and "prune.latency_ratio" in options:
        options.setdefault("prune.scope", "joint")
    ratios = _ratios(widths)
    given = {"bench.throughput_s": 0.0, **(with_data(options) if compare else options)}
    recipes = {
        out / f"keep-{ratio:g}" if widths else out: recipe_of(
            model, {**given, "prune.keep_ratio": ratio} if widths else given
        )
        for ratio in ratios
    }
    for folder in recipes:
        refuse_other_network(folder, last="plan.json", source=model)
    with show_progress() as progress:
        for folder, recipe in recipes.items():
            finished = run(
                recipe,
                out=folder if compare else None,
                until=None if compare else "finetune" if recipe.prune.budget_s else "prune",
                store=Store(store_root),
                watch=progress.stage,
            )
            _write_network(
                finished.folder("finetune" if recipe.prune.budget_s else "prune"),
                finished.folder("prune"),
                folder,
            )
    if not compare:
        click.echo("\n".join(map(str, recipes)))
        return
    target = recipe.compile.targets[0]
    _print_comparison(list(recipes), target, options["select.source"], out, as_json=as_json)


def _print_comparison(folders: list[Path], target: str, source: str, out: Path, *, as_json: bool) -> None:
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
        click.echo(f"report:  {folder / 'report.html'}")
    click.echo(f"file:    {folders[-1] / 'model.safetensors'}")
    click.echo(f"next:    edgeship run {folders[-1]} --data {source}")


def _write_network(network: Path, pruned: Path, folder: Path) -> None:
    """Copy a network and the plan of its pruning from the store, and print the warnings of the plan."""
    from edgeship.toolkit.core.artifact import read_json, write_bytes

    for name in ("model.safetensors", "widths.json"):
        write_bytes(folder / name, (network / name).read_bytes())
    write_bytes(folder / "plan.json", (pruned / "plan.json").read_bytes())
    for warning in read_json(folder / "plan.json")["warnings"]:
        note(warning)


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
